"""Drafts of inventory entries: what is learned, what is left open, and that nothing is invented."""

from __future__ import annotations

import ast
import copy
from typing import Any

import pytest
from gpuready.charts_values import inventory
from gpuready.charts_values.errors import ApiError, InputError, UnreachableError
from gpuready.validators.evidence import Evidence, ReadFailure
from gpuready.validators.learn import Draft, entry_from

from .conftest import gpu_node

SERVICES = "servicecidrs.networking.k8s.io"


@pytest.fixture
def seen(evidence: Evidence) -> Evidence:
    """Two healthy H100 nodes, and everything else that a draft is made from."""
    for place, one in enumerate(evidence.objects("nodes")):
        one["spec"] = {
            "podCIDRs": [f"10.244.{place}.0/24"],
            "taints": [
                {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"},
                {"key": "node.kubernetes.io/not-ready", "effect": "NoExecute"},
            ],
        }
        one["status"]["capacity"] = dict(one["status"]["allocatable"])
        one["status"]["addresses"] = [{"type": "InternalIP", "address": f"192.0.2.{9 + place}"}]
    evidence.cluster[SERVICES] = [{"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/12"]}}]
    evidence.cluster["clusterpolicies.nvidia.com"] = [{"metadata": {"name": "cluster-policy"}, "spec": {"driver": {}}}]
    return evidence


def parsed(draft: Draft) -> inventory.Cluster:
    """The draft as a reader of inventory takes it: its own text, through `parse`."""
    table: dict[str, Any] = ast.literal_eval("{\n" + draft.to_python() + "}")
    assert table == {draft.name: draft.entry}
    return inventory.parse(draft.name, table[draft.name])


def test_a_healthy_cluster_is_an_entry_that_parses(seen: Evidence) -> None:
    cluster = parsed(entry_from(seen, "lab", context="lab-admin"))
    assert (cluster.context, cluster.cluster_uid) == ("lab-admin", "u-1")
    assert (cluster.service_cidr, cluster.pod_cidr) == ("10.96.0.0/12", "10.244.0.0/23")
    assert (cluster.driver_version, cluster.driver_owner, cluster.dra) == ("580.173.02", "operator", "off")
    (group,) = cluster.groups
    assert (group.name, group.nodes, group.gpu_product) == ("h100", ("gpu-0", "gpu-1"), "NVIDIA-H100-80GB-HBM3")
    assert group.resources == {"nvidia.com/gpu": 8, "rdma/rdma_shared_device_a": 63}
    assert cluster.gpu_taints == [{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}]


def test_what_the_api_does_not_tell_is_a_comment(seen: Evidence) -> None:
    draft = entry_from(seen, "lab")
    text = draft.to_python()
    assert '# "node_cidrs":  # fill in: the networks of the nodes; addresses from 192.0.2.9 to 192.0.2.10' in text
    assert '# "nics":  # fill in: how many rails a node has' in text
    assert '"rdma": "ib",  # fill in: ib or roce; the labels do not tell the link layer' in text
    assert "guess: the smallest network around the nodes' podCIDRs" in text
    assert draft.to_json()["comments"]["groups.h100.nics"].startswith("fill in:")


def test_a_defect_is_named_and_not_promised(seen: Evidence) -> None:
    third = gpu_node("gpu-2")
    third["status"]["capacity"] = {"nvidia.com/gpu": "7", "rdma/rdma_shared_device_a": "63"}
    third["metadata"]["labels"]["nvidia.com/cuda.driver-version.full"] = "570.86.15"
    del third["metadata"]["labels"]["nvidia.com/gpu.product"]
    seen.cluster["nodes"].append(third)
    draft = entry_from(seen, "lab")
    (group,) = parsed(draft).groups
    assert (group.gpus, group.count) == (8, 3)
    assert draft.comments["groups", "h100", "resources"] == "check: gpu-2 has 7 nvidia.com/gpu"
    assert draft.comments["driver_version",] == "check: gpu-2 has 570.86.15"


def test_unlike_nodes_are_groups_of_their_own(seen: Evidence) -> None:
    other = gpu_node("l40s-0")
    other["metadata"]["labels"] |= {"nvidia.com/gpu.product": "NVIDIA-L40S", "karpenter.sh/capacity-type": "spot"}
    other["metadata"]["labels"]["node.kubernetes.io/instance-type"] = "l40s-4x"
    other["status"]["allocatable"] = {"nvidia.com/gpu": "4"}
    seen.cluster["nodes"].append(other)
    groups = {group.name: group for group in parsed(entry_from(seen, "lab")).groups}
    assert sorted(groups) == ["h100", "l40s"]
    assert groups["l40s"].resources == {"nvidia.com/gpu": 4}
    assert (groups["l40s"].capacity, groups["l40s"].count, groups["l40s"].rdma) == ("spot", 1, "none")
    selector = {"node.kubernetes.io/instance-type": "l40s-4x", "karpenter.sh/capacity-type": "spot"}
    assert groups["l40s"].selector == selector


def test_many_nodes_are_described_by_their_machine_type(seen: Evidence) -> None:
    model = seen.objects("nodes")[0]
    model["metadata"]["labels"]["node.kubernetes.io/instance-type"] = "hgx"
    seen.cluster["nodes"] = [copy.deepcopy(model) for _ in range(33)]
    for place, one in enumerate(seen.objects("nodes")):
        one["metadata"]["name"] = f"gpu-{place}"
    (group,) = parsed(entry_from(seen, "lab")).groups
    assert (group.count, group.nodes, group.selector) == (33, (), {"node.kubernetes.io/instance-type": "hgx"})


def test_a_bare_cluster_is_refused_by_the_key_to_fill_in(seen: Evidence) -> None:
    for one in seen.objects("nodes"):
        one["metadata"]["labels"] = {"feature.node.kubernetes.io/pci-10de.present": "true"}
        one["status"]["capacity"] = {"cpu": "192"}
    seen.cluster["clusterpolicies.nvidia.com"] = []
    draft = entry_from(seen, "lab")
    group = draft.entry["groups"]["gpu"]
    assert (group["gpu_product"], group["resources"], draft.entry["driver_version"]) == ("", {"nvidia.com/gpu": 0}, "")
    assert '"driver_version": "",  # fill in:' in draft.to_python()
    with pytest.raises(InputError, match="gpu_product"):
        parsed(draft)


def test_no_gpu_at_all_is_said(seen: Evidence) -> None:
    seen.cluster["nodes"] = [{"metadata": {"name": "cp-0"}, "spec": {"podCIDR": "10.244.0.0/24"}, "status": {}}]
    draft = entry_from(seen, "lab")
    assert '"groups": {  # fill in: no node shows a GPU' in draft.to_python()
    with pytest.raises(InputError, match="groups"):
        parsed(draft)


def test_gpus_that_dra_serves_are_counted_in_slices(seen: Evidence) -> None:
    for one in seen.objects("nodes"):
        del one["status"]["capacity"]["nvidia.com/gpu"]
    devices = [{"name": f"gpu-{number}"} for number in range(8)]
    seen.cluster["resourceslices.resource.k8s.io"] = [
        {"metadata": {"name": name}, "spec": {"driver": "gpu.nvidia.com", "nodeName": name, "devices": devices}}
        for name in ("gpu-0", "gpu-1")
    ]
    cluster = parsed(entry_from(seen, "lab"))
    assert (cluster.dra, cluster.groups[0].gpus) == ("gpus", 8)


@pytest.mark.parametrize(
    ("version", "labels", "platform"),
    [
        ("v1.35.4+k3s1", {"node-role.kubernetes.io/control-plane": "true"}, "k3s"),
        ("v1.35.4", {"vcluster.loft.sh/managed": "true"}, "vcluster"),
        ("v1.35.4", {"node-role.kubernetes.io/control-plane": ""}, "kubeadm"),
        ("v1.35.4-eks-1", {}, "hosted"),
    ],
)
def test_platform(seen: Evidence, version: str, labels: dict[str, str], platform: str) -> None:
    node = seen.objects("nodes")[0]
    node["status"]["nodeInfo"]["kubeletVersion"] = version
    node["metadata"]["labels"] |= labels
    draft = entry_from(seen, "lab")
    assert draft.entry["platform"] == platform
    assert ("platform",) in draft.comments or platform == "k3s"


@pytest.mark.parametrize(
    ("config", "cidr"),
    [
        ({"ipam": "cluster-pool", "cluster-pool-ipv4-cidr": "10.64.0.0/12"}, "10.64.0.0/12"),
        ({"ipam": "kubernetes", "cluster-pool-ipv4-cidr": "10.0.0.0/8"}, "10.244.0.0/23"),
        ({"ipam": "eni"}, ""),
    ],
)
def test_cilium_tells_the_pod_network_where_it_owns_it(seen: Evidence, config: dict[str, str], cidr: str) -> None:
    seen.cluster["configmaps"] = [{"metadata": {"name": "cilium-config"}, "data": config}]
    assert entry_from(seen, "lab").entry["pod_cidr"] == cidr


@pytest.mark.parametrize(
    ("label", "value"),
    [
        ("karpenter.sh/capacity-type", "spot"),
        ("eks.amazonaws.com/capacityType", "SPOT"),
        ("cloud.google.com/gke-spot", "true"),
        ("kubernetes.azure.com/scalesetpriority", "spot"),
    ],
)
@pytest.mark.parametrize("form", ["label", "taint"])
def test_spot_nodes_are_a_group_of_their_own(seen: Evidence, label: str, value: str, form: str) -> None:
    node = seen.objects("nodes")[1]
    if form == "label":
        node["metadata"]["labels"][label] = value
    else:
        node["spec"]["taints"].append({"key": label, "value": value, "effect": "NoSchedule"})
    draft = entry_from(seen, "lab")
    groups = {group.name: group for group in parsed(draft).groups}
    assert {name: group.capacity for name, group in groups.items()} == {"h100": "reserved", "h100-spot": "spot"}
    assert groups["h100"].nodes == ("gpu-0",)
    assert f"by {label}={value}" in draft.comments["groups", "h100-spot", "capacity"]
    if form == "label":
        assert (groups["h100-spot"].count, groups["h100-spot"].selector) == (1, {label: value})
    else:
        assert groups["h100-spot"].nodes == ("gpu-1",)
        assert "come under new names" in draft.comments["groups", "h100-spot", "nodes"]
        assert {"key": label, "value": value, "effect": "NoSchedule"} in groups["h100-spot"].taints


def workload(name: str, namespace: str, chart: str, release: str = "") -> dict[str, Any]:
    """A DaemonSet; of a Helm release where ``release`` names one as ``name@namespace``."""
    meta: dict[str, Any] = {"name": name, "namespace": namespace, "labels": {"helm.sh/chart": chart}}
    if release:
        helm, _, place = release.partition("@")
        meta["annotations"] = {"meta.helm.sh/release-name": helm, "meta.helm.sh/release-namespace": place}
    return {"metadata": meta}


def test_what_others_installed_is_to_be_adopted(seen: Evidence) -> None:
    """A hosted cluster that comes with Cilium and the GPU Operator."""
    seen.cluster["daemonsets.apps"] = [
        workload("cilium", "kube-system", "cilium-1.18.2", "cilium@kube-system"),
        workload("worker", "ops", "node-feature-discovery-0.19.0", "nvidia@ops"),
        workload("nvidia", "ops", "gpu-operator-v26.7.0", "nvidia@ops"),
        workload("prometheus", "monitoring", "kube-prometheus-stack-80.1.0", "prometheus@monitoring"),
    ]
    seen.cluster["deployments.apps"] = []
    draft = entry_from(seen, "lab")
    # NFD came as a part of the GPU Operator: it is of that release.
    assert draft.entry["adopt"] == ["cilium:1.18.2", "gpu-operator=nvidia@ops"]
    assert "takes them over with the values they have" in draft.comments["adopt",]
    assert "Helm release prometheus 80.1.0 in monitoring." in draft.notes
    parsed(draft)


def test_what_gpuready_installed_is_not(seen: Evidence) -> None:
    seen.cluster["daemonsets.apps"] = [workload("cilium", "kube-system", "cilium-1.18.2", "cilium@kube-system")]
    seen.cluster["deployments.apps"] = []
    seen.cluster["nicclusterpolicies.mellanox.com"] = [{"metadata": {"name": "nic-cluster-policy"}}]
    record = {"cilium": "cilium@kube-system", "network-operator": "network-operator@nvidia-network-operator"}
    seen.cluster["gpuready-installs"] = [{"metadata": {"name": "gpuready-installs"}, "data": record}]
    assert "adopt" not in entry_from(seen, "lab").entry
    seen.cluster["gpuready-installs"] = []
    seen.failures["gpuready-installs"] = ReadFailure("forbidden", "HTTP 403")
    draft = entry_from(seen, "lab")
    assert draft.entry["adopt"] == ["cilium:1.18.2", "nic-cluster-policy"]
    assert "gpuready-installs could not be read" in draft.comments["adopt",]


def test_what_stands_in_the_way_is_a_note(seen: Evidence) -> None:
    seen.cluster["daemonsets.apps"] = [workload("cilium", "kube-system", "")]
    for one in seen.objects("nodes"):
        one["metadata"]["annotations"] = {"flannel.alpha.coreos.com/backend-type": "vxlan"}
    notes = " ".join(entry_from(seen, "lab").notes)
    assert "Cilium in kube-system belongs to no Helm release; the installer refuses beside it." in notes
    assert "2 nodes have a pod network of flannel" in notes


RAIL = {
    "metadata": {"name": "rail-0"},
    "spec": {"networkNamespace": "default", "master": "ens1", "ipam": '{"type": "nv-ipam", "poolName": "rail-0"}'},
}
POOL = {"metadata": {"name": "rail-0", "namespace": "nvidia-network-operator"}, "spec": {"subnet": "172.16.0.0/16"}}


@pytest.fixture
def roce(seen: Evidence) -> Evidence:
    """The two nodes with Ethernet NICs."""
    for one in seen.objects("nodes"):
        one["metadata"]["labels"]["feature.node.kubernetes.io/pci-0200_15b3.present"] = "true"
    return seen


@pytest.mark.parametrize("told", [True, False])
def test_the_rails_that_gpuready_made(roce: Evidence, told: bool) -> None:
    if not told:  # NFD labels the vendor alone, as gpuready configures it
        for one in roce.objects("nodes"):
            del one["metadata"]["labels"]["feature.node.kubernetes.io/pci-0200_15b3.present"]
    roce.cluster["macvlannetworks.mellanox.com"] = [RAIL]
    roce.cluster["ippools.nv-ipam.nvidia.com"] = [POOL]
    (group,) = parsed(entry_from(roce, "lab")).groups
    assert group.rdma == "roce"
    assert [(one.name, one.interface, one.cidr) for one in group.networks] == [("rail-0", "ens1", "172.16.0.0/16")]


def test_the_rails_that_others_made(roce: Evidence) -> None:
    config = '{"type": "host-device", "device": "ens1"}'
    roce.cluster["network-attachment-definitions.k8s.cni.cncf.io"] = [
        {"metadata": {"name": "rail-0", "namespace": "ml"}, "spec": {"config": config}},
        {"metadata": {"name": "storage", "namespace": "ml"}, "spec": {"config": '{"type": "bridge"}'}},
    ]
    draft = entry_from(roce, "lab")
    (group,) = parsed(draft).groups
    assert [(one.name, one.interface) for one in group.networks] == [("ml/rail-0", "")]
    assert draft.comments["groups", "h100", "networks"].startswith("check: which of these networks are rails")


def test_rails_that_are_not_known_are_left_open(roce: Evidence) -> None:
    draft = entry_from(roce, "lab")
    assert "networks" not in draft.entry["groups"]["h100"]
    assert draft.comments["groups", "h100", "networks"].startswith("fill in: interface and cidr of each rail")
    parsed(draft)


def test_a_service_network_that_is_not_served_is_hinted_at(seen: Evidence) -> None:
    del seen.cluster[SERVICES]
    seen.failures[SERVICES] = ReadFailure("absent", "404")
    seen.cluster["services"] = [{"metadata": {"name": "kubernetes"}, "spec": {"clusterIP": "10.43.0.1"}}]
    draft = entry_from(seen, "lab")
    assert draft.entry["service_cidr"] == ""
    assert "service default/kubernetes has 10.43.0.1" in draft.comments["service_cidr",]
    with pytest.raises(InputError, match="service_cidr"):
        parsed(draft)


@pytest.mark.parametrize(
    ("server", "why"),
    [
        ("https://127.0.0.1:6443", "127.0.0.1 is this machine"),
        ("https://rancher.example/k8s/clusters/c-1", "rancher.example is a proxy before it"),
        ("https://10.0.0.1:6443/", None),
    ],
)
def test_an_api_server_that_nodes_do_not_reach_so_is_asked_for(seen: Evidence, server: str, why: str | None) -> None:
    seen.about["server"] = server
    comment = entry_from(seen, "lab").comments.get(("api_server",))
    assert comment == (why and f"fill in: host:port of the API server as nodes reach it; {why}")


def test_extended_resources_are_read_in_every_notation(seen: Evidence) -> None:
    for one in seen.objects("nodes"):
        one["status"]["capacity"]["rdma/rdma_shared_device_a"] = "1k"
    assert parsed(entry_from(seen, "lab")).groups[0].resources["rdma/rdma_shared_device_a"] == 1000


def test_what_may_not_be_read_is_said(seen: Evidence) -> None:
    seen.failures[SERVICES] = ReadFailure("forbidden", "HTTP 403")
    del seen.cluster[SERVICES]
    draft = entry_from(seen, "lab")
    assert f"Could not be read: {SERVICES}." in draft.notes
    assert "could not be read (forbidden)" in draft.comments["service_cidr",]


@pytest.mark.parametrize(("kind", "error"), [("forbidden", ApiError), ("unreachable", UnreachableError)])
def test_without_nodes_there_is_no_draft(seen: Evidence, kind: str, error: type[Exception]) -> None:
    seen.failures["nodes"] = ReadFailure(kind, "said so")
    with pytest.raises(error, match="said so"):
        entry_from(seen, "lab")
