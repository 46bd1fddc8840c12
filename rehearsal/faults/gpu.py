"""Faults of GPUs and of the GPU Operator's operands."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from ..fleet import Hardware, Trouble
from .edits import Edit, patch
from .model import Fault, Need, Site

_DEVICE_PLUGIN = "nvidia.com/gpu.deploy.device-plugin"
_DIFFERENT_DRIVER = "580.105.08"
_PRODUCTS = ("NVIDIA H200", "NVIDIA H100 80GB HBM3")


def _lose_gpu(truth: Hardware) -> Hardware:
    return dataclasses.replace(truth, gpus=truth.gpus[:-1])


def _change_product(truth: Hardware) -> Hardware:
    return dataclasses.replace(truth, product=next(one for one in _PRODUCTS if one != truth.product))


def _change_driver(truth: Hardware) -> Hardware:
    return dataclasses.replace(truth, host_driver=_DIFFERENT_DRIVER)


def _trouble(operand: str, trouble: Trouble) -> Callable[[Hardware], Hardware]:
    return lambda truth: truth.with_trouble({f"gpu.{operand}": trouble})


def _switch_off(site: Site) -> list[Edit]:
    path = f"/api/v1/nodes/{site.node}"
    before = site.get(path)
    return [patch(path, {"metadata": {"labels": {_DEVICE_PLUGIN: "false"}}}, before)]


def _broken(name: str, operand: str, what: str, message: str, *follows: str, needs: tuple[Need, ...] = ()) -> Fault:
    """One operand whose pod crashes on one node."""
    return Fault(
        name=name,
        title=f"one node's {what} crashes",
        breaks=f"its pod on the node is in CrashLoopBackOff: {message}",
        finding="gpu.operands",
        follows=("gpu.policy", *follows),
        needs=needs,
        truth=_trouble(operand, Trouble("crash", message)),
    )


FAULTS = (
    Fault(
        name="gpu-missing",
        title="one node offers one GPU fewer",
        breaks="the last GPU of the node is gone from the PCI bus: driver, device plugin, feature discovery "
        "and nvidia-smi count one fewer",
        finding="gpu.allocatable",
        truth=_lose_gpu,
    ),
    Fault(
        name="product-mismatch",
        title="one node has other GPUs than promised",
        breaks="another product sits in the node: feature discovery and nvidia-smi say so",
        finding="gpu.product",
        truth=_change_product,
    ),
    _broken(
        "driver-missing",
        "driver",
        "driver",
        "Could not resolve Linux kernel version: no kernel headers for the running kernel",
        "gpu.allocatable",
        needs=("driver",),
    ),
    Fault(
        name="driver-differs",
        title="one node runs another driver version",
        breaks=f"driver {_DIFFERENT_DRIVER} is installed on the host of the node, and wins over the promised one",
        finding="versions.driver",
        truth=_change_driver,
    ),
    _broken(
        "toolkit-broken",
        "toolkit",
        "container toolkit",
        "unable to restart containerd: config version 2 does not match the drop-in's version 3",
        "gpu.allocatable",
    ),
    _broken(
        "device-plugin-broken",
        "devicePlugin",
        "device plugin",
        "failed to create FS watcher: too many open files",
        "gpu.allocatable",
        needs=("device-plugin",),
    ),
    _broken(
        "validator-broken",
        "validator",
        "operator validator",
        "cuda workload validation failed: CUDA error 802, system not yet initialized",
    ),
    _broken(
        "gfd-broken",
        "gfd",
        "GPU feature discovery",
        "failed to create NVML manager: Driver/library version mismatch",
    ),
    Fault(
        name="image-pull",
        title="one node cannot pull an operand's image",
        breaks="the DCGM exporter's pod on the node is in ImagePullBackOff",
        finding="gpu.operands",
        follows=("gpu.policy",),
        truth=_trouble("dcgmExporter", Trouble("pull", "429 Too Many Requests - pull rate limit")),
    ),
    Fault(
        name="operand-switched-off",
        title="one node's device plugin is switched off",
        breaks=f"label {_DEVICE_PLUGIN} is false on the node; the ClusterPolicy stays ready",
        finding="gpu.operands",
        follows=("gpu.allocatable",),
        needs=("device-plugin",),
        edits=_switch_off,
    ),
)
