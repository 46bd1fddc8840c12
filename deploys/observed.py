"""What each release is for, as the cluster shows it; and the wait for it.

Helm's word that a release is deployed says nothing about nodes. A goal is a function that reads the cluster and
says in one line what is not there yet, or None.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from gpuready.charts_values import bill
from gpuready.charts_values.bill import Release
from gpuready.charts_values.errors import DeadlineError, UnreachableError
from gpuready.charts_values.inventory import Cluster, Group
from gpuready.charts_values.kube import Api, Object
from gpuready.charts_values.quantities import count
from gpuready.charts_values.resources import NIC_CLUSTER_POLICY, operator_namespace

from . import disruption
from .survey import gpu_nodes

Pairs = list[tuple[Object, Group]]
Lacking = str | None

GPU = "nvidia.com/gpu"
CLUSTER_POLICY = "cluster-policy"
_RELEASE_NAME = "meta.helm.sh/release-name"
_GPU_ON_PCI = (
    "feature.node.kubernetes.io/pci-10de.present",
    "feature.node.kubernetes.io/pci-0302_10de.present",
    "feature.node.kubernetes.io/pci-0300_10de.present",
)
_NIC_ON_PCI = "feature.node.kubernetes.io/pci-15b3.present"
_NAMES_SHOWN = 8
# Seconds between two lines of progress.
_QUIET_S = 3.0


@dataclass(frozen=True)
class Goal:
    """Something to wait for. ``lacking`` reads the cluster and tells what is missing, or None."""

    title: str
    deadline_s: float
    lacking: Callable[[Api, Cluster], Lacking]


def goal(release: Release) -> Goal:
    """The goal of a release: its workloads rolled out, and then what they are there for, where that is known."""
    purpose = _PURPOSES.get(release.key)

    def lacking(api: Api, cluster: Cluster) -> Lacking:
        nodes = api.list("/api/v1/nodes")
        return rollout(api, release, cluster, nodes) or (purpose(api, cluster, nodes) if purpose else None)

    return Goal(release.title, release.deadline_s, lacking)


def wait(
    api: Api,
    cluster: Cluster,
    goal: Goal,
    *,
    hold_s: float = 0.0,
    progress: Callable[[str], None] = lambda line: None,
) -> None:
    """Poll until nothing has been lacking for ``hold_s``; ``progress`` gets a new line now and then.

    Raises DeadlineError, with what was lacking last, at the goal's deadline.
    """
    started = time.monotonic()
    good_since: float | None = None
    said, quiet_until = "", 0.0
    while True:
        try:
            lacking = goal.lacking(api, cluster)
        except (UnreachableError, DeadlineError) as error:
            lacking = str(error)
        now = time.monotonic()
        good_since = None if lacking else good_since or now
        if good_since is not None and now - good_since >= hold_s:
            return
        if lacking and now - started >= goal.deadline_s:
            raise DeadlineError(f"{goal.title}: {lacking} (deadline {goal.deadline_s:g} s)")
        if lacking and lacking != said and now >= quiet_until:
            said, quiet_until = lacking, now + _QUIET_S
            progress(f"{goal.title}: {lacking}")
        time.sleep(0.5 if now - started < 30 else 5.0)


# -- goals ------------------------------------------------------------------------------------------------------


def kubelets(api: Api, cluster: Cluster) -> Lacking:
    """Every expected node has a kubelet that reports, and complains of the network at most.

    Before a CNI exists no node can be Ready.
    """
    sick = [
        f"{_name(node)} ({reason})"
        for node, _ in gpu_nodes(cluster, api.list("/api/v1/nodes"))
        if (reason := _complaint(node)) is not None
    ]
    return f"kubelets are not healthy: {_names(sick)}" if sick else None


def rollout(api: Api, release: Release, cluster: Cluster, nodes: list[Object]) -> Lacking:
    """All Deployments and DaemonSets of the release run their newest template.

    Pods of a node whose kubelet is gone, and of a spot node that was taken away, are not waited for.
    """
    gone = sum(_condition(node, "Ready").get("status") == "Unknown" or _gone(cluster, node) for node in nodes)
    found = 0
    for kind in ("deployments", "daemonsets"):
        for item in api.list(
            f"/apis/apps/v1/namespaces/{release.namespace}/{kind}",
            labelSelector="app.kubernetes.io/managed-by=Helm",
        ):
            if (item["metadata"].get("annotations") or {}).get(_RELEASE_NAME) != release.name:
                continue
            found += 1
            if lacking := _unfinished(item, gone):
                return lacking
    return None if found else f"no workload of release {release.name} in namespace {release.namespace}"


def nic_policy(api: Api, cluster: Cluster) -> Lacking:
    """The NicClusterPolicy is ready, and every expected node offers its RDMA resources."""
    path = f"/apis/mellanox.com/v1alpha1/nicclusterpolicies/{NIC_CLUSTER_POLICY}"
    status = (api.find(path) or {}).get("status", {})
    nodes = api.list("/api/v1/nodes")
    pairs = gpu_nodes(cluster, nodes)
    # While spot nodes are away the operator calls what they, or no others, want not ready.
    late = any(_gone(cluster, node) for node in nodes) or not any(group.rdma != "none" for _, group in pairs)
    if status.get("state") != "ready" and not (late and status.get("state") == "notReady"):
        parts = [
            f"{part['name']} {part['state']}" + (f" ({part['message']})" if part.get("message") else "")
            for part in status.get("appliedStates", ())
            if part["state"] not in ("ready", "ignore")
        ]
        return f"{NIC_CLUSTER_POLICY} is {status.get('state', 'not taken up')}" + (
            f": {', '.join(parts)}" if parts else ""
        )
    for resource in sorted({name for _, group in pairs for name in group.rdma_resources}):
        mine = [(node, group) for node, group in pairs if resource in group.rdma_resources]
        short = [node for node, group in mine if _offered(node, resource) < group.rdma_resources[resource]]
        if short:
            return f"{len(short)} of {len(mine)} nodes lack {resource}: {_names(map(_name, short))}"
    return None


def rail_networks(api: Api, cluster: Cluster) -> Lacking:
    """Every rail network can be attached to pods, and has addresses on each node of its groups."""
    pairs = gpu_nodes(cluster, api.list("/api/v1/nodes"))
    namespace = operator_namespace(cluster)
    for one in cluster.networks:
        space, name = one.attachment
        if one.interface:
            found = api.find(f"/apis/mellanox.com/v1alpha1/macvlannetworks/{name}") or {}
            status = found.get("status", {})
            if status.get("state") != "ready":
                why = f": {status['reason']}" if status.get("reason") else ""
                return f"MacvlanNetwork {name} is {status.get('state', 'not taken up')}{why}"
            pool = api.find(f"/apis/nv-ipam.nvidia.com/v1alpha1/namespaces/{namespace}/ippools/{name}") or {}
            blocks = {block["nodeName"] for block in pool.get("status", {}).get("allocations") or ()}
            mine = [_name(node) for node, group in pairs if one in group.networks]
            if bare := [node for node in mine if node not in blocks]:
                return f"{len(bare)} of {len(mine)} nodes have no addresses of IPPool {name}: {_names(bare)}"
        path = f"/apis/k8s.cni.cncf.io/v1/namespaces/{space}/network-attachment-definitions/{name}"
        if api.find(path) is None:
            return f"there is no NetworkAttachmentDefinition {space}/{name}"
    return None


def _cilium(api: Api, cluster: Cluster, nodes: list[Object]) -> Lacking:
    expected = {_name(node) for node, _ in gpu_nodes(cluster, nodes)}
    # A dead node outside the promise is no reason to hold everything up.
    mine = [n for n in nodes if _name(n) in expected or _condition(n, "Ready").get("status") != "Unknown"]
    items = _list_if_served(api, "/apis/cilium.io/v2/ciliumnodes")
    known = {_name(one) for one in items}
    if unknown := [node for node in mine if _name(node) not in known]:
        return f"{len(unknown)} of {len(mine)} nodes have no CiliumNode: {_names(map(_name, unknown))}"
    if late := [node for node in mine if _condition(node, "Ready").get("status") != "True"]:
        return f"{len(late)} of {len(mine)} nodes are not Ready: {_names(map(_name, late))}"
    return None


def _nfd(api: Api, cluster: Cluster, nodes: list[Object]) -> Lacking:
    pairs = gpu_nodes(cluster, nodes)
    return _unlabelled(pairs, _GPU_ON_PCI)


def _network_operator(api: Api, cluster: Cluster, nodes: list[Object]) -> Lacking:
    pairs = [(node, group) for node, group in gpu_nodes(cluster, nodes) if group.rdma != "none"]
    return _unlabelled(pairs, (_NIC_ON_PCI,))


def _gpu_operator(api: Api, cluster: Cluster, nodes: list[Object]) -> Lacking:
    """ClusterPolicy ready for the right reason, and the GPUs of each node: either alone lies."""
    policy = api.find(f"/apis/nvidia.com/v1/clusterpolicies/{CLUSTER_POLICY}") or {}
    status = policy.get("status", {})
    ready: dict[str, Any] = next((one for one in status.get("conditions", ()) if one["type"] == "Ready"), {})
    if late := _drivers_to_come(api, cluster, nodes):
        return late
    pairs = gpu_nodes(cluster, nodes)
    told = next((one for one in status.get("conditions", ()) if one["status"] == "True"), ready)
    reconciled = status.get("state") == "ready" and ready.get("reason") == "Reconciled"
    # Spot nodes that are away leave operands unready; where there is no other GPU node, nothing is to reconcile.
    excused = ("NoGPUNodes", "NFDLabelsMissing") if not pairs else ()
    if any(_gone(cluster, node) for node in nodes):
        excused = (*excused, "OperandNotReady", "DriverNotReady")
    if not reconciled and told.get("reason") not in excused and not older_drivers(api, cluster, nodes):
        why = ": ".join(filter(None, (told.get("reason"), told.get("message"))))
        state = status.get("state", "not taken up")
        verb = "says ready, but" if state == "ready" else f"is {state}:"
        return f"ClusterPolicy {CLUSTER_POLICY} {verb} {why}" if why else f"ClusterPolicy {CLUSTER_POLICY} is {state}"
    if cluster.dra == "gpus":
        both = [_name(node) for node, _ in pairs if _offered(node, GPU)]
        return f"{len(both)} nodes still offer {GPU}, which DRA is to serve: {_names(both)}" if both else None
    none = [_name(node) for node, group in pairs if group.gpus and not _offered(node, GPU)]
    if none:
        return f"{len(none)} of {len(pairs)} nodes have no {GPU}: {_names(none)}"
    other = [
        f"{_name(node)} ({_offered(node, GPU)} of {group.gpus})"
        for node, group in pairs
        if _offered(node, GPU) != group.gpus
    ]
    return f"{len(other)} of {len(pairs)} nodes offer another number of GPUs: {_names(other)}" if other else None


def older_drivers(api: Api, cluster: Cluster, nodes: list[Object]) -> list[str]:
    """Nodes outside a maintenance whose driver is of an older template than the others', and works.

    The operator is not ready while there are any; that is no reason to wait.
    """
    pods = disruption.driver_pods(api, _namespace(cluster, "gpu-operator"))
    outside = {pod.node for pod in pods} - disruption.maintained(cluster, nodes)
    if any(not pod.ready or (pod.node not in outside and not pod.current) for pod in pods):
        return []
    return sorted(pod.node for pod in pods if pod.node in outside and not pod.current)


def _drivers_to_come(api: Api, cluster: Cluster, nodes: list[Object]) -> Lacking:
    """Every node under maintenance has the newest driver."""
    expected = disruption.maintained(cluster, nodes) if cluster.driver_owner == "operator" else set()
    if not expected:
        return None
    done = {
        one.node
        for one in disruption.driver_pods(api, _namespace(cluster, "gpu-operator"))
        if one.current and one.ready
    }
    late = [
        _name(node)
        + (f" ({state})" if (state := _labels(node).get(disruption.STATE_LABEL, "")) == "upgrade-failed" else "")
        for node in nodes
        if _name(node) in expected - done
    ]
    return (
        f"{len(late)} of {len(expected)} nodes under maintenance have not the new driver: {_names(late)}"
        if late
        else None
    )


def _namespace(cluster: Cluster, key: str) -> str:
    return next(release.namespace for release in bill.releases(cluster) if release.key == key)


def _dra_driver(api: Api, cluster: Cluster, nodes: list[Object]) -> Lacking:
    driver = "gpu.nvidia.com" if cluster.dra == "gpus" else "compute-domain.nvidia.com"
    served = next(one for one in api.get("/apis")["groups"] if one["name"] == "resource.k8s.io")
    version = served["preferredVersion"]["groupVersion"]
    devices: Counter[str] = Counter()
    publishing: set[str] = set()
    for item in api.list(f"/apis/{version}/resourceslices"):
        spec = item["spec"]
        if spec["driver"] == driver and (node := spec.get("nodeName")):
            publishing.add(node)
            devices[node] += sum(_is_gpu(device) for device in spec.get("devices") or ())
    pairs = gpu_nodes(cluster, nodes)
    if silent := [_name(node) for node, _ in pairs if _name(node) not in publishing]:
        return f"{len(silent)} of {len(pairs)} nodes have no ResourceSlice of {driver}: {_names(silent)}"
    short = [
        f"{_name(node)} ({devices[_name(node)]} of {group.gpus})"
        for node, group in pairs
        if cluster.dra == "gpus" and devices[_name(node)] != group.gpus
    ]
    return f"ResourceSlices list another number of GPUs: {_names(short)}" if short else None


_PURPOSES: dict[str, Callable[[Api, Cluster, list[Object]], Lacking]] = {
    "cilium": _cilium,
    "node-feature-discovery": _nfd,
    "network-operator": _network_operator,
    "gpu-operator": _gpu_operator,
    "dra-driver-nvidia-gpu": _dra_driver,
}


# -- reading objects --------------------------------------------------------------------------------------------


def _unfinished(workload: Object, gone: int) -> Lacking:
    """What a Deployment or DaemonSet lacks; ``gone`` pods of a DaemonSet cannot be had."""
    status = workload.get("status", {})
    what = f"{workload['kind']} {_name(workload)}"
    if status.get("observedGeneration", 0) < workload["metadata"].get("generation", 0):
        return f"{what} has not been taken up yet"
    if workload["kind"] == "DaemonSet":
        wanted = max(0, status.get("desiredNumberScheduled", 0) - gone)
        updated, ready = status.get("updatedNumberScheduled", 0), status.get("numberReady", 0)
        if workload["spec"].get("updateStrategy", {}).get("type") == "OnDelete":
            updated = wanted
    else:
        wanted = workload["spec"].get("replicas", 1)
        updated, ready = status.get("updatedReplicas", 0), status.get("readyReplicas", 0)
    if min(updated, ready) < wanted:
        return f"{what} has {min(updated, ready)} of {wanted} pods ready"
    return None


def _gone(cluster: Cluster, node: Object) -> bool:
    """Whether it is a spot node that its platform has taken away."""
    return any(group.holds(node) and group.gone(node) for group in cluster.groups)


def _unlabelled(pairs: Pairs, labels: tuple[str, ...]) -> Lacking:
    bare = [
        node
        for node, _ in pairs
        if not any((node["metadata"].get("labels") or {}).get(key) == "true" for key in labels)
    ]
    return f"{len(bare)} of {len(pairs)} nodes lack label {labels[0]}: {_names(map(_name, bare))}" if bare else None


def _complaint(node: Object) -> str | None:
    ready = _condition(node, "Ready")
    if ready.get("status") == "True":
        return None
    text = str(ready.get("message", ""))
    if ready.get("status") == "False" and ("network" in text.lower() or "cni" in text.lower()):
        return None
    return str(ready.get("reason") or "no report")


def _condition(item: Object, kind: str) -> dict[str, Any]:
    conditions = item.get("status", {}).get("conditions") or ()
    return next((dict(one) for one in conditions if one["type"] == kind), {})


def _is_gpu(device: Object) -> bool:
    """Whether a slice's device is a whole GPU; the first API version kept attributes one level deeper."""
    attributes = (device.get("basic") or device).get("attributes") or {}
    return bool(attributes.get("type", {}).get("string") == "gpu")


def _offered(node: Object, resource: str) -> int:
    return count(node.get("status", {}).get("allocatable", {}).get(resource, "0"))


def _list_if_served(api: Api, path: str) -> list[Object]:
    """A collection, empty where its kind does not exist yet."""
    return list((api.find(path) or {}).get("items") or ())


def _labels(item: Object) -> dict[str, str]:
    return item["metadata"].get("labels") or {}


def _name(item: Object) -> str:
    return str(item["metadata"]["name"])


def _names(names: Iterable[str]) -> str:
    listed = list(names)
    more = len(listed) - _NAMES_SHOWN
    return " ".join(listed[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
