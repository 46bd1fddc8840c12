"""What stands in a cluster, without what changes by itself: to tell whether it is as it was before."""

from __future__ import annotations

from collections import Counter
from typing import Any

from gpuready.charts_values.kube import Api, Object

KINDS = (
    "/api/v1/nodes",
    "/api/v1/namespaces",
    "/api/v1/configmaps",
    "/api/v1/services",
    "/api/v1/resourcequotas",
    "/apis/apps/v1/daemonsets",
    "/apis/apps/v1/deployments",
    "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations",
    "/apis/cilium.io/v2/ciliumnodes",
    "/apis/mellanox.com/v1alpha1/nicclusterpolicies",
    "/apis/nvidia.com/v1/clusterpolicies",
    "/apis/resource.k8s.io/v1/resourceslices",
    "/apis/resource.k8s.io/v1/resourceclaims",
)
_COUNTED = ("desiredNumberScheduled", "numberReady", "updatedNumberScheduled", "replicas", "readyReplicas", "state")
# Counters and notes of controllers.
_NOTES = (
    "deprecated.daemonset.template.generation",
    "deployment.kubernetes.io/revision",
    "node.alpha.kubernetes.io/ttl",
)


def standing(api: Api) -> dict[str, Any]:
    """Every object by kind, namespace and name; pods by their owner and node, and whether they are ready."""
    found: dict[str, Any] = {}
    for path in KINDS:
        for one in api.list(path, resourceVersion=""):
            meta = one["metadata"]
            found[f"{one['kind']} {meta.get('namespace', '')}/{meta['name']}"] = _lasting(one)
    for one in api.list("/api/v1/secrets", labelSelector="owner=helm", resourceVersion=""):
        found[f"Secret {one['metadata']['name']}"] = (one["metadata"]["labels"], one["data"])
    pods = api.list("/api/v1/pods", resourceVersion="")
    return found | {"pods": Counter(map(_pod, pods))}


def _lasting(body: Object) -> dict[str, Any]:
    meta, spec, status = body["metadata"], dict(body.get("spec") or {}), body.get("status") or {}
    annotations = {key: value for key, value in (meta.get("annotations") or {}).items() if key not in _NOTES}
    # A slice's generation counts how often it changed.
    spec.pop("pool", None)
    kept: dict[str, Any] = {"labels": meta.get("labels"), "annotations": annotations, "spec": spec}
    kept |= {"data": body.get("data")} | {key: status.get(key) for key in _COUNTED}
    if body["kind"] == "Node":
        # A kubelet remembers the name of a resource that nobody offers any more.
        offers = {name: count for name, count in status["allocatable"].items() if "/" not in name or count != "0"}
        conditions = sorted((one["type"], one["status"], one["reason"]) for one in status["conditions"])
        kept |= {"allocatable": offers, "conditions": conditions}
    return kept


def _pod(body: Object) -> tuple[str, ...]:
    meta = body["metadata"]
    owner = (meta.get("ownerReferences") or [{"kind": "", "name": meta["name"]}])[0]
    ready = [one["status"] for one in body["status"].get("conditions") or () if one["type"] == "Ready"]
    node = body["spec"].get("nodeName", "") if owner["kind"] == "DaemonSet" else ""
    name = owner["name"].rpartition("-")[0] if owner["kind"] == "ReplicaSet" else owner["name"]
    return (meta["namespace"], name, node, body["status"].get("phase", ""), *ready)
