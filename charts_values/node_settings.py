"""The table `node` of an inventory entry or of one of its groups: how its machines shall be set.

What is not given has a default that suits a machine whose GPUs are used whole. What takes something from running pods,
or fits only some machines, is off until it is asked for.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

from . import fields, quantities
from .errors import InputError
from .groups import Group

TOPOLOGY_POLICIES = ("none", "best-effort", "restricted", "single-numa-node")
TOPOLOGY_OPTIONS = ("prefer-closest-numa-nodes", "max-allowable-numa-nodes")
CPU_OPTIONS = (
    "full-pcpus-only",
    "distribute-cpus-across-numa",
    "align-by-socket",
    "distribute-cpus-across-cores",
    "strict-cpu-reservation",
    "prefer-align-cpus-by-uncorecache",
)
LIMITS = ("memlock", "nofile", "tasks")
HUGEPAGES = {"2Mi": 2048, "1Gi": 1048576}
RDMA_MODULES = ("ib_core", "ib_uverbs", "mlx5_ib", "rdma_cm", "rdma_ucm")
# At least these: a higher value of the node stays.
SYSCTL_LEAST = {"fs.inotify.max_user_instances": 8192, "fs.inotify.max_user_watches": 524288}
# Rails of one subnet: each answers for its own address alone, and replies may take another rail.
_RAILS = {
    "net.ipv4.conf.all.arp_ignore": "1",
    "net.ipv4.conf.all.arp_announce": "2",
    "net.ipv4.conf.all.rp_filter": "2",
}
_CPU = re.compile(r"\d+m|\d+(\.\d{1,3})?")
_CPU_LIST = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")
_MODULE = re.compile(r"[A-Za-z0-9_-]+")
_MODULE_OPTIONS = re.compile(r"[a-zA-Z0-9_]+(=[^\s\\]+)?( [a-zA-Z0-9_]+(=[^\s\\]+)?)*")
_SYSCTL = re.compile(r"[A-Za-z0-9_-]+([./][A-Za-z0-9_*:-]+)+")
# What may stand on the kernel's command line between white space and quotes.
_ARGUMENT = re.compile(r"[A-Za-z0-9_.,:=+/@-]+")
_REGISTRY = re.compile(r"[A-Za-z0-9.-]+(:\d+)?")


@dataclass(frozen=True)
class TopologyManager:
    """Topology Manager of the kubelet. ``options`` as the kubelet takes them: text to text."""

    policy: str = "restricted"
    scope: str = "pod"
    options: Mapping[str, str] = field(default_factory=lambda: {"prefer-closest-numa-nodes": "true"})


@dataclass(frozen=True)
class CpuManager:
    """CPU Manager of the kubelet; `static` gives whole CPUs to Guaranteed pods, and needs a reservation.

    Without a policy the node keeps what it has.
    """

    policy: str = ""
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class MemoryManager:
    """Memory Manager. ``reserved`` maps NUMA nodes to bytes; empty: shared out by the size of the NUMA nodes.

    Without a policy the node keeps what it has.
    """

    policy: str = ""
    reserved: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Reserved:
    """What the system and Kubernetes keep from pods: CPUs in thousandths, memory in bytes; None leaves it as it is.

    ``cpus`` is a list such as ``0-1,64-65``; it takes the place of the two shares of CPU.
    """

    cpus: str = ""
    kube_cpu_milli: int | None = None
    system_cpu_milli: int | None = None
    kube_memory: int | None = None
    system_memory: int | None = None
    eviction_memory: int | None = None


@dataclass(frozen=True)
class NodeSettings:
    """How a machine shall be set. Maps and lists add to what gpuready sets by itself; the given value wins.

    ``hugepages`` maps 2Mi and 1Gi to a number of pages, ``limits`` memlock, nofile and tasks to a number or `infinity`,
    ``registry_mirrors`` a registry to the URLs that are asked before it. ``acs`` is `off` or `keep`, ``swap`` too.
    ``module_options`` maps modules to the options that they are loaded with.
    ``drain_timeout`` is how many seconds the pods of a node may take to leave it.
    """

    topology_manager: TopologyManager = field(default_factory=TopologyManager)
    cpu_manager: CpuManager = field(default_factory=CpuManager)
    memory_manager: MemoryManager = field(default_factory=MemoryManager)
    reserved: Reserved = field(default_factory=Reserved)
    modules: tuple[str, ...] = ()
    module_options: Mapping[str, str] = field(default_factory=dict)
    sysctl: Mapping[str, str] = field(default_factory=dict)
    hugepages: Mapping[str, int] = field(default_factory=dict)
    limits: Mapping[str, str] = field(default_factory=dict)
    kernel_arguments: tuple[str, ...] = ()
    acs: str = "keep"
    swap: str = "off"
    governor: str = "performance"
    time_sync: bool = True
    hold_kernel: bool = True
    registry_mirrors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    drain_timeout: int = 900


def parse(where: str, value: Any, base: Mapping[str, Any] | None = None) -> NodeSettings:
    """The settings of a table `node`; ``base`` is the table of the whole cluster, which a group's adds to.

    Maps merge, the rest replaces, and None takes a key of ``base`` away. Raises InputError with one line.
    """
    here = f"{where}, node"
    if not isinstance(value, Mapping):
        raise InputError(f"{here} is no table; write {{'topology_manager': {{'policy': 'restricted'}}}}")
    table = merged(base or {}, value)
    fields.known(here, table, {one.name for one in dataclasses.fields(NodeSettings)})
    choices = {
        "acs": ("keep", "off"),
        "swap": ("off", "keep"),
        "governor": ("performance", "powersave", "schedutil", "keep"),
    }
    fields.choices(here, table, choices)
    fields.flags(here, table, ("time_sync", "hold_kernel"))
    drain = table.get("drain_timeout", NodeSettings.drain_timeout)
    if not isinstance(drain, int) or isinstance(drain, bool) or drain < 1:
        raise InputError(f"{here}: `drain_timeout` is {drain!r}; it is a number of seconds, such as 900")
    plain = ("acs", "swap", "governor", "time_sync", "hold_kernel", "drain_timeout")
    return NodeSettings(
        topology_manager=_topology(here, fields.table(here, table, "topology_manager")),
        cpu_manager=_cpu(here, fields.table(here, table, "cpu_manager")),
        memory_manager=_memory(here, fields.table(here, table, "memory_manager")),
        reserved=_reserved(here, fields.table(here, table, "reserved")),
        modules=_words(here, "modules", table.get("modules", ()), _MODULE),
        module_options=_module_options(here, fields.table(here, table, "module_options")),
        sysctl=_sysctl(here, fields.table(here, table, "sysctl")),
        hugepages=_hugepages(here, fields.table(here, table, "hugepages")),
        limits=_limits(here, fields.table(here, table, "limits")),
        kernel_arguments=_words(here, "kernel_arguments", table.get("kernel_arguments", ()), _ARGUMENT),
        registry_mirrors=_mirrors(here, fields.table(here, table, "registry_mirrors")),
        **{key: table[key] for key in plain if key in table},
    )


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``over`` on top: maps merge, the rest replaces, None takes away."""
    result = dict(base)
    for key, value in over.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
            result[key] = merged(result[key], value)
        else:
            result[key] = value
    return result


def quantity(where: str, key: str, value: Any) -> int:
    """Bytes of a quantity of Kubernetes such as 512Mi; raises InputError."""
    try:
        size = quantities.parse(value)
    except InputError:
        size = Decimal(-1)
    if size < 0 or size % 1:
        raise InputError(f"{where}: `{key}` is {value!r}; it is an amount of memory, such as 512Mi or 4Gi")
    return int(size)


def numbers(cpus: str) -> tuple[int, ...]:
    """The numbers of a list such as ``0-1,64``, in order."""
    found: set[int] = set()
    for part in cpus.split(","):
        first, _, last = part.strip().partition("-")
        if first:
            found.update(range(int(first), int(last or first) + 1))
    return tuple(sorted(found))


def cpu_reservation(field: Callable[[str], Any]) -> int:
    """Thousandths of CPU that a kubelet keeps from pods; ``field`` gives a field of its configuration."""
    if cpus := field("reservedSystemCPUs"):
        return 1000 * len(numbers(str(cpus)))
    return sum(quantities.milli((field(key) or {}).get("cpu", 0)) for key in ("kubeReserved", "systemReserved"))


# -- what the settings come to, defaults included -----------------------------------------------------------------


def modules(settings: NodeSettings, group: Group | None, ofed_owner: str) -> tuple[str, ...]:
    """The modules that a machine loads at boot. Those of RDMA come with the operator where it owns OFED."""
    found = ["overlay"]
    if group is not None and group.rdma != "none" and ofed_owner != "operator":
        found += [*RDMA_MODULES, *(("ib_umad",) if group.rdma == "ib" else ())]
    return tuple(dict.fromkeys([*found, *settings.modules]))


def sysctl(settings: NodeSettings, group: Group | None) -> dict[str, str]:
    """The values that the kernel shall have; what inventory says wins. ``sysctl_least`` names the others."""
    found = {"net.ipv4.ip_forward": "1", "kernel.numa_balancing": "0"}
    if group is not None and group.rdma == "roce":
        found |= _RAILS
    return {**found, **settings.sysctl}


def sysctl_least(settings: NodeSettings) -> dict[str, int]:
    """The least values of what may be higher; one that inventory names is none of them."""
    return {key: least for key, least in SYSCTL_LEAST.items() if key not in settings.sysctl}


def limits(settings: NodeSettings) -> dict[str, str]:
    """The limits of the daemons; containers have those of the daemon that starts them."""
    return {"memlock": "infinity", **settings.limits}


def limited_units(platform: str) -> tuple[str, ...]:
    """The units that have them, by platform; of several kubelets a machine has one.

    The kubelet of vCluster is its own: it gets its settings from vcluster.yaml, and nothing is written beside it.
    """
    return {"k3s": ("k3s", "k3s-agent"), "vcluster": ("containerd",)}.get(platform, ("containerd", "kubelet"))


# -- the parts ----------------------------------------------------------------------------------------------------


def _topology(here: str, table: Mapping[str, Any]) -> TopologyManager:
    here += ", topology_manager"
    fields.known(here, table, {"policy", "scope", "options"})
    fields.choices(here, table, {"policy": TOPOLOGY_POLICIES, "scope": ("container", "pod")})
    policy = table.get("policy", TopologyManager.policy)
    default = {} if policy in ("none", "single-numa-node") else TopologyManager().options
    options = _options(here, fields.table(here, table, "options"), TOPOLOGY_OPTIONS) if "options" in table else default
    most = options.get("max-allowable-numa-nodes")
    if most is not None and (not most.isdecimal() or int(most) < 8):
        raise InputError(f"{here}: max-allowable-numa-nodes is {most!r}; the kubelet takes whole numbers from 8 up")
    return TopologyManager(policy, table.get("scope", TopologyManager.scope), options)


def _cpu(here: str, table: Mapping[str, Any]) -> CpuManager:
    here += ", cpu_manager"
    fields.known(here, table, {"policy", "options"})
    fields.choices(here, table, {"policy": ("none", "static")})
    options = _options(here, fields.table(here, table, "options"), CPU_OPTIONS)
    if options and table.get("policy") != "static":
        raise InputError(f"{here}: `options` are for policy static")
    return CpuManager(table.get("policy", CpuManager.policy), options)


def _memory(here: str, table: Mapping[str, Any]) -> MemoryManager:
    here += ", memory_manager"
    fields.known(here, table, {"policy", "reserved"})
    fields.choices(here, table, {"policy": ("None", "Static")})
    reserved: dict[int, int] = {}
    for node, size in fields.table(here, table, "reserved").items():
        if not str(node).isdecimal():
            raise InputError(
                f"{here}: `reserved` maps NUMA nodes to memory, such as {{0: '3Gi', 1: '2Gi'}}, not {node!r}"
            )
        reserved[int(node)] = quantity(here, f"reserved.{node}", size)
    if reserved and table.get("policy") != "Static":
        raise InputError(f"{here}: `reserved` is for policy Static")
    return MemoryManager(table.get("policy", MemoryManager.policy), reserved)


def _reserved(here: str, table: Mapping[str, Any]) -> Reserved:
    here += ", reserved"
    fields.known(here, table, {"cpus", "kube_cpu", "system_cpu", "kube_memory", "system_memory", "eviction_memory"})
    cpus = str(table.get("cpus", ""))
    if cpus and (not _CPU_LIST.fullmatch(cpus) or any(not numbers(part) for part in cpus.split(","))):
        raise InputError(f"{here}: `cpus` is {cpus!r}; it is a list of CPUs such as 0-1,64-65")
    if cpus and ("kube_cpu" in table or "system_cpu" in table):
        raise InputError(f"{here}: `cpus` takes the place of `kube_cpu` and `system_cpu`; give one or the other")
    shares: dict[str, int | None] = {}
    for key in ("kube_cpu", "system_cpu"):
        value = str(table.get(key, ""))
        if value and not _CPU.fullmatch(value):
            raise InputError(f"{here}: `{key}` is {value!r}; it is a number of CPUs such as 2 or 500m")
        shares[f"{key}_milli"] = quantities.milli(value) if value else None
    for key in ("kube_memory", "system_memory", "eviction_memory"):
        shares[key] = quantity(here, key, table[key]) if key in table else None
    return Reserved(cpus=cpus, **shares)


def _module_options(here: str, table: Mapping[str, Any]) -> dict[str, str]:
    for name, text in table.items():
        if not _MODULE.fullmatch(str(name)) or not isinstance(text, str) or not _MODULE_OPTIONS.fullmatch(text):
            raise InputError(
                f"{here}: `module_options` maps modules to options such as {{'ib_core': 'netns_mode=0'}}; "
                f"{name!r}: {text!r} does not fit"
            )
    return dict(table)


def _sysctl(here: str, table: Mapping[str, Any]) -> dict[str, str]:
    for key, value in table.items():
        if not _SYSCTL.fullmatch(str(key)):
            raise InputError(f"{here}: `sysctl` has {key!r}, which is no name such as net.ipv4.ip_forward")
        plain = isinstance(value, int | str) and not isinstance(value, bool)
        if not plain or not str(value).strip() or len(str(value).splitlines()) != 1:
            raise InputError(f"{here}: `sysctl` {key} is {value!r}; give a number or a line of text")
    return {str(key).replace("/", "."): str(value) for key, value in table.items()}


def _hugepages(here: str, table: Mapping[str, Any]) -> dict[str, int]:
    for key, value in table.items():
        if key not in HUGEPAGES or isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise InputError(
                f"{here}: `hugepages` maps 2Mi and 1Gi to a number of pages; {key!r}: {value!r} does not fit"
            )
    return dict(table)


def _limits(here: str, table: Mapping[str, Any]) -> dict[str, str]:
    for key, value in table.items():
        if key not in LIMITS or not re.fullmatch(r"infinity|\d+", str(value)) or isinstance(value, bool):
            known = ", ".join(LIMITS)
            raise InputError(
                f"{here}: `limits` maps {known} to a number or `infinity`; {key!r}: {value!r} does not fit"
            )
    return {str(key): str(value) for key, value in table.items()}


def _mirrors(here: str, table: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    result = {}
    for registry, urls in table.items():
        if not _REGISTRY.fullmatch(str(registry)):
            raise InputError(f"{here}: `registry_mirrors` has {registry!r}, which is no registry such as nvcr.io")
        result[str(registry)] = fields.strings(here, f"registry_mirrors.{registry}", urls)
        for url in result[str(registry)]:
            if not _url(url):
                raise InputError(f"{here}: `registry_mirrors` of {registry} has {url!r}; write https://host:port")
    return result


def _url(text: str) -> bool:
    try:
        url = urlsplit(text)
        good = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        return False
    # It stands between quotes in the files of containerd.
    return good and not re.search(r"[\s\"'\\]", text)


def _options(here: str, table: Mapping[str, Any], known: tuple[str, ...]) -> dict[str, str]:
    result = {}
    for key, value in table.items():
        if key not in known:
            raise InputError(f"{here}: unknown option {key!r}; known options are {', '.join(known)}")
        text = str(value).lower()
        if key != "max-allowable-numa-nodes" and text not in ("true", "false"):
            raise InputError(f"{here}: option {key} is {value!r}; it is True or False")
        result[key] = text
    return result


def _words(here: str, key: str, value: Any, pattern: re.Pattern[str]) -> tuple[str, ...]:
    words = fields.strings(here, key, value)
    for word in words:
        if not pattern.fullmatch(word):
            raise InputError(f"{here}: `{key}` has {word!r}, which is not allowed there")
    return words
