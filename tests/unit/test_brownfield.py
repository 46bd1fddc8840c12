"""What stands in the way on a used cluster: each refusal with its line, and its harmless twin."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from gpuready.charts_values import bill, inventory
from gpuready.charts_values.errors import RefusedError
from gpuready.charts_values.inventory import Cluster
from gpuready.deploys import brownfield
from gpuready.deploys.helm import Installed
from gpuready.deploys.survey import Survey

from .test_preflight import ENTRY, HEALTHY, node

Object = dict[str, Any]


def cluster(*adopt: str) -> Cluster:
    return inventory.parse("lab", {**ENTRY, "adopt": list(adopt)})


def workload(kind: str, place: str, image: str, *, desired: int = 2, **meta: Any) -> Object:
    namespace, name = place.split("/")
    status = {"observedGeneration": 1, "desiredNumberScheduled": desired}
    template = {"spec": {"containers": [{"name": "c", "image": image}]}}
    return {
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace, **meta},
        "spec": {"template": template},
        "status": status,
    }


def of_release(name: str, namespace: str) -> dict[str, Any]:
    return {"annotations": {"meta.helm.sh/release-name": name, "meta.helm.sh/release-namespace": namespace}}


def installed(name: str, namespace: str, chart: str) -> dict[tuple[str, str], Installed]:
    return {(namespace, name): Installed(name, namespace, 1, "deployed", chart)}


def noted(key: str, value: str, name: str = "gpu-0") -> Object:
    item = node(name)
    item["metadata"]["annotations"] = {key: value}
    return item


def policy(kind: str, name: str, **meta: Any) -> Object:
    return {"kind": kind, "metadata": {"name": name, **meta}, "spec": {}}


FLANNEL = workload("DaemonSet", "kube-flannel/kube-flannel-ds", "docker.io/flannel/flannel:v0.27.4")
NFD_IMAGE = "registry.k8s.io/nfd/node-feature-discovery:v0.17.3"
PLUGIN = workload("DaemonSet", "kube-system/plugin-ds", "nvcr.io/nvidia/k8s-device-plugin:v0.17.1")
DRA_IMAGE = "nvcr.io/nvidia/k8s-dra-driver-gpu:v25.8.1"

# What is there, and what is said.
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "flannel": (
        {"workloads": (FLANNEL,)},
        "DaemonSet kube-flannel/kube-flannel-ds is another CNI (flannel); with Cilium beside it",
    ),
    "flannel inside k3s": (
        {"nodes": (noted("flannel.alpha.coreos.com/public-ip", "192.0.2.7"),), "version": "v1.35.4+k3s1"},
        "node gpu-0 has a pod network of flannel (annotation flannel.alpha.coreos.com/*), another CNI than Cilium; "
        "start every k3s server with --flannel-backend=none --disable-network-policy",
    ),
    "calico": (
        {"workloads": (workload("DaemonSet", "calico-system/calico-node", "quay.io/calico/node:v3.31.1"),)},
        "DaemonSet calico-system/calico-node is another CNI (Calico)",
    ),
    "weave": (
        {"workloads": (workload("DaemonSet", "kube-system/weave-net", "weaveworks/weave-kube:2.8.1"),)},
        "DaemonSet kube-system/weave-net is another CNI (Weave Net)",
    ),
    "cilium of our name by somebody else": (
        {"releases": installed("cilium", "kube-system", "cilium-1.18.3")},
        "Cilium is there already: release cilium in namespace kube-system (cilium-1.18.3), which gpuready did not "
        "install; remove it, or take it over with its values: add \"cilium\" to `adopt` in inventory, cluster 'lab'",
    ),
    "cilium elsewhere": (
        {"releases": installed("net", "cilium", "cilium-1.19.6")},
        "release net in namespace cilium (cilium-1.19.6), which gpuready did not install; remove it, or take it over "
        'with its values: add "cilium=net@cilium"',
    ),
    "cilium without helm": (
        {"workloads": (workload("DaemonSet", "kube-system/cilium", "quay.io/cilium/cilium:v1.18.3"),)},
        "DaemonSet kube-system/cilium does the work of Cilium and belongs to no Helm release; gpuready cannot take it "
        "over, so remove it by the tool that installed it",
    ),
    "nfd elsewhere": (
        {"releases": installed("nfd", "nfd", "node-feature-discovery-0.17.3")},
        'add "node-feature-discovery=nfd@nfd" to `adopt`',
    ),
    "nfd without helm": (
        {"workloads": (workload("Deployment", "nfd/nfd-master", NFD_IMAGE),)},
        "Deployment nfd/nfd-master does the work of NFD and belongs to no Helm release",
    ),
    "nfd of another chart": (
        {
            "releases": installed("features", "infra", "our-base-2.1.0"),
            "workloads": (workload("DaemonSet", "infra/nfd-worker", NFD_IMAGE, **of_release("features", "infra")),),
        },
        "DaemonSet infra/nfd-worker does the work of NFD and belongs to release features in namespace infra "
        "(our-base-2.1.0), which gpuready did not install; remove it, since gpuready cannot take this chart over",
    ),
    "gpu operator elsewhere": (
        {"releases": installed("gpu-operator-170000", "nvidia", "gpu-operator-v25.3.0")},
        "GPU Operator is there already: release gpu-operator-170000 in namespace nvidia (gpu-operator-v25.3.0), which "
        "gpuready did not install; remove it, or take it over with its values: add "
        '"gpu-operator=gpu-operator-170000@nvidia"',
    ),
    "gpu operator without helm": (
        {"workloads": (workload("Deployment", "operators/gpu-operator", "nvcr.io/nvidia/gpu-operator:v25.3.0"),)},
        "Deployment operators/gpu-operator does the work of GPU Operator and belongs to no Helm release",
    ),
    "device plugin alone": (
        {"workloads": (PLUGIN,)},
        "DaemonSet kube-system/plugin-ds does the work of the GPU Operator's device plugin and belongs to",
    ),
    "cluster policy of nobody": (
        {"gpu_policies": (policy("ClusterPolicy", "gpu-cluster-policy"),)},
        "ClusterPolicy gpu-cluster-policy belongs to no Helm release; the GPU Operator obeys one policy, and gpuready "
        "cannot take this one over, so have it removed by the tool that made it; do not delete it while pods use GPUs: "
        "with it the driver goes from every GPU node",
    ),
    "gpu cluster": (
        {"gpu_policies": (policy("GPUCluster", "gpus"),)},
        "GPUCluster gpus belongs to no Helm release",
    ),
    "network operator elsewhere": (
        {"releases": installed("network-operator", "nvidia", "network-operator-25.7.0")},
        'add "network-operator=network-operator@nvidia" to `adopt`',
    ),
    "nic policy of somebody": (
        {"nic_policy": policy("NicClusterPolicy", "nic-cluster-policy", managedFields=[{"manager": "kubectl-edit"}])},
        "NicClusterPolicy nic-cluster-policy was not made by gpuready (field managers: kubectl-edit); keep its fields "
        "and lay ours over them: `adopt`: [\"nic-cluster-policy\"] in inventory, cluster 'lab'; do not delete it while "
        "pods use RDMA: with it the OFED driver and the RDMA devices go from every node",
    ),
    "dra driver of its older name": (
        {"releases": installed("dra", "dra", "nvidia-dra-driver-gpu-25.8.1")},
        'add "dra-driver-nvidia-gpu=dra@dra" to `adopt`',
    ),
    "dra driver without helm": (
        {"workloads": (workload("DaemonSet", "dra/plugin", DRA_IMAGE),)},
        "DaemonSet dra/plugin does the work of DRA driver and belongs to no Helm release",
    ),
    "host of virtual clusters": (
        {"virtual_clusters": ("team-a/team-a",)},
        "hosts clusters of tenants: it has StatefulSet team-a/team-a (label app=vcluster); GPUs are set up in the "
        "tenant's cluster, so give its kubeconfig and context in inventory, cluster 'lab'",
    ),
    "host of bare metal": (
        {"bare_metal_hosts": ("metal/server-01",)},
        "it has BareMetalHost metal/server-01 (metal3.io)",
    ),
    "platform of virtual clusters": (
        {"groups": frozenset({"apps", "management.loft.sh"})},
        "it has API group management.loft.sh, a platform for virtual clusters",
    ),
}

RELEASES = {
    ("kube-system", "cilium"): Installed("cilium", "kube-system", 3, "deployed", "cilium-1.19.6"),
    ("gpu-operator", "gpu-operator"): Installed("gpu-operator", "gpu-operator", 1, "deployed", "gpu-operator-v26.7.0"),
}
OURS = {"cilium": "cilium@kube-system", "gpu-operator": "gpu-operator@gpu-operator"}

# What is there and in nobody's way.
HARMLESS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "what we installed": {
        "releases": RELEASES,
        "installs": OURS,
        "workloads": (
            workload(
                "DaemonSet",
                "kube-system/cilium",
                "quay.io/cilium/cilium:v1.19.6",
                labels={"k8s-app": "cilium"},
                **of_release("cilium", "kube-system"),
            ),
            workload(
                "DaemonSet",
                "gpu-operator/nvidia-device-plugin-daemonset",
                "nvcr.io/nvidia/k8s-device-plugin:v0.20.0",
                ownerReferences=[{"kind": "ClusterPolicy"}],
            ),
            # Somebody set nfd.enabled=true on our release: a value to put right, not a stranger.
            workload("DaemonSet", "gpu-operator/nfd-worker", NFD_IMAGE, **of_release("gpu-operator", "gpu-operator")),
        ),
        "gpu_policies": (policy("ClusterPolicy", "cluster-policy", **of_release("gpu-operator", "gpu-operator")),),
    },
    "our release whose record is gone": {
        "installs": OURS,
        "workloads": (
            workload("DaemonSet", "kube-system/cilium", "cilium/cilium:v1", **of_release("cilium", "kube-system")),
        ),
    },
    "a CNI that is switched off": {
        "workloads": (workload("DaemonSet", "kube-system/aws-node", "eks/amazon-k8s-cni:v1.21", desired=0),)
    },
    "names that begin like a CNI's": {
        "workloads": tuple(
            workload("DaemonSet", f"kube-system/{name}", "example.org/agent:v1")
            for name in (
                *("aws-node-termination-handler", "aws-node-exporter", "calico-node-metrics", "canal-server"),
                *("kube-router-exporter", "kindnetd-metrics", "weave-net-npc", "kube-flannel-exporter"),
            )
        )
    },
    "notes of a flannel that was": {
        "nodes": (
            noted("flannel.alpha.coreos.com/public-ip", "192.0.2.7"),
            noted("k3s.io/node-args", '["server","--flannel-backend","none"]', "gpu-1"),
        )
    },
    "other people's releases": {
        "releases": installed("web", "shop", "gpu-operator-dashboard-1.0.0"),
        "workloads": (workload("Deployment", "shop/web", "example.org/shop/web:v1"),),
    },
    "our NIC policy": {
        "nic_policy": policy(
            "NicClusterPolicy",
            "nic-cluster-policy",
            managedFields=[{"manager": "gpuready"}, {"manager": "kubectl-edit"}],
        )
    },
}


def check(promised: Cluster, changes: dict[str, Any]) -> None:
    brownfield.check(promised, dataclasses.replace(HEALTHY, **changes), bill.releases(promised))


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("kube-flannel", "flannel"),
        ("kube-flannel-ds-arm64", "flannel"),
        ("canal", "Canal"),
        ("rke2-canal", "Canal"),
        ("calico-node-windows", "Calico"),
        ("antrea-agent", "Antrea"),
        ("kube-router", "kube-router"),
        ("kube-ovn-cni", "Kube-OVN"),
        ("ovnkube-node", "OVN-Kubernetes"),
        ("aws-node", "the VPC CNI of AWS"),
        ("aws-node-windows", "the VPC CNI of AWS"),
        ("azure-cni-overlay", "the Azure CNI"),
        ("kindnet", "kindnet"),
    ],
)
def test_each_cni_is_known_by_its_daemonset(name: str, title: str) -> None:
    with pytest.raises(RefusedError) as refused:
        check(cluster(), {"workloads": (workload("DaemonSet", f"kube-system/{name}", "x/y:v1"),)})
    assert f"DaemonSet kube-system/{name} is another CNI ({title})" in str(refused.value)


def test_a_policy_of_a_release_is_adopted_with_it() -> None:
    """Whose policy it is may be read where the release itself does not come up first."""
    there = installed("gpu-operator-170000", "nvidia", "gpu-operator-v25.3.0")
    seen = dataclasses.replace(
        HEALTHY,
        releases=there,
        gpu_policies=(policy("ClusterPolicy", "cluster-policy", **of_release("gpu-operator-170000", "nvidia")),),
    )
    with pytest.raises(RefusedError) as refused:
        brownfield.policies(cluster(), seen, bill.releases(cluster()))
    assert str(refused.value) == (
        "ClusterPolicy cluster-policy belongs to release gpu-operator-170000 in namespace nvidia; the GPU Operator "
        'obeys one policy, so take it over with its values: add "gpu-operator=gpu-operator-170000@nvidia" to `adopt` '
        "in inventory, cluster 'lab'; do not delete it while pods use GPUs: with it the driver goes from every GPU node"
    )
    assert "kubectl delete" not in str(refused.value)


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name_and_place(case: str) -> None:
    changes, line = REFUSED[case]
    with pytest.raises(RefusedError) as refused:
        check(cluster(), changes)
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("case", HARMLESS)
def test_nobody_is_refused_without_need(case: str) -> None:
    check(cluster(), HARMLESS[case])


@pytest.mark.parametrize("case", ["flannel", "flannel inside k3s", "calico", "weave", "cilium without helm"])
def test_a_second_network_is_refused_whatever_is_adopted(case: str) -> None:
    theirs = {("kube-system", "cilium"): Installed("cilium", "kube-system", 1, "deployed", "cilium-1.19.6")}
    changes, line = REFUSED[case]
    with pytest.raises(RefusedError) as refused:
        check(cluster("cilium"), {"releases": theirs, **changes})
    assert line in str(refused.value)


def test_an_adopted_release_and_its_nfd_stand_in_nobodys_way() -> None:
    name, namespace = "gpu-operator-170000", "nvidia"
    there: dict[str, Any] = {
        "releases": installed(name, namespace, "gpu-operator-v25.3.0"),
        "workloads": (
            workload(
                "Deployment", "nvidia/gpu-operator", "nvcr.io/nvidia/gpu-operator:v1", **of_release(name, namespace)
            ),
            workload("DaemonSet", "nvidia/nfd-worker", NFD_IMAGE, **of_release(name, namespace)),
        ),
        "gpu_policies": (policy("ClusterPolicy", "cluster-policy", **of_release(name, namespace)),),
    }
    check(cluster(f"gpu-operator={name}@{namespace}"), there)
    with pytest.raises(RefusedError, match="GPU Operator is there already"):
        check(cluster(), there)


def test_what_is_to_be_adopted_must_be_there() -> None:
    with pytest.raises(RefusedError, match="there is no release cilium in namespace kube-system; take it out"):
        check(cluster("cilium"), {})
    elsewhere = {"releases": installed("net", "cilium", "cilium-1.19.6")}
    with pytest.raises(RefusedError, match='it is release net in namespace cilium: write "cilium=net@cilium"'):
        check(cluster("cilium"), elsewhere)


def test_a_nic_policy_can_be_taken_over() -> None:
    check(cluster("nic-cluster-policy"), REFUSED["nic policy of somebody"][0])


def test_the_record_is_of_a_name_and_a_place() -> None:
    seen: Survey = dataclasses.replace(HEALTHY, installs={"cilium": "cilium@elsewhere"}, releases=RELEASES)
    with pytest.raises(RefusedError, match="Cilium is there already"):
        check(cluster(), {"installs": seen.installs, "releases": seen.releases})
