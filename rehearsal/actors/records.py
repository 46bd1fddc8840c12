"""What the actors remember of nodes and pods: the few fields that they decide by.

A thousand nodes carry some fifteen thousand pods; whole objects would take gigabytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from sys import intern
from typing import Any

from gpuready.charts_values.kube import Object

GATE = "rehearsal.gpuready.io/gate"

# (name, image) of a container.
Container = tuple[str, str]


@dataclass(slots=True)
class Node:
    """A node. ``conditions`` maps a type to (status, reason); ``capacity`` and ``allocatable`` hold devices only."""

    name: str
    uid: str
    version: int
    created: str
    labels: dict[str, str]
    taints: tuple[Object, ...]
    conditions: dict[str, tuple[str, str]]
    capacity: dict[str, str]
    allocatable: dict[str, str]
    address: str
    pod_cidr: str

    @classmethod
    def of(cls, body: Object) -> Node:
        """From the object."""
        meta, spec, status = body["metadata"], body.get("spec", {}), body.get("status", {})
        addresses = {one["type"]: one["address"] for one in status.get("addresses", ())}
        return cls(
            name=meta["name"],
            uid=meta["uid"],
            version=int(meta["resourceVersion"]),
            created=meta.get("creationTimestamp", ""),
            labels={intern(key): intern(value) for key, value in (meta.get("labels") or {}).items()},
            taints=tuple(spec.get("taints") or ()),
            conditions={
                intern(one["type"]): (one["status"], intern(one.get("reason", "")))
                for one in status.get("conditions", ())
            },
            capacity=_devices(status.get("capacity")),
            allocatable=_devices(status.get("allocatable")),
            address=addresses.get("InternalIP", ""),
            pod_cidr=spec.get("podCIDR", ""),
        )


@dataclass(slots=True)
class Pod:
    """A pod. ``progress`` sums up its status (see ``progress_of``).

    ``body`` is the whole object, kept only where the actors play what runs inside it: pods of Jobs, and
    others that ask for GPUs or claims.
    """

    namespace: str
    name: str
    uid: str
    version: int
    node: str
    owner_kind: str
    owner_uid: str
    gated: bool
    deleting: bool
    progress: str
    host_network: bool
    init: tuple[Container, ...]
    containers: tuple[Container, ...]
    body: Object | None

    @classmethod
    def of(cls, body: Object) -> Pod:
        """From the object."""
        meta, spec = body["metadata"], body["spec"]
        owner: Object = next((one for one in meta.get("ownerReferences") or () if one.get("controller")), {})
        kind = owner.get("kind", "")
        played = kind != "DaemonSet" and (kind == "Job" or asks_for_gpus(spec))
        return cls(
            namespace=intern(meta["namespace"]),
            name=meta["name"],
            uid=meta["uid"],
            version=int(meta["resourceVersion"]),
            node=intern(spec.get("nodeName", "")),
            owner_kind=intern(kind),
            owner_uid=intern(owner.get("uid", "")),
            gated=GATE in (meta.get("annotations") or {}),
            deleting="deletionTimestamp" in meta,
            progress=intern(progress_of(body.get("status", {}))),
            host_network=bool(spec.get("hostNetwork")),
            init=_shared(_containers(spec.get("initContainers"))),
            containers=_shared(_containers(spec.get("containers"))),
            body=body if played else None,
        )

    @property
    def ready(self) -> bool:
        """Its containers run and are ready."""
        return self.progress in (READY, MARKED) and not self.deleting

    @property
    def ended(self) -> bool:
        """Succeeded or Failed."""
        return self.progress in ("Succeeded", "Failed")

    @property
    def path(self) -> str:
        """Its path in the API."""
        return f"/api/v1/namespaces/{self.namespace}/pods/{self.name}"


READY = "ready"
MARKED = "marked"
FRESH = "fresh"
PULL = "pull"


def progress_of(status: Object) -> str:
    """A status in one word.

    "fresh" (nothing started), "init:N" (N init containers done), "crash" (a container waits to be started
    again), "pull" (it waits for its image), "running" (not ready), "ready", "marked" (ready, but the
    controller-manager has marked it otherwise, as it does when a node does not answer), "Succeeded", "Failed".
    """
    phase = status.get("phase", "")
    if phase in ("Succeeded", "Failed"):
        return str(phase)
    for one in status.get("containerStatuses") or ():
        reason = one.get("state", {}).get("waiting", {}).get("reason")
        if reason == "CrashLoopBackOff":
            return "crash"
        if reason == "ImagePullBackOff":
            return PULL
    if phase == "Running":
        if not all(one.get("ready") for one in status.get("containerStatuses") or ()):
            return "running"
        conditions = {one["type"]: one["status"] for one in status.get("conditions") or ()}
        return READY if conditions.get("Ready") == "True" else MARKED
    started = status.get("initContainerStatuses") or ()
    if started:
        done = sum(1 for one in started if "terminated" in one.get("state", {}))
        return f"init:{done}"
    return FRESH


def asks_for_gpus(spec: Object) -> bool:
    """Whether a pod spec asks for nvidia.com/gpu or for resource claims."""
    return bool(spec.get("resourceClaims")) or any(
        "nvidia.com/gpu" in (one.get("resources", {}).get("limits") or {}) for one in spec.get("containers") or ()
    )


def _devices(resources: Any) -> dict[str, str]:
    """Extended resources only: the kubelet's own never change here."""
    return {intern(key): str(value) for key, value in (resources or {}).items() if "/" in key}


def _containers(specs: Any) -> tuple[Container, ...]:
    return tuple((one["name"], one.get("image", "")) for one in specs or ())


@cache
def _shared(containers: tuple[Container, ...]) -> tuple[Container, ...]:
    """The same tuple for all pods of a DaemonSet."""
    return containers
