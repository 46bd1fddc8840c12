"""The objects of a healthy H100 cluster of two nodes, as the API shows them."""

from __future__ import annotations

from typing import Any

from gpuready.validators.evidence import RELEASES
from gpuready.validators.webhooks import ENDPOINTS, MUTATING, VALIDATING

NODES = ("gpu-0", "gpu-1")
PRIVILEGED = ("node-feature-discovery", "nvidia-network-operator", "gpu-operator", "dra-driver-nvidia-gpu")
CILIUM_CONFIG = {
    "cni-exclusive": "false",
    "ipam": "cluster-pool",
    "cluster-pool-ipv4-cidr": "10.244.0.0/16",
    "kube-proxy-replacement": "true",
}


def workload(kind: str, namespace: str, name: str, release: str, chart: str, tag: str = "") -> dict[str, Any]:
    """A Deployment or DaemonSet of a release, all its pods ready."""
    counts = (
        {"desiredNumberScheduled": 2, "numberReady": 2} if kind == "DaemonSet" else {"readyReplicas": 1, "replicas": 1}
    )
    return {
        "kind": kind,
        "apiVersion": "apps/v1",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {"helm.sh/chart": chart} if chart else {},
            "annotations": {"meta.helm.sh/release-name": release, "meta.helm.sh/release-namespace": namespace},
        },
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": name}},
            "template": {"spec": {"containers": [{"image": f"repo/{name}:{tag or 'v1'}"}]}},
        },
        "status": counts,
    }


def operand(name: str, part: str, namespace: str = "gpu-operator") -> dict[str, Any]:
    """A DaemonSet that an operator made for the nodes with the label ``part``."""
    tolerations = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    spec = {
        "containers": [{"image": "x:y"}],
        "nodeSelector": {f"nvidia.com/gpu.deploy.{part}": "true"} if part else {},
        "tolerations": tolerations,
    }
    return {
        "kind": "DaemonSet",
        "apiVersion": "apps/v1",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"selector": {"matchLabels": {"app": name}}, "template": {"spec": spec}},
        "status": {"desiredNumberScheduled": 2, "numberReady": 2},
    }


def pod(workload: dict[str, Any], node: str | None, *, ready: bool = False, **status: Any) -> dict[str, Any]:
    """A pod of a workload."""
    name = workload["metadata"]["name"]
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
    return {
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": {
            "name": f"{name}-{node}", "namespace": workload["metadata"]["namespace"], "labels": {"app": name},
        },
        "spec": {"nodeName": node} if node else {},
        "status": {"phase": "Running", "conditions": conditions, **status},
    }  # fmt: skip


def waiting(reason: str, message: str = "", last: str = "") -> dict[str, Any]:
    """The status of a container that waits; ``last`` is what it said when it ended before."""
    ended = {"terminated": {"exitCode": 1, "message": last}} if last else {}
    return {
        "name": "c",
        "ready": False,
        "state": {"waiting": {"reason": reason, "message": message}},
        "lastState": ended,
    }


def namespace(name: str, **labels: str) -> dict[str, Any]:
    """A namespace; ``psa`` is its Pod Security level."""
    found = {"pod-security.kubernetes.io/enforce": labels["psa"]} if "psa" in labels else {}
    return {"metadata": {"name": name, "uid": f"u-{name}", "labels": found}}


def record(namespace: str, name: str, status: str, revision: int) -> dict[str, Any]:
    """What is kept of a Helm record."""
    return {"metadata": {"name": name, "namespace": namespace, "labels": {"status": status, "version": str(revision)}}}


def hook(policy: str = "Fail") -> dict[str, Any]:
    """A webhook configuration for pods."""
    service = {"namespace": "kueue", "name": "webhook"}
    rules = [{"operations": ["CREATE"], "resources": ["pods"]}]
    return {
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "kueue"},
        "webhooks": [
            {"name": "vpod.kb.io", "failurePolicy": policy, "clientConfig": {"service": service}, "rules": rules}
        ],
    }


def endpoints(*, ready: bool) -> dict[str, Any]:
    """The endpoints of the webhook's Service."""
    return {
        "metadata": {"name": "w-1", "namespace": "kueue", "labels": {"kubernetes.io/service-name": "webhook"}},
        "endpoints": [{"addresses": ["10.244.0.9"], "conditions": {"ready": ready}}],
    }


def claim(device_class: str, created: str = "2026-01-01T00:00:00Z") -> dict[str, Any]:
    """A claim without an allocation."""
    return {
        "metadata": {"name": "mine", "namespace": "default", "creationTimestamp": created},
        "spec": {"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": device_class}}]}},
    }


def claimant() -> dict[str, Any]:
    """The pod that waits for the claim."""
    return {
        "metadata": {"name": "train", "namespace": "default"},
        "spec": {"resourceClaims": [{"name": "r", "resourceClaimName": "mine"}]},
        "status": {"phase": "Pending"},
    }


def ready_policy(name: str = "cluster-policy") -> dict[str, Any]:
    parts = ("driver", "toolkit", "devicePlugin", "gfd", "dcgmExporter", "migManager")
    return {
        "kind": "ClusterPolicy",
        "apiVersion": "nvidia.com/v1",
        "metadata": {"name": name},
        "spec": {part: {"enabled": True} for part in parts},
        "status": {"state": "ready", "conditions": [{"type": "Ready", "status": "True", "reason": "Reconciled"}]},
    }


def slice_of(node: str, driver: str, devices: int, version: str | None = None) -> dict[str, Any]:
    attributes: dict[str, Any] = {"type": {"string": "gpu"}}
    if version:
        attributes["driverVersion"] = {"version": version}
    return {
        "kind": "ResourceSlice",
        "apiVersion": "resource.k8s.io/v1",
        "metadata": {"name": f"{node}-{driver}"},
        "spec": {
            "nodeName": node,
            "driver": driver,
            "devices": [{"name": f"d-{i}", "attributes": attributes} for i in range(devices)],
        },
    }


def objects() -> dict[str, list[dict[str, Any]]]:
    """All that a healthy H100 cluster shows, by key of the evidence."""
    nfd = workload("Deployment", "node-feature-discovery", "node-feature-discovery-master",
                   "node-feature-discovery", "node-feature-discovery-0.19.0")  # fmt: skip
    nfd["metadata"]["labels"] |= {"app.kubernetes.io/name": "node-feature-discovery", "role": "master"}
    operands = (
        ("nvidia-driver-daemonset", "driver"),
        ("nvidia-container-toolkit-daemonset", "container-toolkit"),
        ("nvidia-device-plugin-daemonset", "device-plugin"),
        ("nvidia-operator-validator", "operator-validator"),
        ("gpu-feature-discovery", "gpu-feature-discovery"),
        ("nvidia-dcgm-exporter", "dcgm-exporter"),
        ("nvidia-mig-manager", "mig-manager"),
    )
    nic = {
        "metadata": {"name": "nic-cluster-policy"},
        "spec": {},
        "status": {
            "state": "ready",
            "appliedStates": [
                {"name": "state-OFED", "state": "ignore"},
                {"name": "state-RDMA-device-plugin", "state": "ready"},
            ],
        },
    }
    dra = "dra-driver-nvidia-gpu"
    return {
        "namespaces": [namespace("kube-system"), *(namespace(name, psa="privileged") for name in PRIVILEGED)],
        "pods": [],
        "configmaps": [{"metadata": {"name": "cilium-config"}, "data": dict(CILIUM_CONFIG)}],
        "ciliumnodes.cilium.io": [{"metadata": {"name": name}} for name in NODES],
        "clusterpolicies.nvidia.com": [ready_policy()],
        "nicclusterpolicies.mellanox.com": [nic],
        "deployments.apps": [
            workload("Deployment", "kube-system", "cilium-operator", "cilium", "", "v1.19.6"),
            nfd,
            workload("Deployment", "nvidia-network-operator", "network-operator", "network-operator",
                     "network-operator-26.4.1"),
            workload("Deployment", "gpu-operator", "gpu-operator", "gpu-operator", "gpu-operator-v26.7.0"),
            workload("Deployment", dra, f"{dra}-controller", dra, f"{dra}-0.4.0"),
        ],
        "daemonsets.apps": [
            workload("DaemonSet", "kube-system", "cilium", "cilium", "", "v1.19.6"),
            workload("DaemonSet", dra, f"{dra}-kubelet-plugin", dra, f"{dra}-0.4.0"),
            *(operand(name, part) for name, part in operands),
            operand("rdma-shared-dp-ds", "", "nvidia-network-operator"),
        ],
        "resourceslices.resource.k8s.io": [
            slice_of(name, "compute-domain.nvidia.com", 1) for name in NODES
        ],
        "deviceclasses.resource.k8s.io": [{"metadata": {"name": "compute-domain-daemon.nvidia.com"}}],
        "resourceclaims.resource.k8s.io": [],
        VALIDATING: [hook()],
        MUTATING: [],
        ENDPOINTS: [endpoints(ready=True)],
        RELEASES: [
            record("kube-system", "cilium", "deployed", 1),
            *(record(place, place.removeprefix("nvidia-"), "deployed", 2) for place in PRIVILEGED),
        ],
    }  # fmt: skip
