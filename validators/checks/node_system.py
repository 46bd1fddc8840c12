"""The system below Kubernetes: modules, sysctl, limits, hugepages, swap, time, kernel."""

from __future__ import annotations

from gpuready.charts_values import node_settings
from gpuready.charts_values.node_settings import HUGEPAGES, SYSCTL_LEAST

from ..machines import FILESYSTEMS, FSTAB, MODULES_FILE, Machine, machine_check
from ..model import Finding
from .node_access import REACHED

_UNLIMITED = ("infinity", "18446744073709551615")
_SHARED = "a container has its host's, which is not its own to promise"
_NOTHING = "no inventory says what is promised here"
_PREPARE = "pyinfra inventory deploys/gpu.py sets it; what disturbs pods only under `maintenance`."


@machine_check(
    "node.modules",
    title="promised kernel modules are loaded, and will be after a boot",
    proves="Containers, RDMA and what inventory names find their kernel modules.",
    rule="overlay, with RDMA ib_core, ib_uverbs, mlx5_ib, rdma_cm, rdma_ucm (and ib_umad for InfiniBand) unless the "
    "operator owns OFED, and each of `modules` are loaded; gpuready's file in modules-load.d, where there is one, "
    "names them all.",
    source="Linux kernel documentation, InfiniBand, userspace verbs access",
    fix=f"modprobe MODULE; {_PREPARE}",
    after=REACHED,
)
def modules(one: Machine) -> Finding:
    """Modules, now and at boot."""
    if one.settings is None:
        return one.skip(_NOTHING)
    promised = node_settings.modules(one.settings, one.group, one.cluster.ofed_owner)
    wanted = list(dict.fromkeys(name.replace("-", "_") for name in promised))
    loaded = set(one.part("modules"))
    # Built into the kernel it is in no list of modules.
    if "\toverlay" in (one.file(FILESYSTEMS) or ""):
        loaded.add("overlay")
    absent = [name for name in wanted if name not in loaded]
    if absent and not one.container:
        text = ", ".join(absent)
        return one.fail("ModuleAbsent", "promised kernel modules are not loaded", text, expected=", ".join(wanted))
    named = one.file(MODULES_FILE)
    forgotten = [name for name in wanted if named is not None and name not in named.replace("-", "_").split()]
    if forgotten:
        text = f"{MODULES_FILE} does not name {', '.join(forgotten)}"
        return one.warn("ModuleForgotten", "promised kernel modules would not come back after a boot", text)
    return one.good(", ".join(wanted))


@machine_check(
    "node.sysctl",
    title="the kernel's settings are as promised",
    proves="Pods are routed, rails answer for themselves, and the kernel does not move their memory about.",
    rule="net.ipv4.ip_forward is 1 and kernel.numa_balancing 0; with RoCE arp_ignore 1, arp_announce 2 and rp_filter "
    "2 for all; `sysctl` of inventory wins. Of a container only net.* is judged.",
    source="Linux kernel documentation, ip-sysctl",
    fix=f"sysctl -w NAME=VALUE; look for the file that says otherwise: grep -r NAME /etc/sysctl.d; {_PREPARE}",
    after=REACHED,
)
def sysctl(one: Machine) -> Finding:
    """Sysctl, now."""
    if one.settings is None:
        return one.skip(_NOTHING)
    wanted = node_settings.sysctl(one.settings, one.group)
    seen = one.part("sysctl")
    judged = {
        key: value
        for key, value in wanted.items()
        if key not in SYSCTL_LEAST and (not one.container or key.startswith("net."))
    }
    wrong = [
        f"{key} is {seen[key]}, not {value}"
        for key, value in judged.items()
        if seen.get(key) is not None and seen[key].split() != value.split()
    ]
    if wrong:
        return one.fail("SysctlDiffers", "a kernel setting differs from what is promised", "; ".join(wrong))
    hidden = [key for key in judged if key in one.settings.sysctl and seen.get(key) is None]
    if hidden:
        return one.unproven("SysctlNotShown", "the probe does not read a promised kernel setting", ", ".join(hidden))
    return one.good(f"{len(judged)} settings")


@machine_check(
    "node.inotify",
    title="there are enough inotify instances and watches",
    proves="Operators and log readers do not end with `too many open files`.",
    rule="fs.inotify.max_user_instances is at least 8192 and max_user_watches 524288, or what `sysctl` of inventory "
    "says.",
    source="inotify(7)",
    fix=f"sysctl -w fs.inotify.max_user_instances=8192 fs.inotify.max_user_watches=524288; {_PREPARE}",
    after=REACHED,
)
def inotify(one: Machine) -> Finding:
    """Limits of inotify."""
    if one.container or one.settings is None:
        return one.skip(_SHARED if one.container else _NOTHING)
    seen = one.part("sysctl")
    wanted = {key: int(one.settings.sysctl.get(key, least)) for key, least in SYSCTL_LEAST.items()}
    low = [f"{key} is {seen[key]}, not {least}" for key, least in wanted.items() if int(seen[key]) < least]
    if low:
        return one.fail("InotifyLow", "too few inotify instances or watches", "; ".join(low))
    return one.good(", ".join(f"{key.rpartition('_')[2]} {seen[key]}" for key in wanted))


@machine_check(
    "node.limits",
    title="kubelet and containerd have the promised limits",
    proves="RDMA can pin memory in containers, which have their runtime's limits.",
    rule="LimitMEMLOCK of containerd and of the kubelet (of k3s there) is infinity, or what `limits` of inventory "
    "says; LimitNOFILE and TasksMax where it says so. It is what systemd will give at the next start.",
    source="systemd.exec(5)",
    fix=f"systemctl cat UNIT shows who sets it; {_PREPARE}",
    avoid="Do not restart containerd or a kubelet under running jobs; drain the node.",
    after=REACHED,
)
def limits(one: Machine) -> Finding:
    """Limits of units."""
    if one.settings is None:
        return one.skip(_NOTHING)
    wanted = node_settings.limits(one.settings)
    units = one.part("units")
    there = [name for name in node_settings.limited_units(one.cluster.platform) if name in units]
    if not there:
        return one.unproven("NoUnits", "systemd knows neither the kubelet nor its container runtime")
    keys = {"memlock": "memlock", "nofile": "nofile", "tasks": "tasks_max"}
    wrong = []
    for name in there:
        for key, value in wanted.items():
            has = units[name].get(keys[key])
            if not (has == value or (has in _UNLIMITED and value in _UNLIMITED)):
                wrong.append(f"{name}: {key} is {has}, not {value}")
    if wrong:
        return one.fail("LimitDiffers", "a service has another limit than promised", "; ".join(wrong))
    return one.good(", ".join(f"{key} {value}" for key, value in wanted.items()))


@machine_check(
    "node.hugepages",
    title="hugepages are as promised",
    proves="Pods that ask for hugepages find them.",
    rule="nr_hugepages of each size is what `hugepages` of inventory says.",
    source="Linux kernel documentation, hugetlbpage",
    fix=f"Memory may be too scattered for them until the next boot; {_PREPARE}",
    after=REACHED,
)
def hugepages(one: Machine) -> Finding:
    """Hugepages."""
    if one.settings is None or not one.settings.hugepages:
        return one.skip("inventory promises no hugepages")
    seen = one.part("memory")["hugepages"]
    wrong = []
    for size, count in one.settings.hugepages.items():
        has = (seen.get(str(HUGEPAGES[size])) or {}).get("count", 0)
        if has != count:
            wrong.append(f"{has} of {count} pages of {size}")
    if wrong:
        return one.fail("HugepagesDiffer", "hugepages differ from what is promised", "; ".join(wrong))
    return one.good()


@machine_check(
    "node.swap",
    title="swap is off, and stays off",
    proves="A kubelet starts, and memory of pods does not go to disk.",
    rule="No swap device is in use and /etc/fstab names none, unless `swap` of inventory is keep. Of a container "
    "only its fstab is judged.",
    source="Kubernetes documentation, swap memory management",
    fix=f"swapoff -a, and comment the line in /etc/fstab; {_PREPARE}",
    avoid="Do not turn swap off while more lies in it than memory is free.",
    after=REACHED,
)
def swap(one: Machine) -> Finding:
    """Swap, now and at boot."""
    if one.settings is None or one.settings.swap == "keep":
        return one.skip(_NOTHING if one.settings is None else "inventory keeps swap as it is")
    swaps = [] if one.container else one.part("memory")["swaps"]
    if swaps:
        text = ", ".join(f"{each['device']} of {each['size_kib'] // 1024} MiB" for each in swaps)
        return one.fail("SwapOn", "swap is on", text, expected="none", observed=text)
    lines = [line for line in (one.file(FSTAB) or "").splitlines() if not line.lstrip().startswith("#")]
    named = [line for line in lines if len(line.split()) > 2 and line.split()[2] == "swap"]
    if named:
        return one.warn("SwapAtBoot", "swap would be back after a boot", f"{FSTAB}: {named[0].strip()}")
    return one.good("off")


@machine_check(
    "node.time",
    title="the clock is synchronised",
    proves="Certificates are valid, leases hold, and logs of several nodes can be put side by side.",
    rule="systemd says NTPSynchronized, unless `time_sync` of inventory is False. Containers have their host's clock.",
    source="timedatectl(1)",
    fix="timedatectl timesync-status, or chronyc tracking; then the way to its time servers (UDP 123).",
    after=REACHED,
)
def time(one: Machine) -> Finding:
    """Clocks."""
    if one.container or one.settings is None or not one.settings.time_sync:
        return one.skip(_SHARED if one.container else "inventory promises no time synchronisation")
    synchronized = one.part("time").get("synchronized")
    names = ("systemd-timesyncd", "chrony", "chronyd", "ntpd")
    active = [name for name in names if (one.part("units").get(name) or {}).get("active") == "active"]
    if synchronized is None:
        return one.unproven("ClockNotShown", "the node does not say whether its clock is synchronised")
    if not synchronized:
        text = f"{active[0]} runs and has not synchronised" if active else "no time service runs"
        return one.fail("ClockFree", "clock is not synchronised", text)
    return one.good(active[0] if active else "synchronised")


@machine_check(
    "node.governor",
    title="CPUs run under the promised governor",
    proves="CPUs that feed GPUs do not clock down between bursts.",
    rule="Every CPU's frequency governor is `governor` of inventory (performance by default), where the machine has "
    "governors: virtual machines have none.",
    source="Linux kernel documentation, cpufreq",
    fix=f"cpupower frequency-set -g performance; {_PREPARE}",
    after=REACHED,
)
def governor(one: Machine) -> Finding:
    """Governors."""
    governors = one.part("cpu")["governors"]
    if one.settings is None or one.settings.governor == "keep" or one.container or not governors:
        return one.skip("no governor is promised, or the machine has none")
    if set(governors) != {one.settings.governor}:
        text = ", ".join(f"{count} CPUs {name}" for name, count in sorted(governors.items()))
        cause = "CPUs run under another governor than promised"
        return one.warn("GovernorDiffers", cause, text, expected=one.settings.governor)
    return one.good(one.settings.governor)


@machine_check(
    "node.kernel_held",
    title="the kernel does not change by itself",
    proves="No automatic upgrade takes away the kernel that the driver was built for.",
    rule="Every installed kernel package is held (apt), or updates leave kernel* out (dnf), unless `hold_kernel` of "
    "inventory is False.",
    source="apt-mark(8), dnf.conf(5)",
    fix=f"apt-mark hold $(dpkg-query -W -f '${{Package}}\\n' 'linux-image-*'); {_PREPARE}",
    after=REACHED,
)
def kernel_held(one: Machine) -> Finding:
    """Held kernels."""
    if one.container or one.settings is None or not one.settings.hold_kernel:
        return one.skip(_SHARED if one.container else "inventory does not hold the kernel")
    packages = one.part("packages")
    held, kernels = set(packages["held"]), set(packages.get("kernels") or ())
    if packages["manager"] is None or (packages["manager"] == "apt" and not kernels):
        return one.unproven("KernelNotShown", "the probe knows no kernel package of this system")
    free = sorted(kernels - held) if packages["manager"] == "apt" else ([] if "kernel*" in held else sorted(kernels))
    if free:
        return one.warn("KernelFree", "the kernel may be upgraded without anybody's asking", ", ".join(free))
    return one.good(f"kernel {one.part('os')['kernel']}")


@machine_check(
    "node.kernel_arguments",
    title="the kernel runs with the promised arguments",
    proves="What inventory asks of the boot has come true, and was not only written down.",
    rule="Each of `kernel_arguments` of inventory is on the running kernel's command line.",
    source="Linux kernel documentation, kernel-parameters",
    fix=f"It takes a boot: {_PREPARE}",
    after=REACHED,
)
def kernel_arguments(one: Machine) -> Finding:
    """The command line."""
    if one.container or one.settings is None or not one.settings.kernel_arguments:
        return one.skip(_SHARED if one.container else "inventory asks for no kernel arguments")
    running = (one.part("os")["cmdline"] or "").split()
    lacking = [argument for argument in one.settings.kernel_arguments if argument not in running]
    if lacking:
        return one.fail("ArgumentAbsent", "the kernel runs without promised arguments", " ".join(lacking))
    return one.good(" ".join(one.settings.kernel_arguments))
