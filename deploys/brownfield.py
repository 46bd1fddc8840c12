"""What is on the cluster already and is not ours: refused by name and place before anything is written.

Two of a kind do not share a node: two CNIs break the pod network, two GPU Operators exchange the driver under each
other, two NFDs take each other's labels away. `adopt` hands a Helm release over; nothing else can be handed over.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from gpuready.charts_values import bill
from gpuready.charts_values.bill import Release
from gpuready.charts_values.errors import RefusedError
from gpuready.charts_values.inventory import Cluster
from gpuready.charts_values.kube import Object

from .helm import Installed
from .objects import FIELD_MANAGER, managers
from .survey import Survey

_NAME, _NAMESPACE = "meta.helm.sh/release-name", "meta.helm.sh/release-namespace"
# The names of other CNIs' DaemonSets: others that only begin so, such as aws-node-termination-handler, are no CNI.
_CNIS = {
    r"kube-flannel(-ds(-[a-z0-9-]+)?)?": "flannel",
    r"(rke2-)?canal": "Canal",
    r"calico-node(-windows)?": "Calico",
    r"weave-net": "Weave Net",
    r"antrea-agent(-windows)?": "Antrea",
    r"kube-router": "kube-router",
    r"kube-ovn-cni": "Kube-OVN",
    r"ovnkube-node(-[a-z0-9-]+)?": "OVN-Kubernetes",
    r"aws-node(-windows)?": "the VPC CNI of AWS",
    r"azure-cni(-[a-z0-9-]+)?": "the Azure CNI",
    r"kindnet": "kindnet",
}
_FLANNEL_NOTE = "flannel.alpha.coreos.com/"
_K3S_ARGUMENTS = "k3s.io/node-args"
# Charts that do what one of ours does, under an older name.
_OLDER_CHARTS = {"nvidia-dra-driver-gpu": "dra-driver-nvidia-gpu"}
# Image (the last part of its name) -> the release that does the same, and the kinds of workload that tell.
_IMAGES = {
    "cilium": ("cilium", ("DaemonSet",)),
    "node-feature-discovery": ("node-feature-discovery", ("Deployment", "DaemonSet")),
    "gpu-operator": ("gpu-operator", ("Deployment",)),
    "k8s-device-plugin": ("gpu-operator", ("DaemonSet",)),
    "network-operator": ("network-operator", ("Deployment",)),
    "dra-driver-nvidia-gpu": ("dra-driver-nvidia-gpu", ("Deployment", "DaemonSet")),
    "k8s-dra-driver-gpu": ("dra-driver-nvidia-gpu", ("Deployment", "DaemonSet")),
}
# What the operators make is theirs.
_OWNERS = ("ClusterPolicy", "NicClusterPolicy", "NicNodePolicy", "GPUCluster", "NVIDIADriver")
_TENANCY = ("management.loft.sh", "storage.loft.sh")


def check(cluster: Cluster, survey: Survey, planned: Sequence[Release]) -> None:
    """Refuse what stands in the way; raises RefusedError."""
    tenants(cluster, survey)
    other_network(cluster, survey)
    for release in planned:
        named_twice(cluster, survey, release, planned)
    workloads(cluster, survey, planned)
    policies(cluster, survey, planned)


def tenants(cluster: Cluster, survey: Survey) -> None:
    """The cluster is not one whose nodes serve clusters of tenants: their GPUs are set up inside those."""
    found = next(
        (f"API group {group}, a platform for virtual clusters" for group in _TENANCY if group in survey.groups), ""
    )
    if survey.virtual_clusters:
        found = f"StatefulSet {survey.virtual_clusters[0]} (label app=vcluster)"
    elif survey.bare_metal_hosts:
        found = f"BareMetalHost {survey.bare_metal_hosts[0]} (metal3.io)"
    if found:
        raise RefusedError(
            f"{survey.server} hosts clusters of tenants: it has {found}; GPUs are set up in the tenant's cluster, so "
            f"give its kubeconfig and context in inventory, cluster {cluster.name!r}"
        )


def other_network(cluster: Cluster, survey: Survey) -> None:
    """No other CNI gives addresses to pods; adopting does not help here."""
    for item in survey.workloads:
        title = next((text for name, text in _CNIS.items() if re.fullmatch(name, item["metadata"]["name"])), None)
        if item["kind"] == "DaemonSet" and title and not _idle(item):
            raise RefusedError(
                f"DaemonSet {_place(item)} is another CNI ({title}); with Cilium beside it pods get addresses of "
                "either, so remove it and its files in /etc/cni/net.d on every node, then run again"
            )
    if any(_no_flannel(node) for node in survey.nodes):
        return
    for node in survey.nodes:
        notes = node["metadata"].get("annotations") or {}
        if any(key.startswith(_FLANNEL_NOTE) for key in notes):
            k3s = _K3S_ARGUMENTS in notes or "+k3s" in survey.version
            how = (
                "start every k3s server with --flannel-backend=none --disable-network-policy"
                if k3s
                else "remove it, and the node's annotations flannel.alpha.coreos.com/*"
            )
            raise RefusedError(
                f"node {node['metadata']['name']} has a pod network of flannel (annotation {_FLANNEL_NOTE}*), "
                f"another CNI than Cilium; {how}, then run again"
            )


def named_twice(cluster: Cluster, survey: Survey, release: Release, planned: Sequence[Release]) -> None:
    """The release is ours, or absent, or taken over; and it is the only one of its chart."""
    mine = survey.installed(release)
    if release.adopted and mine is None:
        raise RefusedError(
            f"`adopt` names {release.key}, but there is no release {release.name} in namespace {release.namespace}; "
            f"{_elsewhere(survey, release) or f'take it out of `adopt`, and {release.title} is installed'}"
        )
    if mine is not None and not release.adopted and not survey.ours(release):
        raise RefusedError(_taken(cluster, release, mine))
    for other in survey.releases.values():
        if _chart(other) == release.chart and not _planned(other.name, other.namespace, planned):
            raise RefusedError(_taken(cluster, release, other))


def workloads(cluster: Cluster, survey: Survey, planned: Sequence[Release]) -> None:
    """Nothing else does what a release of ours does, installed in whatever way."""
    by_key = {release.key: release for release in planned}
    for item in survey.workloads:
        release = by_key.get(_does(item))
        if release is None or any(owner["kind"] in _OWNERS for owner in item["metadata"].get("ownerReferences") or ()):
            continue
        notes = item["metadata"].get("annotations") or {}
        name, namespace = notes.get(_NAME, ""), notes.get(_NAMESPACE, "")
        owner = next((one for one in planned if (one.name, one.namespace) == (name, namespace)), None)
        if owner is not None and (owner.adopted or survey.ours(owner)):
            continue
        what = f"{item['kind']} {_place(item)} does the work of {_work(item, release)} and belongs to"
        if (other := survey.releases.get((namespace, name))) is not None:
            key = _key_of(other)
            how = f"or {_adopt_line(cluster, key, other)}" if key else "since gpuready cannot take this chart over"
            raise RefusedError(
                f"{what} release {name} in namespace {namespace} ({other.chart}), which gpuready did not install; "
                f"remove it, {how}"
            )
        raise RefusedError(
            f"{what} no Helm release; gpuready cannot take it over, so remove it by the tool that installed it, "
            "then run again"
        )


def policies(cluster: Cluster, survey: Survey, planned: Sequence[Release]) -> None:
    """The operators' own objects are ours or taken over: they act on the oldest ClusterPolicy only."""
    keys = {(release.name, release.namespace): release for release in planned}
    for item in survey.gpu_policies:
        notes = item["metadata"].get("annotations") or {}
        name, namespace = notes.get(_NAME, ""), notes.get(_NAMESPACE, "")
        if item["kind"] == "ClusterPolicy" and (name, namespace) in keys:
            continue
        by = f"release {name} in namespace {namespace}" if name else "no Helm release"
        other = survey.releases.get((namespace, name))
        if other is not None and (key := _key_of(other)):
            how = f"so {_adopt_line(cluster, key, other)}"
        else:
            how = "and gpuready cannot take this one over, so have it removed by the tool that made it"
        part = "the driver" if item["kind"] == "ClusterPolicy" else "the DRA driver"
        raise RefusedError(
            f"{item['kind']} {item['metadata']['name']} belongs to {by}; the GPU Operator obeys one policy, {how}; do "
            f"not delete it while pods use GPUs: with it {part} goes from every GPU node"
        )
    nic = survey.nic_policy
    if nic is None or not cluster.wants_rdma or bill.adopts(cluster, bill.NIC_CLUSTER_POLICY):
        return
    if FIELD_MANAGER not in managers(nic):
        raise RefusedError(
            f"NicClusterPolicy {bill.NIC_CLUSTER_POLICY} was not made by gpuready (field managers: "
            f"{', '.join(sorted(managers(nic))) or 'none'}); keep its fields and lay ours over them: "
            f'`adopt`: ["{bill.NIC_CLUSTER_POLICY}"] in inventory, cluster {cluster.name!r}; do not delete it while '
            "pods use RDMA: with it the OFED driver and the RDMA devices go from every node"
        )


# -- words --------------------------------------------------------------------------------------------------------


def _taken(cluster: Cluster, release: Release, other: Installed) -> str:
    return (
        f"{release.title} is there already: release {other.name} in namespace {other.namespace} ({other.chart}), which "
        f"gpuready did not install; remove it, or {_adopt_line(cluster, release.key, other)}"
    )


def _adopt_line(cluster: Cluster, key: str, other: Installed) -> str:
    known = next((release for release in bill.load() if release.key == key), None)
    same = known is not None and (known.name, known.namespace) == (other.name, other.namespace)
    text = key if same else f"{key}={other.name}@{other.namespace}"
    return f'take it over with its values: add "{text}" to `adopt` in inventory, cluster {cluster.name!r}'


def _elsewhere(survey: Survey, release: Release) -> str:
    for other in survey.releases.values():
        if _chart(other) == release.chart:
            text = f"{release.key}={other.name}@{other.namespace}"
            return f'it is release {other.name} in namespace {other.namespace}: write "{text}"'
    return ""


def _work(item: Object, release: Release) -> str:
    return "the GPU Operator's device plugin" if "k8s-device-plugin" in _images(item) else release.title


def _place(item: Object) -> str:
    return f"{item['metadata']['namespace']}/{item['metadata']['name']}"


# -- recognising --------------------------------------------------------------------------------------------------


def _does(item: Object) -> str:
    """The key of the release whose work a workload does; empty where it is something else."""
    labels = item["metadata"].get("labels") or {}
    if item["kind"] == "DaemonSet" and labels.get("k8s-app") == "cilium":
        return "cilium"
    for image in _images(item):
        key, kinds = _IMAGES.get(image, ("", ()))
        if item["kind"] in kinds:
            return key
    return ""


def _images(item: Object) -> list[str]:
    containers = item["spec"]["template"]["spec"].get("containers") or ()
    return [str(one.get("image", "")).partition("@")[0].rpartition("/")[2].partition(":")[0] for one in containers]


def _chart(installed: Installed) -> str:
    """The name of a release's chart, without the version."""
    name = installed.chart
    for known in (*_OLDER_CHARTS, *(release.chart for release in bill.load())):
        version = name.removeprefix(f"{known}-")
        if version != name and version.lstrip("v")[:1].isdigit():
            return _OLDER_CHARTS.get(known, known)
    return name


def _key_of(other: Installed) -> str:
    """Under which name `adopt` takes a release; empty for a chart of others, whose values are not ours to lay over."""
    chart = _chart(other)
    return next((one.key for one in bill.load() if one.chart == chart), "")


def _planned(name: str, namespace: str, planned: Iterable[Release]) -> bool:
    return any((release.name, release.namespace) == (name, namespace) for release in planned)


def _idle(daemonset: Object) -> bool:
    """Whether no node takes it: how a CNI is often switched off."""
    status = daemonset.get("status", {})
    return bool(status.get("observedGeneration")) and not status.get("desiredNumberScheduled")


def _no_flannel(node: Object) -> bool:
    """Whether a k3s server was started without flannel; what an earlier start noted on nodes then means nothing."""
    arguments = (node["metadata"].get("annotations") or {}).get(_K3S_ARGUMENTS, "")
    return "--flannel-backend=none" in arguments or '"--flannel-backend","none"' in arguments.replace(" ", "")
