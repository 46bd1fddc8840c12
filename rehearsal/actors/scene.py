"""What the components look at: the workloads of the cluster by role, and one node with its truth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gpuready.charts_values.kube import Object

from ..fleet import Hardware
from .records import Node, Pod

# Our own mark on what an actor made, and whose part it played.
ACTOR = "rehearsal.gpuready.io/actor"


@dataclass(frozen=True)
class View:
    """One node. ``pods`` has its DaemonSets' pods by role, ``hardware`` is the truth."""

    node: Node
    hardware: Hardware
    pods: Mapping[str, Pod]

    def ready(self, role: str) -> bool:
        """Whether the pod of that role runs and is ready here."""
        pod = self.pods.get(role)
        return pod is not None and pod.ready


def available(deployment: Object | None) -> bool:
    """Whether at least one replica of a Deployment is available."""
    return deployment is not None and int(deployment.get("status", {}).get("availableReplicas") or 0) > 0


def image_name(image: str) -> str:
    """The last part of an image's repository: gpu-operator of nvcr.io/nvidia/gpu-operator:v26.7.0."""
    return image.split("@")[0].rsplit("/", 1)[-1].split(":")[0]


def image_tag(image: str) -> str:
    """The tag of an image, or an empty text."""
    return image.split("@")[0].rsplit("/", 1)[-1].partition(":")[2]


def containers(workload: Object, key: str = "containers") -> list[Object]:
    """The containers of a workload's pod template."""
    found: list[Object] = workload["spec"]["template"]["spec"].get(key) or []
    return found


def operator(deployments: list[Object], name: str) -> Object | None:
    """The Deployment whose image, or whose label app.kubernetes.io/component or /name, says ``name``."""
    for one in deployments:
        labels = one["metadata"].get("labels") or {}
        named = name in (labels.get("app.kubernetes.io/component"), labels.get("app.kubernetes.io/name"))
        if named or any(image_name(container.get("image", "")) == name for container in containers(one)):
            return one
    return None


def roles(daemonsets: list[Object]) -> dict[str, str]:
    """What each DaemonSet plays, by its uid.

    Known by labels rather than by names: cilium, nfd-worker, dra, and whatever an actor made.
    """
    found = {}
    for one in daemonsets:
        meta = one["metadata"]
        labels = meta.get("labels") or {}
        template = one["spec"]["template"]["metadata"].get("labels") or {}
        if ACTOR in labels:
            role = labels[ACTOR]
        elif meta["name"] == "cilium" or template.get("k8s-app") == "cilium":
            role = "cilium"
        elif template.get("role") == "worker" and "feature-discovery" in template.get("app.kubernetes.io/name", ""):
            role = "nfd-worker"
        elif any(key.endswith("-component") and value == "kubelet-plugin" for key, value in template.items()):
            role = "dra"
        else:
            continue
        found[meta["uid"]] = role
    return found
