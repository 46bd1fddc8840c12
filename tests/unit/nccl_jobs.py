"""NCCL jobs by the rehearsal's generator, and what is true of each: worked out from the fabric, never read back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from gpuready.rehearsal.outputs import fabric
from gpuready.rehearsal.outputs.boards import board
from gpuready.rehearsal.outputs.nccl import Dialect, Host, Rendered, Style, render

A100, H100, GB200 = "NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3", "NVIDIA GB200"
PASS, FAIL, OPEN = 0, 1, 2


@dataclass(frozen=True)
class Kind:
    """One kind: the row of the grammar that it stands for, its log as files, what is true of it, and the exit code of
    `gpuready nccl`. ``says`` are reasons among the findings that fail or stay open."""

    name: str
    row: str
    files: tuple[bytes, ...]
    truth: Mapping[str, Any]
    exit_code: int
    says: frozenset[str] = frozenset()

    @property
    def lines(self) -> list[bytes]:
        """All files as one log."""
        return b"".join(self.files).splitlines(keepends=True)


@dataclass(frozen=True)
class Job:
    """A run before its text is made: hosts, NCCL release, style."""

    hosts: Sequence[Host]
    version: str = "2.27.7+cuda12.9"
    style: Style = field(default_factory=Style)

    @cached_property
    def rendered(self) -> Rendered:
        """The run by the rehearsal's generator."""
        return render(self.hosts, version=self.version, min_bytes=1 << 29, max_bytes=1 << 30, seed=3, style=self.style)

    @property
    def truth(self) -> dict[str, Any]:
        """What must be read from the whole log."""
        net, direct, inside = self._channels()
        form, run = self.style.form, self.rendered
        multi = len(self.hosts) > 1
        named = {host.network for host in self.hosts} if Dialect(self.version).since(2, 6) else set()
        one_domain = multi and not net
        return {
            "versions": [self.version],
            "hosts": {host.name for host in self.hosts},
            "ranks": sum(host.gpus for host in self.hosts),
            "networks": named,
            "net": net or None,
            "gdr_channels": direct if net else None,
            "gdr": "not_applicable"
            if not multi or one_domain
            else "all"
            if direct == net
            else "partial"
            if direct
            else "none",
            "intranode": inside,
            "errors": [],
            "busbw": run.busbw_gbytes_s,
            "wrong": form.wrong,
            "torn": 0,
        }

    def _channels(self) -> tuple[int, int, set[str]]:
        """Channel records between hosts, those with GPUDirect, and the paths inside hosts."""
        net = direct = 0
        inside: set[str] = set()
        if sum(host.gpus for host in self.hosts) < 2:
            return 0, 0, inside
        dialect = Dialect(self.version)
        for channel in range(fabric.channel_count(self.hosts)):
            for hop in fabric.hops(self.hosts, channel):
                one, other = self.hosts[hop.source[0]], self.hosts[hop.target[0]]
                if one is other:
                    nvlink = bool(board(one.product).nvlinks) and one.p2p
                    inside.add(dialect.inside(nvlink=nvlink).removesuffix("/direct").removesuffix("/direct"))
                elif fabric.joined(one, other):
                    inside.add("P2P/MNNVL")
                else:
                    net += 2
                    sockets = "Socket" in (one.network, other.network)
                    direct += 0 if sockets else one.gdr + other.gdr
        return net, direct, {"SHM" if "shared memory" in path else path for path in inside}


def host(number: int = 0, **changes: Any) -> Host:
    """An A100 node's pod with two GPUs and two NICs."""
    promised: dict[str, Any] = {
        "name": f"pod-{number}",
        "gpus": 2,
        "nics": ("mlx5_0", "mlx5_1"),
        "link": "IB",
        "nic_gbits_s": 200,
        "rdma": True,
        "gdr": True,
        "address": f"192.0.2.{10 + number}",
        "product": A100,
    }
    return Host(**{**promised, **changes})


def pair(**changes: Any) -> list[Host]:
    """Two such hosts."""
    return [host(0, **changes), host(1, **changes)]


Edit = Callable[[str], str]


def kind(
    name: str, row: str, job: Job, exit_code: int = PASS, *says: str, edit: Edit | None = None, **truth: Any
) -> Kind:
    """A kind from a job; ``edit`` changes each host's text and ``truth`` what follows from that."""
    files = [text if edit is None else edit(text) for text in job.rendered.logs.values()]
    whole = {**job.truth, **truth}
    return Kind(name, row, tuple(text.encode() for text in files), whole, exit_code, frozenset(says))
