"""What is decided before the kernel runs, or below it: kernel arguments, PCIe ACS, the driver's owner, firmware."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from gpuready.charts_values.errors import RefusedError
from gpuready.charts_values.node_settings import NodeSettings
from gpuready.charts_values.pci import Link

from .facts import NodeFacts
from .machine import boot_unit
from .plan import HEADER, Disruption, File, Step, differs
from .systems import System

ACS_SCRIPT = "/usr/local/sbin/gpuready-acs-off"
ACS_UNIT = "/etc/systemd/system/gpuready-acs.service"
GRUB_DROP_IN = "/etc/default/grub.d/90-gpuready.cfg"
# Where boot entries take the arguments: those that are gpuready's, so that they can go again.
ARGUMENTS = "/etc/gpuready/kernel-arguments"
FILES = (ACS_SCRIPT, ACS_UNIT, GRUB_DROP_IN, ARGUMENTS, "/etc/default/grub")
# Source validation and the redirects of requests, completions and upstream forwarding send peer traffic to the root.
REDIRECTS = 0x01 | 0x04 | 0x08 | 0x10
_BRIDGE = "0x0604"
_NETWORK = "0x02"
_NVSWITCH = "0x0680"
# By this label the GPU Operator gives a node's GPUs to virtual machines.
_WORKLOAD = "nvidia.com/gpu.workload.config"


def acs_files(settings: NodeSettings) -> tuple[File, ...]:
    """Script and unit that turn ACS off at each boot; the firmware turns it on again."""
    if settings.acs != "off":
        return ()
    script = [
        "#!/bin/sh",
        HEADER,
        "# Turns PCIe ACS off on every bridge that has it, so that GPUs and NICs reach each other directly.",
        "for path in /sys/bus/pci/devices/*; do",
        '    case "$(cat "$path/class")" in 0x0604*) ;; *) continue ;; esac',
        '    device="${path##*/}"',
        "    # A bridge without the capability is none of ours.",
        '    setpci -s "$device" ECAP_ACS+0x6.w > /dev/null 2>&1 || continue',
        '    setpci -s "$device" ECAP_ACS+0x6.w=0000 || exit 1',
        "done",
    ]
    return (File(ACS_SCRIPT, "\n".join(script) + "\n", "755"), File(ACS_UNIT, boot_unit("PCIe ACS off", ACS_SCRIPT)))


def acs_steps(settings: NodeSettings, facts: NodeFacts, system: System) -> tuple[Step, ...]:
    """The tool that the script needs, and the unit enabled; it starts with the next boot, or in a rollout."""
    if settings.acs != "off":
        return ()
    changed = any(differs(one, facts.files) for one in acs_files(settings))
    return (
        Step("setpci for PCIe ACS", system.install.format(package="pciutils"), "pciutils" not in facts.versions),
        Step(
            "PCIe ACS off at each boot",
            "systemctl daemon-reload && systemctl enable -q gpuready-acs.service",
            changed or not facts.enabled("gpuready-acs"),
        ),
    )


def acs(settings: NodeSettings, facts: NodeFacts, sandbox: str = "") -> Disruption:
    """ACS turned off now, where a bridge redirects peer traffic; raises RefusedError where it must stay on.

    ``sandbox`` is what gives the node's GPUs to virtual machines, as ``sandboxed`` finds it.
    """
    if settings.acs != "off":
        return Disruption()
    where = f"node {facts.name}: `acs` off"
    if facts.virtual:
        raise RefusedError(
            f"{where} does not work in a virtual machine ({facts.virtualization}), whose isolation needs ACS; set "
            "`acs` to "
            "keep, and have ATS enabled on the NICs by the host (ATS_ENABLED in their firmware)"
        )
    passed = [str(one["address"]) for one in facts.pci if one.get("driver") == "vfio-pci"]
    if passed:
        raise RefusedError(
            f"{where} would take the isolation from device {passed[0]}, which is passed to a virtual machine "
            "(vfio-pci); "
            "set `acs` to keep on this node"
        )
    if sandbox:
        raise RefusedError(
            f"{where} would take the isolation from the virtual machines that get its GPUs ({sandbox}); set `acs` to "
            "keep on this node"
        )
    on = redirecting(facts)
    if not on:
        return Disruption()
    return Disruption(
        reasons=(f"PCIe ACS: off on {len(on)} bridges, first {on[0]}",),
        commands=("systemctl restart gpuready-acs.service",),
        undo=("true",),
    )


def sandboxed(values: Mapping[str, Any], node: Mapping[str, Any] | None) -> str:
    """What gives a node's GPUs to virtual machines; empty where containers get them.

    ``values`` are those of the GPU Operator, ``node`` is the node's object.
    """
    label = ((node or {}).get("metadata", {}).get("labels") or {}).get(_WORKLOAD)
    if label:
        return "" if label == "container" else f"label {_WORKLOAD}={label}"
    table = values.get("sandboxWorkloads") or {}
    usual = table.get("defaultWorkload", "container")
    return f"sandboxWorkloads.defaultWorkload {usual}" if table.get("enabled") and usual != "container" else ""


def redirecting(facts: NodeFacts) -> list[str]:
    """The bridges that send traffic between GPUs and NICs up to the root complex."""
    return [
        str(one["address"])
        for one in facts.pci
        if str(one.get("class", "")).startswith(_BRIDGE) and ((one.get("acs") or {}).get("control") or 0) & REDIRECTS
    ]


def kernel_arguments(settings: NodeSettings, facts: NodeFacts, system: System) -> Disruption:
    """The kernel's arguments, and one reboot where they are not those of the running kernel; raises RefusedError."""
    wanted = list(settings.kernel_arguments)
    if count := settings.hugepages.get("1Gi"):
        wanted += ["hugepagesz=1G", f"hugepages={count}"]
    running = facts.cmdline.split()
    lacking = [one for one in wanted if one not in running]
    if system.grub_drop_in:
        file = File(GRUB_DROP_IN, _grub(wanted))
        change, command, undo = differs(file, facts.files), system.grub_update, ""
    else:
        keys = [one.partition("=")[0] for one in wanted]
        if twice := sorted({key for key in keys if keys.count(key) > 1}):
            raise RefusedError(
                f"node {facts.name}: kernel argument {twice[0]} is wanted twice, and boot entries take each once; give "
                "it once in `kernel_arguments` and `hugepages`"
            )
        before = (facts.files.get(ARGUMENTS) or HEADER).splitlines()[1:]
        gone = [one for one in before if one not in wanted]
        # A new value takes the place of what the machine came with.
        lost = [one for one in running if one not in wanted and one.partition("=")[0] in keys and one not in gone]
        # Those that somebody else gave are not ours to take away.
        ours = [one for one in wanted if one in before or one in lacking]
        file = File(ARGUMENTS, "\n".join([HEADER, *ours]) + "\n" if ours else None)
        change = bool(gone)
        command, undo = _entries(system, lacking, gone), _entries(system, [*gone, *lost], lacking)
    if not change and not lacking:
        return Disruption()
    _bootable(facts)
    said = " ".join(lacking) if lacking else "those that inventory no longer names go"
    return Disruption(
        reasons=(f"kernel arguments: {said} (one reboot)",),
        files=(file,),
        commands=(command,),
        undo=(undo,) if undo else (),
        reboot=True,
        proofs=tuple(f"tr ' ' '\\n' < /proc/cmdline | grep -qxF -- {shlex.quote(one)}" for one in wanted),
    )


def nouveau(facts: NodeFacts) -> Disruption:
    """A reboot where nouveau holds the GPUs; its file keeps it away from then on."""
    if "nouveau" not in facts.modules or facts.container:
        return Disruption()
    return Disruption(
        reasons=("nouveau is loaded (one reboot)",), reboot=True, proofs=("! grep -q '^nouveau ' /proc/modules",)
    )


def check_driver(facts: NodeFacts, owner: str, version: str) -> Iterator[str]:
    """One owner of the driver; the fabric manager is of its version. Notes; raises RefusedError."""
    if not facts.gpus:
        return
    where, driver = f"node {facts.name}", facts.driver
    if owner == "operator" and driver.get("on_host"):
        raise RefusedError(
            f"{where}: a driver is installed on the host, and `driver_owner` is operator; remove the host's driver, "
            "or set "
            "`driver_owner` to host"
        )
    if owner == "operator":
        if facts.secure_boot:
            yield (
                f"{facts.name}: Secure Boot is on: a driver built in its container does not load; use precompiled, "
                "signed "
                "drivers or turn it off"
            )
        return
    loaded = str(driver.get("nvidia") or "")
    if not driver.get("on_host"):
        raise RefusedError(
            f"{where}: `driver_owner` is host, and no driver is installed there; install {version}, or set it to "
            "operator"
        )
    if loaded and loaded != version:
        yield (
            f"{facts.name}: driver {loaded} is loaded, inventory names {version}; the host owns it, so correct one "
            "of both"
        )
    switches = driver.get("nvswitches") or sum(str(one.get("class", "")).startswith(_NVSWITCH) for one in facts.pci)
    if switches:
        manager = driver.get("fabric_manager") or {}
        if manager.get("version") and loaded and manager["version"] != loaded:
            raise RefusedError(
                f"{where}: fabric manager {manager['version']} and driver {loaded} differ, and NVSwitch takes only "
                "the same "
                f"version; install nvidia-fabricmanager {loaded}"
            )
        if manager.get("active") != "active":
            yield (
                f"{facts.name}: it has NVSwitches and no running fabric manager: CUDA does not start (error 802); "
                f"install and enable nvidia-fabricmanager {loaded or version}"
            )


def check_iommu(facts: NodeFacts) -> Iterator[str]:
    """What the IOMMU means for GPUDirect RDMA; a note, since it is another's to decide."""
    kinds = {one.get("iommu_type") for one in facts.gpus}
    if not facts.virtual and any(str(kind).startswith("DMA") for kind in kinds):
        yield (
            f"{facts.name}: the IOMMU translates the GPUs' DMA, which slows GPUDirect RDMA or makes it fail; "
            "kernel argument iommu=pt (or the IOMMU off) is usual on bare metal without virtual machines"
        )
    on = redirecting(facts)
    if on and not facts.virtual:
        yield f"{facts.name}: PCIe ACS sends peer traffic to the root on {len(on)} bridges; `acs` off changes that"


def check_links(facts: NodeFacts) -> Iterator[str]:
    """Links of GPUs and NICs below what both ends can do; a note, since it takes hands."""
    ports = {str(one.get("address")): one for one in facts.pci}
    nics = tuple(one for one in facts.pci if str(one.get("class")).startswith(_NETWORK))
    slow = []
    for device in (*facts.gpus, *nics):
        # In a virtual machine the port above is not the real one.
        bridges = [] if facts.virtual else device.get("bridges") or []
        link = Link.of(device, ports.get(bridges[-1], {}) if bridges else {})
        if lacks := link.shortfall(idles=device not in nics):
            slow.append(f"{device['address']} {lacks}")
    if slow:
        yield (
            f"{facts.name}: PCIe link of {', '.join(slow)}: transfers are slower by as much, and a job is as fast as "
            "its slowest GPU or NIC; reseat the board, or look at its slot in the firmware"
        )


def _grub(arguments: list[str]) -> str | None:
    return f'{HEADER}\nGRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX {" ".join(arguments)}"\n' if arguments else None


def _entries(system: System, more: list[str], less: list[str]) -> str:
    """The command that gives arguments to each boot entry, and takes others away."""
    changes = [
        f"--{key}={shlex.quote(' '.join(them))}" for key, them in (("args", more), ("remove-args", less)) if them
    ]
    return " ".join([system.grub_update, *changes])


def _bootable(facts: NodeFacts) -> None:
    if facts.container:
        raise RefusedError(
            f"node {facts.name}: it is a container ({facts.container}) without kernel arguments of its own"
        )
    if facts.files.get("/etc/default/grub") is None:
        raise RefusedError(
            f"node {facts.name}: it does not boot by GRUB (no /etc/default/grub); set `kernel_arguments` by its own "
            "means "
            "and take them out of inventory"
        )
