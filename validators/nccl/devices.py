"""What each host says about its NICs, its settings and GPUDirect: supporting evidence, never proof.

Capability lines say what could be; they moved between NCCL versions and fell silent in 2.30. Whether data takes
the short way is read from channel records alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_USING = re.compile(rb"NET/IB : Using (.*?)\s*(?:\[RO\])?\s*; OOB (\S+)")
_GROUP = re.compile(r"\[(\d{1,9})\]=\{([^}]*)\}")
_NIC = re.compile(r"\[(\d{1,9})\]\s*([\w.+\-]+):\d+(?::-?\d*:-?\d*)?/(IB|RoCE)")
_MEMBER = re.compile(r"([\w.\-]+):\d+(?::-?\d*:-?\d*)?/(IB|RoCE)")
_VIRTUAL = re.compile(rb"NET/IB : Made virtual device \[\d+\] name=\S+ speed=\d+ ndevs=(\d+)")
_ADDRESS = re.compile(rb"(?:Using|OOB) (?:\[\d+\])?[\w.\-]+:([0-9a-fA-F.:]+)<\d+>")
_ENVIRONMENT = re.compile(rb"(NCCL_\w+) set (?:by environment )?to (.*?)\.?\s*$")
_HCA = re.compile(
    rb"NET/[^:]+: GPU Direct RDMA (Enabled|Disabled) for (?:HCA|GPU \d+\[\w+\] / HCA) (\d+) '([^']+)'(.*)"
)
_GPU = re.compile(rb"GPU Direct RDMA (Enabled|Disabled) for GPU.*distance (\d+) (<=|>) (\d+)")
_MOST_VALUES = 20
_MOST_NAMES = 300


@dataclass(frozen=True)
class Nic:
    """An RDMA device as NCCL lists it; ``index`` is the number that channel records name."""

    index: int
    name: str
    link: str


@dataclass
class Capability:
    """Why a host called GPUDirect impossible: names of NICs, and whether GPU and NIC are too far apart."""

    no_module: set[str] = field(default_factory=set)
    no_support: set[str] = field(default_factory=set)
    too_far: bool = False


class Devices:
    """Device lists, addresses, settings and capability, by host."""

    def __init__(self) -> None:
        self.nics: dict[str, tuple[Nic, ...]] = {}
        self.without_ib: set[str] = set()
        self.merged: set[str] = set()
        self.host_of: dict[str, str] = {}
        self.environment: dict[str, dict[str, set[str]]] = {}
        self.capability: dict[str, Capability] = {}
        self.ofi_without_cuda: set[str] = set()
        self.rails_mismatched: set[str] = set()

    def network(self, text: bytes, host: str) -> None:
        """Read a record that begins with ``NET/``."""
        if match := _USING.match(text):
            self.nics[host] = _nics(match[1].decode("utf-8", "replace"))
            self.address(text, host)
        elif text.startswith(b"NET/IB : No device found"):
            self.without_ib.add(host)
        elif text.startswith(b"NET/Socket : Using "):
            self.address(text, host)
        elif (match := _VIRTUAL.match(text)) and match[1] != b"1":
            self.merged.add(host)
        elif match := _HCA.match(text):
            self._hca(host, *match.groups())
        elif b"disabling GDR" in text:
            self.ofi_without_cuda.add(host)

    def address(self, text: bytes, host: str) -> None:
        """Remember a host's address, by which its peers name it in errors."""
        for match in _ADDRESS.finditer(text):
            self.host_of[match[1].decode()] = host

    def setting(self, text: bytes, host: str) -> None:
        """Read an echoed environment variable."""
        match = _ENVIRONMENT.match(text)
        if match:
            self.set_to(match[1].decode(), match[2].decode("utf-8", "replace"), host)

    def set_to(self, name: str, value: str, host: str) -> None:
        """Remember an environment variable of a host."""
        if name in self.environment or len(self.environment) < _MOST_NAMES:
            values = self.environment.setdefault(name, {})
            if value in values or len(values) < _MOST_VALUES:
                values.setdefault(value, set()).add(host)

    def gpu_distance(self, text: bytes, host: str) -> None:
        """Read ``GPU Direct RDMA Enabled for GPU .. / HCA .. (distance a <= b)``."""
        match = _GPU.match(text)
        if match is None:
            return
        one = self.capability.setdefault(host, Capability())
        one.too_far |= match[1] == b"Disabled" and match[3] == b">"

    def _hca(self, host: str, state: bytes, index: bytes, name: bytes, rest: bytes) -> None:
        one = self.capability.setdefault(host, Capability())
        if state == b"Enabled":
            return
        (one.no_module if b"no module" in rest else one.no_support).add(name.decode("utf-8", "replace"))

    def value(self, name: str) -> list[str]:
        """The values of an environment variable over all hosts."""
        return sorted(self.environment.get(name, ()))


def _nics(text: str) -> tuple[Nic, ...]:
    groups = _GROUP.findall(text)
    if groups:
        found = []
        for index, members in groups:
            ports = _MEMBER.findall(members)
            if ports:
                found.append(Nic(int(index), "+".join(name for name, _ in ports), ports[0][1]))
        return tuple(found)
    return tuple(Nic(int(index), name, link) for index, name, link in _NIC.findall(text))
