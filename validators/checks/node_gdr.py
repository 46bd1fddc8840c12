"""The driver that runs on a machine: the promised version, its fabric manager, a way for GPUDirect RDMA."""

from __future__ import annotations

from ..machines import Machine, machine_check
from ..model import Finding
from .node_access import REACHED
from .node_driver import NO_GPU, has_gpus
from .subjects import MACHINE

_NVSWITCH = "0x0680"


@machine_check(
    "node.driver_version",
    title="the promised driver is loaded",
    proves="The kernel runs the driver that inventory names, not the one before.",
    rule="/sys/module/nvidia/version is `driver_version` of inventory.",
    source="Linux kernel documentation, sysfs-module: version",
    fix="Look at the driver's pod on the node (or the host's package); an old one stays until no process uses it.",
    avoid="Do not unload a driver under running GPU pods.",
    after=(*REACHED, *MACHINE, "gpu.operands"),
)
def driver_version(one: Machine) -> Finding:
    """Loaded driver."""
    if one.settings is None or not has_gpus(one):
        return one.skip(NO_GPU if one.settings else "no inventory names a driver")
    loaded, wanted = one.part("driver")["nvidia"], one.cluster.driver_version
    if not loaded:
        return one.fail("NotLoaded", "the NVIDIA driver is not loaded", expected=wanted, observed="none")
    if loaded != wanted:
        cause = "another NVIDIA driver is loaded than promised"
        return one.fail("VersionDiffers", cause, f"{loaded}, not {wanted}", expected=wanted, observed=loaded)
    return one.good(loaded)


@machine_check(
    "node.fabric_manager",
    title="NVSwitch has a fabric manager of the driver's version",
    proves="CUDA starts on machines with NVSwitches.",
    rule="Where the host owns the driver and the machine has NVSwitches, nvidia-fabricmanager runs, in exactly the "
    "version of the loaded driver. The operator's driver brings its own.",
    source="NVIDIA Fabric Manager user guide",
    fix="Install nvidia-fabricmanager in the driver's version, and enable it; CUDA error 802 goes once it runs.",
    after=(*REACHED, "node.driver_version"),
)
def fabric_manager(one: Machine) -> Finding:
    """Fabric manager."""
    driver = one.part("driver")
    on_bus = sum(device["vendor"] == "0x10de" and device["class"].startswith(_NVSWITCH) for device in one.part("pci"))
    if not (driver["nvswitches"] or on_bus):
        return one.skip("it has no NVSwitch")
    manager = driver["fabric_manager"]
    if not driver["on_host"] and (one.settings is None or one.cluster.driver_owner == "operator"):
        return one.skip("the operator's driver brings its fabric manager")
    if manager["version"] and driver["nvidia"] and manager["version"] != driver["nvidia"]:
        text = f"fabric manager {manager['version']}, driver {driver['nvidia']}"
        cause = "fabric manager and driver are of different versions"
        return one.fail("VersionsDiffer", cause, text, expected=driver["nvidia"], observed=manager["version"])
    if manager["active"] != "active":
        cause = "NVSwitches without a running fabric manager"
        return one.fail("NotRunning", cause, expected="active", observed=str(manager["active"] or "not installed"))
    return one.good(manager["version"] or "running")


@machine_check(
    "node.gdr",
    title="GPUDirect RDMA has a way on the machine",
    proves="NICs can reach GPU memory: by DMA-BUF or nvidia_peermem.",
    rule="Where the group has RDMA and the driver is loaded: nvidia_peermem is loaded, or the open kernel module with "
    "DMA-BUF in the kernel's RDMA stack (ib_umem_dmabuf_get).",
    source="GPU Operator documentation, GPUDirect RDMA",
    fix="Prefer open kernel modules (driver.kernelModuleType) on kernel 5.12 or newer; else driver.rdma.enabled=true.",
    after=(*REACHED, "node.driver_version", "node.modules"),
)
def gdr(one: Machine) -> Finding:
    """Ways of GPUDirect RDMA."""
    if one.group is None or one.group.rdma == "none" or not one.group.gpus:
        return one.skip("inventory promises no GPUs with RDMA here")
    driver = one.part("driver")
    if not driver["nvidia"]:
        return one.unproven("NoDriver", "without a loaded driver it cannot be told")
    if driver["peermem"]:
        return one.good("nvidia_peermem")
    if driver["open"] and driver["dmabuf"]:
        return one.good("DMA-BUF")
    if driver["open"] and driver["dmabuf"] is None:
        return one.unproven("DmabufNotShown", "the kernel's symbols do not tell whether it has DMA-BUF for RDMA")
    text = f"open kernel module: {driver['open']}, DMA-BUF: {driver['dmabuf']}, nvidia_peermem: no"
    return one.fail("NoWay", "GPUDirect RDMA has no way: neither DMA-BUF nor nvidia_peermem", text)
