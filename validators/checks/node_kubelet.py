"""The kubelet of a machine: its policies as promised, running, and able to start again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gpuready.charts_values.errors import InputError
from gpuready.charts_values.node_settings import NodeSettings, cpu_reservation, quantity
from gpuready.charts_values.versions import parts

from .. import kubelet_config
from ..kubelet_config import FIELDS, KubeletConfig, plain
from ..machines import Machine, machine_check
from ..model import Finding
from .node_access import REACHED
from .node_containerd import runc_options, runs_containerd

_CPU_STATE = "/var/lib/kubelet/cpu_manager_state"
_MEMORY_STATE = "/var/lib/kubelet/memory_manager_state"
_EVICTION_MEMORY = "100Mi"
# From here on kubelets take containerd's word for the cgroup driver, where containerd gives it.
_ASKS_RUNTIME, _TELLS_DRIVER = (1, 34), (2, 0)
_DRAIN = "Do not restart a kubelet under running GPU jobs; drain the node, and remove a state file only then."
_ROLL = "Put the node under `maintenance`, then: pyinfra inventory deploys/gpu.py"
_NOTHING = "no inventory says what is promised here"


@machine_check(
    "node.kubelet_restart",
    title="the kubelet runs with what its files say",
    proves="Nothing waits for the next restart: no edit without effect, no state file that keeps it from starting.",
    rule="The fields that place and limit pods are the same in its files (drop-ins and flags on top) and in the "
    "running kubelet (configz); the state files of CPU and Memory Manager are of the policies that the files name; "
    "the drop-in directory of its environment is the one that it was started with.",
    source="Kubernetes documentation, kubelet configuration directory",
    fix="Drain the node; stop the kubelet; remove the state file whose policy differs; start it; uncordon. "
    "pyinfra inventory deploys/gpu.py does that under `maintenance`.",
    avoid=_DRAIN,
    after=REACHED,
)
def kubelet_restart(one: Machine) -> Finding:
    """Edited, not restarted."""
    config = _config(one)
    for path, field in ((_CPU_STATE, "cpuManagerPolicy"), (_MEMORY_STATE, "memoryManagerPolicy")):
        has, wants = config.state.get(path, {}).get("policyName"), config.expected(field)
        if config.embedded and field not in config.written:
            continue
        if has and has != wants:
            cause = "a state file is of another policy: the kubelet will not start again"
            return one.fail("StateDiffers", cause, f"{path}: {has}; {field}: {wants}", expected=wants, observed=has)
    if config.told and config.told.rstrip("/") != (config.folder or "").rstrip("/") and not config.embedded:
        cause = "kubelet was configured and not restarted"
        return one.fail("NotRestarted", cause, f"it was started without --config-dir {config.told}")
    if config.running is None and config.embedded and not config.written:
        return one.unproven("NoKubelet", "no kubelet runs that could be asked")
    if config.running is None:
        cause = "the running kubelet's configuration could not be read"
        fix = "Only the right nodes/proxy shows it, which the least role leaves out: it allows commands in pods, too."
        detail = "its state files and flags agree with its files"
        return one.unproven("ConfigNotRead", cause, detail, fix=fix, required=False)
    named = [field for field in FIELDS if field in config.written and field not in config.flagged]
    differ = [
        f"{field}: file {plain(config.written[field])}, running {plain(config.running.get(field))}"
        for field in named
        if not _same(config.written[field], config.running.get(field))
    ]
    # A drop-in that was taken away leaves a policy that no file names any more.
    for field, default in kubelet_config.DEFAULTS.items():
        unnamed = field not in (*named, *config.flagged, "cgroupDriver") and not config.embedded
        if unnamed and config.running.get(field, default) != default:
            differ.append(f"{field}: no file, running {config.running[field]}")
    if differ:
        return one.fail("NotRestarted", "kubelet was configured and not restarted", "; ".join(differ))
    return one.good(f"{len(named)} fields as its files say")


@machine_check(
    "node.kubelet_policy",
    title="Topology Manager runs as promised",
    proves="Pods get GPUs, NICs, CPUs and memory that are near each other, or are refused.",
    rule="topologyManagerPolicy, its scope and options are those of `topology_manager` of inventory: as the running "
    "kubelet says (configz), else by its files and flags.",
    source="Kubernetes documentation, Topology Manager",
    fix=_ROLL,
    avoid=_DRAIN,
    after=(*REACHED, "node.kubelet_restart"),
)
def kubelet_policy(one: Machine) -> Finding:
    """Topology Manager."""
    if one.settings is None:
        return one.skip(_NOTHING)
    wanted = one.settings.topology_manager
    fields: dict[str, Any] = {"topologyManagerPolicy": wanted.policy, "topologyManagerScope": wanted.scope}
    if wanted.options:
        fields["topologyManagerPolicyOptions"] = dict(wanted.options)
    return _compared(one, fields, "PolicyDiffers", "Topology Manager is not as promised")


@machine_check(
    "node.cpu_manager",
    title="CPU Manager runs as promised",
    proves="Guaranteed pods have their CPUs for themselves.",
    rule="cpuManagerPolicy, its options and reservedSystemCPUs are those of inventory, where it names them; with "
    "policy static some CPU is reserved, or the kubelet does not start again.",
    source="Kubernetes documentation, CPU management policies",
    fix=_ROLL,
    avoid=_DRAIN,
    after=(*REACHED, "node.kubelet_restart"),
)
def cpu_manager(one: Machine) -> Finding:
    """CPU Manager."""
    config = _config(one)
    if config.expected("cpuManagerPolicy") == "static" and not cpu_reservation(config.expected):
        cause = "CPU Manager static has no reservation, with which the kubelet does not start"
        return one.fail("NoReservation", cause, expected="reservedSystemCPUs, or cpu of a reservation")
    settings = one.settings or NodeSettings()
    fields: dict[str, Any] = {}
    if settings.cpu_manager.policy:
        fields["cpuManagerPolicy"] = settings.cpu_manager.policy
    if settings.cpu_manager.options:
        fields["cpuManagerPolicyOptions"] = dict(settings.cpu_manager.options)
    if settings.reserved.cpus:
        fields["reservedSystemCPUs"] = settings.reserved.cpus
    if not fields:
        return one.skip("inventory leaves CPU Manager as it is")
    return _compared(one, fields, "PolicyDiffers", "CPU Manager is not as promised")


@machine_check(
    "node.memory_manager",
    title="Memory Manager runs as promised, and its sums are right",
    proves="Guaranteed pods have memory near their CPUs, and the kubelet starts again.",
    rule="memoryManagerPolicy is that of inventory, where it names one; with Static reservedMemory adds up to "
    "kubeReserved + systemReserved + evictionHard memory.available, to the byte.",
    source="Kubernetes documentation, Memory Manager",
    fix=_ROLL,
    avoid=_DRAIN,
    after=(*REACHED, "node.kubelet_restart"),
)
def memory_manager(one: Machine) -> Finding:
    """Memory Manager."""
    config = _config(one)
    if config.expected("memoryManagerPolicy") == "Static":
        has, needs = _memory_sums(config)
        if needs is not None and has != needs:
            cause = "reserved memory does not add up, with which the kubelet does not start"
            return one.fail("MemorySum", cause, f"reservedMemory {has} bytes, reservations {needs} bytes")
    policy = one.settings.memory_manager.policy if one.settings else ""
    if not policy:
        return one.skip("inventory leaves Memory Manager as it is")
    return _compared(one, {"memoryManagerPolicy": policy}, "PolicyDiffers", "Memory Manager is not as promised")


@machine_check(
    "node.cgroup_driver",
    title="kubelet and containerd use one cgroup driver",
    proves="One manager of cgroups: pods' limits hold, and nodes stay stable under memory pressure.",
    rule="cgroupDriver of the kubelet and SystemdCgroup of containerd's runc say the same. Kubelets from 1.34 with "
    "containerd from 2.0 ask containerd; there it is a warning.",
    source="Kubernetes documentation, container runtimes, cgroup drivers",
    fix="Set both to systemd: cgroupDriver of the kubelet, SystemdCgroup = true of runc in containerd's configuration.",
    avoid="Do not change the cgroup driver of a node with pods; drain it, and restart both services.",
    after=REACHED,
)
def cgroup_driver(one: Machine) -> Finding:
    """Cgroup drivers."""
    if not runs_containerd(one):
        return one.skip("it has no containerd that reads a configuration of its own")
    options = runc_options(one)
    if options is None:
        return one.unproven("NoDump", "containerd does not show its configuration")
    config = _config(one)
    runtime = "systemd" if options.get("SystemdCgroup") is True else "cgroupfs"
    kubelet = str(config.get("cgroupDriver"))
    if kubelet == runtime:
        return one.good(runtime)
    text = f"kubelet {kubelet}, containerd {runtime}"
    cause = "kubelet and containerd use different cgroup drivers"
    version = str(one.part("kubelet").get("version") or "")
    asks = parts(version)[:2] >= _ASKS_RUNTIME
    if asks and parts(str(one.part("containerd").get("version") or ""))[:2] >= _TELLS_DRIVER:
        return one.warn("DriverDiffers", cause, text, expected=kubelet, observed=runtime)
    return one.fail("DriverDiffers", cause, text, expected=kubelet, observed=runtime)


# -- inside -------------------------------------------------------------------------------------------------------


def _config(one: Machine) -> KubeletConfig:
    return kubelet_config.of(one)


def _compared(one: Machine, fields: Mapping[str, Any], reason: str, cause: str) -> Finding:
    config = _config(one)
    if config.running is None and config.embedded and not config.written:
        return one.unproven("NoKubelet", "no kubelet runs that could be asked")
    wrong = [
        f"{field} is {plain(config.get(field))}, not {plain(value)}"
        for field, value in fields.items()
        if not _same(value, config.get(field))
    ]
    if wrong:
        return one.fail(reason, cause, f"{'; '.join(wrong)} (by {config.source})")
    return one.good(f"{next(iter(fields.values()))}, by {config.source}")


def _same(wanted: Any, has: Any) -> bool:
    """Whether a value is as wanted; a table may hold more, and numbers may be text."""
    if isinstance(wanted, Mapping):
        return isinstance(has, Mapping) and all(_same(value, has.get(key)) for key, value in wanted.items())
    if isinstance(wanted, list) and isinstance(has, list):
        return len(wanted) == len(has) and all(_same(*pair) for pair in zip(wanted, has, strict=True))
    if str(wanted).lower() == str(has).lower():
        return True
    amount = _bytes(wanted)
    return amount is not None and amount == _bytes(has)


def _bytes(value: Any) -> int | None:
    """Bytes of an amount of memory, which kubelets write back in their own unit; None for anything else."""
    try:
        return quantity("", "", value) if re.search(r"\d[KMGT]i?$", str(value)) else None
    except InputError:
        return None


def _memory_sums(config: KubeletConfig) -> tuple[int, int | None]:
    """Bytes that Memory Manager reserves and those that it must; None where a threshold is in percent."""
    reserved = config.expected("reservedMemory")
    eviction = (config.expected("evictionHard") or {}).get("memory.available", _EVICTION_MEMORY)
    if str(eviction).endswith("%") or not isinstance(reserved, list):
        return 0, None
    has = sum(quantity("", "memory", one["limits"].get("memory", 0)) for one in reserved)
    shares = [(config.expected(key) or {}).get("memory", 0) for key in ("kubeReserved", "systemReserved")]
    return has, sum(quantity("", "memory", size) for size in (*shares, eviction))
