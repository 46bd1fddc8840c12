"""The GPU Operator and its operands.

The operator (labels, DaemonSets, status of the ClusterPolicy) acts while its Deployment is available. The
operands act on their nodes whether it is or not: pods turn ready in order, the device plugin offers what the
hardware has, feature discovery labels it. Rules: GPU Operator source 26.7.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gpuready.charts_values import quantities
from gpuready.charts_values.kube import Object

from ..fleet import clique
from ..profile import Profile
from .cache import Cache
from .daemonsets import bring, owner, remove, rolled_out, upgrade
from .informers import PATHS
from .nfd import PREFIX
from .operands import (
    BY_KEY,
    BY_ROLE,
    DEPLOY,
    MANAGER,
    OPERANDS,
    Operand,
    daemonset,
    enabled,
    rdma_by_module,
)
from .pods import ALL_READY, Wish, now, waiting
from .scene import ACTOR, View, available, image_tag, operator
from .wishes import NodeWish
from .writes import Writer

PRESENT = "nvidia.com/gpu.present"
RESOURCE = "nvidia.com/gpu"
# Nodes with this label keep their driver.
SKIP = "nvidia.com/gpu-driver-upgrade.skip"
MIG_MANAGER = f"{DEPLOY}mig-manager"
NICS = f"{PREFIX}pci-15b3.present"
_GPU_LABELS = tuple(f"{PREFIX}pci-{kind}10de.present" for kind in ("", "0302_", "0300_"))
# What feature discovery writes, besides what the operator does.
_GFD_LABELS = (
    "nvidia.com/cuda.",
    "nvidia.com/mig.capable",
    "nvidia.com/mig.strategy",
    "nvidia.com/mps.capable",
    "nvidia.com/vgpu.present",
    *(
        f"nvidia.com/gpu.{key}"
        for key in (
            "product",
            "count",
            "memory",
            "family",
            "compute.",
            "machine",
            "mode",
            "replicas",
            "sharing-strategy",
            "clique",
        )
    ),
)
# The operator writes these for every GPU node, whether the operand is enabled or not.
_DEPLOYED = tuple(one.label for one in OPERANDS if one.key != "migManager")


@dataclass(frozen=True)
class GpuOperator:
    """What the installed objects say. ``policy`` is the ClusterPolicy in force, ``namespace`` the operator's.

    ``running`` tells whether the operator acts now.
    """

    policy: Object | None
    ignored: tuple[str, ...]
    namespace: str
    running: bool

    @property
    def spec(self) -> Mapping[str, Object]:
        """The spec of the policy in force, or an empty one."""
        return self.policy["spec"] if self.policy else {}


def read(cache: Cache) -> GpuOperator:
    """The oldest ClusterPolicy is in force; others are ignored."""
    policies = sorted(
        (one for one in cache.objects("clusterpolicies") if "deletionTimestamp" not in one["metadata"]),
        key=lambda one: (one["metadata"].get("creationTimestamp", ""), one["metadata"]["name"]),
    )
    deployment = operator(cache.objects("deployments"), "gpu-operator")
    policy = None
    if policies:
        # The status must not count as a change of what the policy says.
        policy = {key: value for key, value in policies[0].items() if key != "status"}
        policy["metadata"] = {
            key: policies[0]["metadata"][key] for key in ("name", "uid", "generation") if key in policies[0]["metadata"]
        }
    return GpuOperator(
        policy=policy,
        ignored=tuple(one["metadata"]["name"] for one in policies[1:]),
        namespace=deployment["metadata"]["namespace"] if deployment else "",
        running=available(deployment),
    )


# -- the operator -------------------------------------------------------------------------------------------


def cluster(gpu: GpuOperator, cache: Cache, writer: Writer) -> None:
    """DaemonSets, RuntimeClass and the status of every ClusterPolicy."""
    made = [one for one in cache.objects("daemonsets") if (one["metadata"].get("labels") or {}).get(ACTOR) in BY_ROLE]
    if gpu.policy is None:
        for one in made:
            remove(one, writer)
        return
    if not gpu.running:
        return
    for name in gpu.ignored:
        _write_status(cache, writer, name, {"state": "ignored"})
    nodes = list(cache.nodes.values())
    labelled = any(any(key.startswith(PREFIX) for key in node.labels) for node in nodes)
    gpu_nodes = [node for node in nodes if node.labels.get(PRESENT) == "true"]
    not_ready: list[str] = []
    if gpu_nodes:
        not_ready = _operands(gpu, gpu.policy, cache, writer, made, _system(gpu_nodes[0].labels))
    name = gpu.policy["metadata"]["name"]
    if not_ready:
        message = f"ClusterPolicy is not ready, states not ready: [{' '.join(not_ready)}]"
        _conclude(cache, writer, name, ready=False, reason="OperandNotReady", message=message)
    elif not labelled:
        _conclude(cache, writer, name, ready=True, reason="NFDLabelsMissing", message="No NFD labels found")
    elif not gpu_nodes:
        message = "No GPU node found, watching for new nodes to join the cluster."
        _conclude(cache, writer, name, ready=True, reason="NoGPUNodes", message=message)
    else:
        message = "ClusterPolicy is ready as all resources have been successfully reconciled"
        _conclude(cache, writer, name, ready=True, reason="Reconciled", message=message)


def node(gpu: GpuOperator, view: View, wish: NodeWish, profile: Profile) -> None:
    """Labels and devices of one node."""
    _feature_labels(gpu, view, wish, profile)
    _operator_labels(gpu, view, wish)
    wish.claim_resources(RESOURCE)
    if view.ready(BY_KEY["devicePlugin"].role):
        wish.resources[RESOURCE] = len(view.hardware.gpus)


def progress(gpu: GpuOperator, role: str, view: View) -> Wish | None:
    """How far an operand's pod can be on its node; None where the pod is no operand's."""
    operand = BY_ROLE.get(role)
    if operand is None:
        return None
    pod = view.pods[role]
    for place, (name, _) in enumerate(pod.init):
        if not _passed(gpu, name, operand, view):
            return waiting(place)
    return ALL_READY


def driver_version(view: View) -> str | None:
    """The version of the driver that is loaded on a node, None where there is none.

    A driver of the host wins, as in the operator's own validation.
    """
    if view.hardware.host_driver:
        return view.hardware.host_driver
    pod = view.pods.get(BY_KEY["driver"].role)
    if pod is None or not pod.ready:
        return None
    return image_tag(pod.containers[0][1]).partition("-")[0] or None


def reaches_gpu_memory(gpu: GpuOperator) -> bool:
    """Whether the drivers let NICs reach GPU memory: open kernel modules (DMA-BUF), or nvidia-peermem."""
    module = gpu.spec.get("driver", {}).get("kernelModuleType") or "auto"
    return module != "proprietary" or rdma_by_module(gpu.spec) is not None


# -- inside -------------------------------------------------------------------------------------------------


def _operands(
    gpu: GpuOperator, policy: Object, cache: Cache, writer: Writer, made: list[Object], system: str
) -> list[str]:
    """Bring the DaemonSets in line; returns the states that are not ready, in the operator's order."""
    _runtime_classes(gpu, policy, cache, writer)
    there = {one["metadata"]["labels"][ACTOR]: one for one in made if one["metadata"]["namespace"] == gpu.namespace}
    not_ready = []
    for operand in OPERANDS:
        known = there.get(operand.role)
        if not enabled(gpu.spec, operand):
            if known is not None:
                remove(known, writer)
            continue
        wanted = daemonset(operand, policy, gpu.namespace, system)
        if not bring(known, wanted, writer, MANAGER) or known is None:
            not_ready.append(operand.state)
        elif not rolled_out(known, empty_is_fine=True):
            not_ready.append(operand.state)
            if operand.key == "driver":
                _upgrade_drivers(gpu, known, wanted, cache, writer)
    return not_ready


def _upgrade_drivers(gpu: GpuOperator, known: Object, wanted: Object, cache: Cache, writer: Writer) -> None:
    """With autoUpgrade the operator replaces driver pods of an older template, a few nodes at a time."""
    upgrade(gpu.spec.get("driver", {}).get("upgradePolicy") or {}, known, wanted, SKIP, cache, writer)


def _passed(gpu: GpuOperator, init: str, operand: Operand, view: View) -> bool:
    """Whether an init container ends. Each checks one thing on its node."""
    if init == "mofed-validation":
        host = (rdma_by_module(gpu.spec) or {}).get("useHostMofed")
        return bool(host) or view.node.labels.get(NICS) != "true" or view.ready("net.ofedDriver")
    if init == "plugin-validation":
        return _offers_gpus(view)
    if init == "toolkit-validation":
        return all(view.ready(BY_KEY[key].role) for key in operand.after)
    if init in ("driver-validation", "cuda-validation"):
        return driver_version(view) is not None
    return True


def _offers_gpus(view: View) -> bool:
    return quantities.count(view.node.allocatable.get(RESOURCE, "0")) > 0 and view.ready(BY_KEY["devicePlugin"].role)


def _operator_labels(gpu: GpuOperator, view: View, wish: NodeWish) -> None:
    if gpu.policy is not None and not gpu.running:
        return
    wish.claim_labels(PRESENT, DEPLOY)
    if gpu.policy is None or not any(wish.label(view.node, key) == "true" for key in _GPU_LABELS):
        return
    wish.labels[PRESENT] = "true"
    if view.node.labels.get(f"{DEPLOY}operands") == "false":
        wish.labels[f"{DEPLOY}operands"] = "false"
        return
    for label in _DEPLOYED:
        # A person may switch one operand off on one node.
        wish.labels[DEPLOY + label] = view.node.labels.get(DEPLOY + label, "true")
    if wish.label(view.node, "nvidia.com/mig.capable") == "true":
        wish.labels[MIG_MANAGER] = view.node.labels.get(MIG_MANAGER, "true")


def _feature_labels(gpu: GpuOperator, view: View, wish: NodeWish, profile: Profile) -> None:
    """Feature discovery hands its labels to NFD's worker: both must run."""
    version = driver_version(view)
    role = BY_KEY["gfd"].role
    stays = role in view.pods and "nvidia.com/gpu.product" in view.node.labels
    if version is None and stays:
        return
    wish.claim_labels(*_GFD_LABELS)
    if version is None or not view.hardware.gpus or not (stays or (view.ready(role) and view.ready("nfd-worker"))):
        return
    model = profile.gpus
    driver = [*version.split("."), "", ""]
    cuda = [*profile.driver.cuda.split("."), "0"]
    strategy = (gpu.spec.get("mig") or {}).get("strategy") or "single"
    wish.labels |= {
        "nvidia.com/gpu.product": _product_label(view, profile),
        "nvidia.com/gpu.count": str(len(view.hardware.gpus)),
        "nvidia.com/gpu.memory": str(model.memory_mib),
        "nvidia.com/gpu.family": model.architecture.lower().replace(" ", "-"),
        "nvidia.com/gpu.machine": profile.instance_type,
        "nvidia.com/gpu.mode": "compute",
        "nvidia.com/gpu.replicas": "1",
        "nvidia.com/gpu.sharing-strategy": "none",
        "nvidia.com/gpu.compute.major": model.compute.split(".")[0],
        "nvidia.com/gpu.compute.minor": model.compute.split(".")[1],
        "nvidia.com/cuda.driver-version.full": version,
        "nvidia.com/cuda.driver-version.major": driver[0],
        "nvidia.com/cuda.driver-version.minor": driver[1],
        "nvidia.com/cuda.driver-version.revision": driver[2],
        "nvidia.com/cuda.driver.major": driver[0],
        "nvidia.com/cuda.driver.minor": driver[1],
        "nvidia.com/cuda.driver.rev": driver[2],
        "nvidia.com/cuda.runtime-version.full": profile.driver.cuda,
        "nvidia.com/cuda.runtime-version.major": cuda[0],
        "nvidia.com/cuda.runtime-version.minor": cuda[1],
        "nvidia.com/cuda.runtime.major": cuda[0],
        "nvidia.com/cuda.runtime.minor": cuda[1],
        "nvidia.com/mig.capable": str(model.mig_capable).lower(),
        "nvidia.com/mig.strategy": strategy,
        "nvidia.com/mps.capable": "false",
        "nvidia.com/vgpu.present": "false",
    }
    if domain := clique(profile, view.node.name):
        wish.labels["nvidia.com/gpu.clique"] = domain


def _product_label(view: View, profile: Profile) -> str:
    """As feature discovery writes what nvidia-smi calls the GPUs."""
    product = view.hardware.product
    return profile.gpus.label if product in ("", profile.gpus.name) else product.replace(" ", "-")


def _runtime_classes(gpu: GpuOperator, policy: Object, cache: Cache, writer: Writer) -> None:
    if not enabled(gpu.spec, BY_KEY["toolkit"]):
        return
    name = (gpu.spec.get("operator") or {}).get("runtimeClass") or "nvidia"
    for one in (name, f"{name}-cdi", f"{name}-legacy"):
        if cache.object("runtimeclasses", one) is None:
            body: Object = {
                "apiVersion": "node.k8s.io/v1",
                "kind": "RuntimeClass",
                "metadata": {"name": one, "ownerReferences": [owner(policy)]},
                "handler": one,
            }
            writer.create("runtimeclasses", PATHS["runtimeclasses"], body)


def _system(labels: Mapping[str, str]) -> str:
    """The OS part of a driver image's tag."""
    return labels.get(f"{PREFIX}system-os_release.ID", "") + labels.get(f"{PREFIX}system-os_release.VERSION_ID", "")


def _conclude(cache: Cache, writer: Writer, name: str, *, ready: bool, reason: str, message: str) -> None:
    """state and the two conditions; of those the one that holds carries reason and message."""
    good = ("Ready", "True" if ready else "False", reason if ready else "Error", message if ready else "")
    bad = ("Error", "False" if ready else "True", "Ready" if ready else reason, "" if ready else message)
    known = cache.object("clusterpolicies", name) or {}
    before = {one["type"]: one for one in known.get("status", {}).get("conditions") or ()}
    conditions = []
    for kind, status, why, text in (good, bad):
        one = before.get(kind)
        if one is None or one["status"] != status:
            one = {"type": kind, "lastTransitionTime": now()}
        conditions.append({**one, "status": status, "reason": why, "message": text})
    _write_status(cache, writer, name, {"state": "ready" if ready else "notReady", "conditions": conditions})


def _write_status(cache: Cache, writer: Writer, name: str, status: Object) -> None:
    known = cache.object("clusterpolicies", name)
    if known is None or known.get("status", {}) | status == known.get("status"):
        return
    path = f"{PATHS['clusterpolicies']}/{name}/status"
    writer.patch("clusterpolicies", path, {"status": status}, how="merge")
