"""What a node is, from one probe in one round trip: the JSON of validators/probe.py with types."""

from __future__ import annotations

import base64
import json
import re
import shlex
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from gpuready.charts_values.errors import ToolError
from gpuready.charts_values.node_settings import numbers
from gpuready.charts_values.tables import document, merge_patch

DROP_IN_NAME = "50-gpuready.conf"
# Probes of an older schema lack what the plans read.
SCHEMA = 1
_GPU_CLASSES = ("0x0300", "0x0302")
_NVIDIA = "0x10de"
# Options that a kubelet takes as flags, by the field of its configuration that they beat.
FLAGS = {
    "topologyManagerPolicy": "topology-manager-policy",
    "topologyManagerScope": "topology-manager-scope",
    "topologyManagerPolicyOptions": "topology-manager-policy-options",
    "cpuManagerPolicy": "cpu-manager-policy",
    "cpuManagerPolicyOptions": "cpu-manager-policy-options",
    "memoryManagerPolicy": "memory-manager-policy",
    "reservedMemory": "reserved-memory",
    "reservedSystemCPUs": "reserved-cpus",
    "kubeReserved": "kube-reserved",
    "systemReserved": "system-reserved",
    "evictionHard": "eviction-hard",
}


@dataclass(frozen=True)
class Numa:
    """One NUMA node."""

    node: int
    cpus: tuple[int, ...]
    memory_kib: int


@dataclass(frozen=True)
class Kubelet:
    """The kubelet as it is installed and as it runs. ``config`` is its merged configuration without gpuready's file.

    ``live`` is the same with gpuready's file. ``environment`` are the files that may hold KUBELET_EXTRA_ARGS, ``state``
    the state files of the managers, by path.
    """

    version: str = ""
    running: bool = False
    flags: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    unit: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    live: Mapping[str, Any] = field(default_factory=dict)
    config_dir: str = ""
    drop_ins: Mapping[str, str] = field(default_factory=dict)
    state: Mapping[str, str] = field(default_factory=dict)

    def flag(self, name: str) -> str | None:
        """The value of a flag of the running process; None where it is not given."""
        for index, one in enumerate(self.flags):
            key, equals, value = one.lstrip("-").partition("=")
            if key == name:
                return value if equals else (self.flags[index + 1] if index + 1 < len(self.flags) else "")
        return None


@dataclass(frozen=True)
class Containerd:
    """containerd as it is set. ``config`` is None where there is no file, ``dump`` empty where it could not be had."""

    version: str = ""
    config_file: str = "/etc/containerd/config.toml"
    config: str | None = None
    drop_ins: Mapping[str, str] = field(default_factory=dict)
    dump: str = ""
    error: str = ""


@dataclass(frozen=True)
class NodeFacts:
    """What plans need to know of a machine. ``raw`` is the whole probe, ``files`` the text of the files asked for."""

    name: str
    root: bool = True
    os_id: str = ""
    os_version: str = ""
    os_like: tuple[str, ...] = ()
    kernel: str = ""
    cmdline: str = ""
    cgroup: int = 2
    virtualization: str = "none"
    container: str = ""
    secure_boot: bool | None = None
    boot_id: str = ""
    online: tuple[int, ...] = ()
    cores: tuple[tuple[int, ...], ...] = ()
    sockets: int = 1
    governors: Mapping[str, int] = field(default_factory=dict)
    numa: tuple[Numa, ...] = ()
    memory_kib: int = 0
    available_kib: int = 0
    swaps: tuple[str, ...] = ()
    swap_used_kib: int = 0
    hugepages: Mapping[int, int] = field(default_factory=dict)
    pci: tuple[Mapping[str, Any], ...] = ()
    modules: frozenset[str] = frozenset()
    sysctl: Mapping[str, str] = field(default_factory=dict)
    units: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    synchronized: bool | None = None
    package_manager: str = ""
    held: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    kernels: tuple[str, ...] = ()
    driver: Mapping[str, Any] = field(default_factory=dict)
    kubelet: Kubelet = field(default_factory=Kubelet)
    containerd: Containerd = field(default_factory=Containerd)
    traces: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    files: Mapping[str, str | None] = field(default_factory=dict)
    errors: Mapping[str, str] = field(default_factory=dict)
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def joined(self) -> tuple[str, ...]:
        """The traces of having joined a cluster; a running kubelet is one."""
        found = [path for paths in self.traces.values() for path in paths]
        return (*found, *(("a running kubelet",) if self.kubelet.running else ()))

    @property
    def virtual(self) -> bool:
        """Whether this is a virtual machine."""
        return self.virtualization not in ("none", "")

    @property
    def threads_per_core(self) -> int:
        """Hardware threads of one core."""
        return max((len(core) for core in self.cores), default=1)

    @property
    def gpus(self) -> tuple[Mapping[str, Any], ...]:
        """The PCI functions that are NVIDIA GPUs."""
        return tuple(
            one for one in self.pci if one.get("vendor") == _NVIDIA and str(one.get("class")).startswith(_GPU_CLASSES)
        )

    @property
    def gpu_numa(self) -> dict[int, int]:
        """How many GPUs sit on each NUMA node; -1 is the node of those whose firmware does not say."""
        found: dict[int, int] = {}
        for gpu in self.gpus:
            node = gpu.get("numa_node")
            key = -1 if node is None else int(node)
            found[key] = found.get(key, 0) + 1
        return found

    def active(self, unit: str) -> bool:
        """Whether systemd runs a unit."""
        return self.units.get(unit, {}).get("active") in ("active", "activating", "reloading")

    def enabled(self, unit: str) -> bool:
        """Whether a unit starts at boot."""
        return self.units.get(unit, {}).get("enabled") in ("enabled", "static", "alias")


def command(paths: Iterable[str]) -> str:
    """The shell command that probes a node, for one round trip; ``paths`` are the files whose text is wanted, too.

    Nothing is left on the node. It ends with 127 where there is no Python.
    """
    script = files("gpuready.validators").joinpath("probe.py").read_bytes()
    packed = base64.b64encode(zlib.compress(script, 9)).decode()
    code = f"import base64,zlib;exec(zlib.decompress(base64.b64decode('{packed}')))"
    wanted = " ".join(f"--file {shlex.quote(path)}" for path in paths)
    found = "python=$(command -v python3 || command -v /usr/libexec/platform-python)"
    missing = "{ echo 'Python 3.6 or newer is missing; install python3'; exit 127; }"
    return f'{found} || {missing}; "$python" -c {shlex.quote(code)} {wanted}'


def read(name: str, output: str) -> NodeFacts:
    """The facts in the output of a probe of node ``name``; raises ToolError where there are none."""
    try:
        probe = json.loads(output)
        schema = probe["schema"]
    except (ValueError, TypeError, KeyError):
        said = " ".join(output.split())[:200] or "nothing"
        raise ToolError(f"{name}: the probe printed no JSON but {said!r}; is Python 3.6 or newer installed?") from None
    if schema != SCHEMA:
        raise ToolError(f"{name}: the probe has schema {schema}, this version reads {SCHEMA}")
    return from_probe(name, probe)


def from_probe(name: str, probe: Mapping[str, Any]) -> NodeFacts:
    """The facts in a probe; parts that could not be read are as if empty, and ``errors`` names them."""

    def part(key: str) -> Mapping[str, Any]:
        found = probe.get(key)
        return found if isinstance(found, Mapping) else {}

    system, cpu, memory, packages = part("os"), part("cpu"), part("memory"), part("packages")
    swaps = memory.get("swaps") or ()
    return NodeFacts(
        name=name,
        root=bool(probe.get("root")),
        os_id=str(system.get("id") or ""),
        os_version=str(system.get("version_id") or ""),
        os_like=tuple(system.get("id_like") or ()),
        kernel=str(system.get("kernel") or ""),
        cmdline=str(system.get("cmdline") or ""),
        cgroup=int(system.get("cgroup") or 2),
        virtualization=str(probe.get("virtualization") or "none"),
        container=str(probe.get("container") or ""),
        secure_boot=part("machine").get("secure_boot"),
        boot_id=str(system.get("boot_id") or ""),
        online=numbers(str(cpu.get("online") or "")),
        cores=tuple(tuple(core) for core in cpu.get("cores") or ()),
        sockets=int(cpu.get("sockets") or 1),
        governors=cpu.get("governors") or {},
        numa=tuple(
            Numa(int(one["node"]), numbers(str(one.get("cpus") or "")), int(one.get("memory_kib") or 0))
            for one in probe.get("numa") or ()
        ),
        memory_kib=int(memory.get("total_kib") or 0),
        available_kib=int(memory.get("available_kib") or 0),
        swaps=tuple(str(one["device"]) for one in swaps),
        swap_used_kib=sum(int(one.get("used_kib") or 0) for one in swaps),
        hugepages={int(size): int(one.get("count") or 0) for size, one in (memory.get("hugepages") or {}).items()},
        pci=tuple(probe.get("pci") or ()),
        modules=frozenset(probe.get("modules") or ()),
        sysctl={key: str(value) for key, value in part("sysctl").items() if value is not None},
        units=part("units"),
        synchronized=part("time").get("synchronized"),
        package_manager=str(packages.get("manager") or ""),
        held=tuple(packages.get("held") or ()),
        versions=packages.get("versions") or {},
        kernels=tuple(packages.get("kernels") or ()),
        driver=part("driver"),
        kubelet=_kubelet(part("kubelet")),
        containerd=_containerd(part("containerd"), part("files")),
        traces={kind: tuple(paths) for kind, paths in part("joined").items()},
        files=part("files"),
        errors=part("errors"),
        raw=probe,
    )


def _kubelet(part: Mapping[str, Any]) -> Kubelet:
    texts: Mapping[str, str] = {path: text or "" for path, text in (part.get("drop_ins") or {}).items()}
    folder = str(part.get("config_dir") or "")
    config = document(part.get("config"))
    live = dict(config)
    # One that stands still will read the directory that its environment names.
    told = re.search(r"--config-dir[= ]([^\s\"']+)", "\n".join((part.get("environment") or {}).values()))
    walked = folder or (told[1] if told and not part.get("flags") else "")
    # By full path, as the kubelet walks its directory.
    for path in sorted(texts):
        if walked and path.startswith(f"{walked.rstrip('/')}/"):
            live = merge_patch(live, document(texts[path]))
            if not path.endswith(f"/{DROP_IN_NAME}"):
                config = merge_patch(config, document(texts[path]))
    return Kubelet(
        version=str(part.get("version") or ""),
        running=bool(part.get("flags")),
        flags=tuple(part.get("flags") or ()),
        environment=part.get("environment") or {},
        unit=str(part.get("unit") or ""),
        config=config,
        live=live,
        config_dir=folder,
        drop_ins=texts,
        state=part.get("state") or {},
    )


def _containerd(part: Mapping[str, Any], texts: Mapping[str, str | None]) -> Containerd:
    path = str(part.get("config_file") or Containerd.config_file)
    return Containerd(
        version=str(part.get("version") or ""),
        config_file=path,
        # The probe's own copy hides what opens a registry; it must not be written back.
        config=texts.get(path, part.get("config")),
        drop_ins={one: text or "" for one, text in (part.get("drop_ins") or {}).items()},
        dump=str(part.get("dump") or ""),
        error=str(part.get("error") or ""),
    )
