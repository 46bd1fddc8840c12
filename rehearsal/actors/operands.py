"""The GPU Operator's operands: names, order and DaemonSets, as of release 26.7.

Only what others can see is made: names, selectors, tolerations, images and init containers. Every pod carries
the gate, so that it turns ready when its node is so far, and not before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gpuready.charts_values.kube import Object

from .daemonsets import owner
from .records import GATE
from .scene import ACTOR

DEPLOY = "nvidia.com/gpu.deploy."
MANAGER = "gpu-operator"


@dataclass(frozen=True)
class Operand:
    """One operand. ``key`` is its section of the ClusterPolicy; ``default`` says whether it is deployed where
    the section does not say. ``after`` are the operands for which its init container toolkit-validation waits.
    """

    key: str
    state: str
    daemonset: str
    container: str
    label: str
    after: tuple[str, ...] = ()
    init: tuple[str, ...] = ()
    default: bool = True

    @property
    def role(self) -> str:
        """The role of its pods."""
        return f"gpu.{self.key}"


_TOOLKIT = ("toolkit-validation",)
_LAST = ("toolkit", "validator")

OPERANDS = (
    Operand(
        "driver",
        "state-driver",
        "nvidia-driver-daemonset",
        "nvidia-driver-ctr",
        "driver",
        init=("k8s-driver-manager",),
    ),
    Operand(
        "toolkit",
        "state-container-toolkit",
        "nvidia-container-toolkit-daemonset",
        "nvidia-container-toolkit-ctr",
        "container-toolkit",
        init=("driver-validation",),
    ),
    Operand(
        "validator",
        "state-operator-validation",
        "nvidia-operator-validator",
        "nvidia-operator-validator",
        "operator-validator",
        after=("toolkit",),
        init=("driver-validation", "toolkit-validation", "cuda-validation", "plugin-validation"),
    ),
    Operand(
        "devicePlugin",
        "state-device-plugin",
        "nvidia-device-plugin-daemonset",
        "nvidia-device-plugin",
        "device-plugin",
        after=("toolkit",),
        init=_TOOLKIT,
    ),
    Operand(
        "dcgm",
        "state-dcgm",
        "nvidia-dcgm",
        "nvidia-dcgm-ctr",
        "dcgm",
        after=_LAST,
        init=_TOOLKIT,
        default=False,
    ),
    Operand(
        "dcgmExporter",
        "state-dcgm-exporter",
        "nvidia-dcgm-exporter",
        "nvidia-dcgm-exporter",
        "dcgm-exporter",
        after=_LAST,
        init=_TOOLKIT,
    ),
    Operand(
        "gfd",
        "gpu-feature-discovery",
        "gpu-feature-discovery",
        "gpu-feature-discovery",
        "gpu-feature-discovery",
        after=_LAST,
        init=_TOOLKIT,
    ),
    Operand(
        "migManager",
        "state-mig-manager",
        "nvidia-mig-manager",
        "nvidia-mig-manager",
        "mig-manager",
        after=_LAST,
        init=_TOOLKIT,
    ),
    Operand(
        "nodeStatusExporter",
        "state-node-status-exporter",
        "nvidia-node-status-exporter",
        "nvidia-node-status-exporter",
        "node-status-exporter",
        init=("driver-validation",),
        default=False,
    ),
)
BY_KEY = {one.key: one for one in OPERANDS}
BY_ROLE = {one.role: one for one in OPERANDS}


def enabled(spec: Mapping[str, object], operand: Operand) -> bool:
    """Whether a ClusterPolicy deploys an operand; the validator has no switch."""
    section = spec.get(operand.key)
    if operand.key == "validator" or not isinstance(section, dict):
        return operand.default
    return bool(section.get("enabled", operand.default))


def daemonset(operand: Operand, policy: Object, namespace: str, system: str) -> Object:
    """The DaemonSet of an operand; ``system`` is the tag of the driver image's OS (ubuntu24.04)."""
    spec = policy["spec"]
    common = spec.get("daemonsets") or {}
    labels = {
        "app": operand.daemonset,
        "app.kubernetes.io/part-of": "nvidia-gpu",
        "app.kubernetes.io/component": operand.container.removesuffix("-ctr"),
        **(common.get("labels") or {}),
    }
    image = _image(spec, operand, system)
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {
            "name": operand.daemonset,
            "namespace": namespace,
            "labels": {**labels, "app.kubernetes.io/managed-by": "gpu-operator", ACTOR: operand.role},
            "annotations": dict(common.get("annotations") or {}),
            "ownerReferences": [owner(policy)],
        },
        "spec": {
            "selector": {"matchLabels": {"app": operand.daemonset}},
            "updateStrategy": _strategy(operand, common),
            "template": {
                "metadata": {
                    "labels": labels,
                    "annotations": {**(common.get("annotations") or {}), GATE: operand.role},
                },
                "spec": {
                    "nodeSelector": {f"{DEPLOY}{operand.label}": "true"},
                    "priorityClassName": common.get("priorityClassName") or "system-node-critical",
                    "tolerations": common.get("tolerations") or [],
                    "hostPID": True,
                    # Without its token volume a pod is a third smaller, and there are thousands.
                    "automountServiceAccountToken": False,
                    "initContainers": [
                        {"name": name, "image": image, "securityContext": {"privileged": True}}
                        for name in _init(operand, spec)
                    ],
                    "containers": [
                        {
                            "name": name,
                            "image": image,
                            "env": _env(spec, operand),
                            "securityContext": {"privileged": True},
                        }
                        for name in _containers(operand, spec)
                    ],
                },
            },
        },
    }


def rdma_by_module(spec: Mapping[str, object]) -> Object | None:
    """The section driver.rdma where it is switched on: nvidia-peermem beside the driver."""
    driver = spec.get("driver")
    rdma = driver.get("rdma") if isinstance(driver, dict) else None
    return rdma if isinstance(rdma, dict) and rdma.get("enabled") else None


def _strategy(operand: Operand, common: Object) -> Object:
    # The driver is never exchanged under a running node: its pod has to be deleted first.
    if operand.key == "driver":
        return {"type": "OnDelete"}
    kind = common.get("updateStrategy") or "RollingUpdate"
    if kind != "RollingUpdate":
        return {"type": kind}
    unavailable = str((common.get("rollingUpdate") or {}).get("maxUnavailable") or "1")
    return {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxUnavailable": int(unavailable) if unavailable.isdigit() else unavailable},
    }


def _init(operand: Operand, spec: Object) -> list[str]:
    names = list(operand.init)
    if operand.key == "validator" and not enabled(spec, BY_KEY["devicePlugin"]):
        names.remove("plugin-validation")
    if operand.key == "driver" and rdma_by_module(spec):
        names.append("mofed-validation")
    return names


def _containers(operand: Operand, spec: Object) -> list[str]:
    if operand.key == "driver" and rdma_by_module(spec):
        return [operand.container, "nvidia-peermem-ctr"]
    return [operand.container]


def _env(spec: Object, operand: Operand) -> list[Object]:
    section = spec.get(operand.key) or {}
    env = [dict(one) for one in section.get("env") or ()]
    if operand.key == "driver" and section.get("kernelModuleType"):
        env.append({"name": "KERNEL_MODULE_TYPE", "value": section["kernelModuleType"]})
    if operand.key == "gfd":
        env.append({"name": "MIG_STRATEGY", "value": (spec.get("mig") or {}).get("strategy") or "single"})
    return env


def _image(spec: Object, operand: Operand, system: str) -> str:
    section = spec.get(operand.key) or {}
    parts = [str(section[key]) for key in ("repository", "image") if section.get(key)]
    name = "/".join(parts) or f"nvcr.io/nvidia/{operand.daemonset}"
    version = str(section.get("version") or "")
    if version.startswith("sha256:"):
        return f"{name}@{version}"
    if operand.key == "driver" and version:
        version = f"{version}-{system}"
    return f"{name}:{version}" if version else name
