"""The machine below Kubernetes: modules, sysctl, limits, hugepages, swap, time, kernel packages, CPU governor."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator

from gpuready.charts_values import node_settings
from gpuready.charts_values.errors import RefusedError
from gpuready.charts_values.groups import Group
from gpuready.charts_values.node_settings import HUGEPAGES, NodeSettings

from .facts import NodeFacts
from .plan import HEADER, Disruption, File, Step, differs
from .systems import System

MODULES_FILE = "/etc/modules-load.d/90-gpuready.conf"
NOUVEAU_FILE = "/etc/modprobe.d/90-gpuready-nouveau.conf"
OPTIONS_FILE = "/etc/modprobe.d/91-gpuready-options.conf"
SYSCTL_FILE = "/etc/sysctl.d/90-gpuready.conf"
HUGEPAGES_FILE = "/etc/sysctl.d/91-gpuready-hugepages.conf"
FSTAB = "/etc/fstab"
DNF_CONF = "/etc/dnf/dnf.conf"
SWAP_UNIT = "/etc/systemd/system/gpuready-swap-off.service"
GOVERNOR_UNIT = "/etc/systemd/system/gpuready-cpu-governor.service"
LIMITS_FILE = "/etc/systemd/system/{unit}.service.d/90-gpuready.conf"
# What the plans below read of a node beside the probe's own parts.
FILES = (
    *(MODULES_FILE, NOUVEAU_FILE, OPTIONS_FILE, SYSCTL_FILE, HUGEPAGES_FILE),
    *(FSTAB, DNF_CONF, SWAP_UNIT, GOVERNOR_UNIT),
)
_SPARE_KIB = 1048576


def files(settings: NodeSettings, facts: NodeFacts, group: Group | None, ofed_owner: str) -> tuple[File, ...]:
    """The files that disturb nothing when they are written."""
    found = [
        File(MODULES_FILE, _lines(node_settings.modules(settings, group, ofed_owner))),
        File(NOUVEAU_FILE, _lines(["blacklist nouveau", "options nouveau modeset=0"])),
        File(SYSCTL_FILE, _lines(f"{key} = {value}" for key, value in sysctl(settings, facts, group).items())),
    ]
    if settings.module_options or facts.files.get(OPTIONS_FILE) is not None:
        # When it goes, it goes from the initial RAM disk, too.
        found.append(File(OPTIONS_FILE, _options(settings) if settings.module_options else None))
    if _swaps(settings, facts):
        found.append(File(SWAP_UNIT, boot_unit("Swap off, whatever turned it on", "/sbin/swapoff -a")))
        if (fstab := facts.files.get(FSTAB)) is not None:
            found.append(File(FSTAB, without_swap(fstab)))
    if facts.governors and settings.governor != "keep":
        every = "/sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
        script = f"for one in {every}; do echo {settings.governor} > $$one; done"
        found.append(File(GOVERNOR_UNIT, boot_unit("CPU frequency governor", f"/bin/sh -c '{script}'")))
    held_by_file = settings.hold_kernel and facts.package_manager == "dnf" and not facts.container
    if held_by_file and (text := facts.files.get(DNF_CONF)) is not None:
        found.append(File(DNF_CONF, without_kernels(text)))
    return tuple(found)


def steps(
    settings: NodeSettings, facts: NodeFacts, system: System, group: Group | None, ofed_owner: str
) -> tuple[Step, ...]:
    """The commands by which the files take effect at once, and those that need no file; raises RefusedError."""
    now = facts.files
    changed = {one.path for one in files(settings, facts, group, ofed_owner) if differs(one, now)}
    return tuple(
        one
        for one in (
            *_module_steps(node_settings.modules(settings, group, ofed_owner), facts),
            Step(
                "initial RAM disk",
                system.initramfs,
                bool({NOUVEAU_FILE, OPTIONS_FILE} & changed) and not facts.container,
            ),
            Step("sysctl", f"sysctl -q -p {SYSCTL_FILE}", SYSCTL_FILE in changed or _lags(settings, facts, group)),
            *_swap_steps(settings, facts, changed),
            *_governor_steps(settings, facts, changed),
            *_time_steps(settings, facts, system),
            *_hold_steps(settings, facts),
        )
    )


def sysctl(settings: NodeSettings, facts: NodeFacts, group: Group | None) -> dict[str, str]:
    """The kernel's settings on this machine: a higher value of its own stays where any is enough."""
    found = node_settings.sysctl(settings, group)
    if "kernel.numa_balancing" not in facts.sysctl and "kernel.numa_balancing" not in settings.sysctl:
        # A kernel without it refuses the whole file.
        del found["kernel.numa_balancing"]
    for key, least in node_settings.sysctl_least(settings).items():
        has = facts.sysctl.get(key, "")
        found[key] = str(max(least, int(has) if has.isdigit() else 0))
    return found


def disruption(settings: NodeSettings, facts: NodeFacts, platform: str, kubelet_unit: str) -> Disruption:
    """Limits of the daemons and hugepages: containers and the kubelet see them after a restart only."""
    units = (kubelet_unit,) if platform == "k3s" else node_settings.limited_units(platform)
    limits = node_settings.limits(settings)
    keys = {"memlock": "LimitMEMLOCK", "nofile": "LimitNOFILE", "tasks": "TasksMax"}
    content = _lines(["[Service]", *(f"{keys[key]}={value}" for key, value in sorted(limits.items()))])
    wanted = [File(LIMITS_FILE.format(unit=unit), content) for unit in units]
    changed = tuple(one for one in wanted if differs(one, facts.files))
    change = Disruption(unit=kubelet_unit)
    if changed:
        services = () if platform == "k3s" else ("containerd",)
        change += Disruption(reasons=tuple(f"limits: {one.path}" for one in changed), files=changed, services=services)
    # Those of 1Gi are to be had at boot only; they are kernel arguments.
    count = settings.hugepages.get("2Mi")
    wanted_file = File(HUGEPAGES_FILE, None if count is None else _lines([f"vm.nr_hugepages = {count}"]))
    has = facts.hugepages.get(HUGEPAGES["2Mi"], 0)
    if differs(wanted_file, facts.files) or (count is not None and has != count):
        place = f"/sys/kernel/mm/hugepages/hugepages-{HUGEPAGES['2Mi']}kB/nr_hugepages"
        change += Disruption(
            reasons=(f"hugepages: {has} -> {count or 0} of 2Mi",),
            files=(wanted_file,),
            # The kernel gives what it can without a word.
            commands=(f"echo {count or 0} > {place} && test $(cat {place}) = {count or 0}",),
            undo=(f"echo {has} > {place}",),
        )
    return change


def limits_files(kubelet_units: tuple[str, ...] = ("kubelet", "containerd", "k3s", "k3s-agent")) -> tuple[str, ...]:
    """The paths of the drop-ins with limits, for the probe."""
    return tuple(LIMITS_FILE.format(unit=unit) for unit in kubelet_units)


def check(settings: NodeSettings, facts: NodeFacts) -> Iterator[str]:
    """What is worth knowing, one line each; raises RefusedError for swap that does not fit into memory."""
    if _swaps(settings, facts) and facts.swaps and facts.swap_used_kib + _SPARE_KIB > facts.available_kib:
        raise RefusedError(
            f"node {facts.name}: {facts.swap_used_kib // 1024} MiB lie in swap and {facts.available_kib // 1024} MiB "
            "of "
            "memory are free; stop what uses it before swap is turned off"
        )
    pages = sum(HUGEPAGES[size] * count for size, count in settings.hugepages.items())
    if facts.memory_kib and 2 * pages > facts.memory_kib:
        raise RefusedError(
            f"node {facts.name}: `hugepages` take {pages / 2**20:.1f} of {facts.memory_kib / 2**20:.1f} GiB, "
            "more than half; pods cannot use them as memory, so give fewer"
        )
    waiting = [one for one in settings.module_options if one.replace("-", "_") in facts.modules]
    if waiting and facts.files.get(OPTIONS_FILE) != _options(settings):
        yield f"{facts.name}: `module_options` of {', '.join(waiting)} count when it is loaded again: at the next boot"
    if facts.cgroup == 1 and facts.kubelet.live.get("failCgroupV1") is not False:
        yield f"{facts.name}: cgroup version 1: kubelets from 1.35 on do not start there unless failCgroupV1 is false"


# -- inside -------------------------------------------------------------------------------------------------------


def without_swap(fstab: str) -> str:
    """The table of file systems with its swap lines commented out."""
    lines = []
    for line in fstab.splitlines():
        fields = line.split()
        swap = len(fields) > 2 and not line.lstrip().startswith("#") and fields[2] == "swap"
        lines.append(f"# off, by gpuready: {line}" if swap else line)
    return "\n".join(lines) + ("\n" if fstab.endswith("\n") else "")


def without_kernels(text: str) -> str:
    """dnf.conf with the kernel's packages left out of updates."""
    match = re.search(r"^(exclude(?:pkgs)?\s*=\s*)(.*)$", text, re.MULTILINE)
    if match is None:
        return text.rstrip("\n") + "\nexcludepkgs=kernel*\n"
    if "kernel*" in re.split(r"[,\s]+", match[2]):
        return text
    return text[: match.end()].rstrip() + " kernel*" + text[match.end() :]


def _options(settings: NodeSettings) -> str:
    return _lines(f"options {name} {text}" for name, text in sorted(settings.module_options.items()))


def _lags(settings: NodeSettings, facts: NodeFacts, group: Group | None) -> bool:
    """Whether a value that the probe reads is not yet what the file says."""
    return any(
        facts.sysctl[key].split() != value.split()
        for key, value in sysctl(settings, facts, group).items()
        if key in facts.sysctl
    )


def _module_steps(names: tuple[str, ...], facts: NodeFacts) -> Iterator[Step]:
    # Those built into the kernel are in no list, and modprobe says yes to them.
    absent = [name for name in names if name.replace("-", "_") not in facts.modules and name != "overlay"]
    if absent and not facts.container:
        yield Step("modules", f"modprobe -a {' '.join(map(shlex.quote, absent))}")


def _swaps(settings: NodeSettings, facts: NodeFacts) -> bool:
    """Whether swap is to be turned off here, now or at boot. A container's swap is its host's."""
    if settings.swap != "off" or facts.container:
        return False
    fstab = facts.files.get(FSTAB) or ""
    return bool(facts.swaps) or without_swap(fstab) != fstab or facts.files.get(SWAP_UNIT) is not None


def _swap_steps(settings: NodeSettings, facts: NodeFacts, changed: set[str]) -> Iterator[Step]:
    if _swaps(settings, facts):
        unit = SWAP_UNIT.rpartition("/")[2]
        needed = bool(facts.swaps) or SWAP_UNIT in changed or not facts.enabled(unit.removesuffix(".service"))
        yield Step("swap off", f"systemctl daemon-reload && systemctl enable -q {unit} && swapoff -a", needed)


def _governor_steps(settings: NodeSettings, facts: NodeFacts, changed: set[str]) -> Iterator[Step]:
    if facts.governors and settings.governor != "keep":
        unit = GOVERNOR_UNIT.rpartition("/")[2]
        needed = (
            set(facts.governors) != {settings.governor}
            or GOVERNOR_UNIT in changed
            or not facts.enabled(unit.removesuffix(".service"))
        )
        command = f"systemctl daemon-reload && systemctl enable -q {unit} && systemctl restart {unit}"
        yield Step("CPU governor", command, needed)


def _time_steps(settings: NodeSettings, facts: NodeFacts, system: System) -> Iterator[Step]:
    if not settings.time_sync or facts.container or any(facts.active(one) for one in system.time_units):
        return
    there = [one for one in system.time_units if facts.units.get(one, {}).get("load") == "loaded"]
    start = f"systemctl enable -q --now {there[0] if there else system.chrony}.service"
    if there:
        yield Step("time synchronisation", start)
    elif not facts.synchronized:
        yield Step("time synchronisation", f"{system.install.format(package='chrony')} && {start}")


def _hold_steps(settings: NodeSettings, facts: NodeFacts) -> Iterator[Step]:
    if settings.hold_kernel and facts.package_manager == "apt" and not facts.container:
        free = sorted(set(facts.kernels) - set(facts.held))
        if free:
            yield Step("kernel held", f"apt-mark hold {' '.join(map(shlex.quote, free))}")


def boot_unit(title: str, command: str) -> str:
    """A unit that runs once at each boot, before pods start."""
    return _lines(
        [
            "[Unit]",
            f"Description={title} (gpuready)",
            "Before=containerd.service kubelet.service k3s.service k3s-agent.service",
            "After=local-fs.target swap.target",
            "",
            "[Service]",
            "Type=oneshot",
            "RemainAfterExit=yes",
            f"ExecStart={command}",
            "",
            "[Install]",
            "WantedBy=multi-user.target",
        ]
    )


def _lines(lines: Iterable[str]) -> str:
    return "\n".join([HEADER, *lines]) + "\n"
