"""Every read-only check: silent on a healthy cluster, and naming what was broken."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from gpuready.charts_values import inventory
from gpuready.validators import registry
from gpuready.validators.evidence import Evidence
from gpuready.validators.expected import Expected
from gpuready.validators.judge import judge
from gpuready.validators.model import Result, Status

from .conftest import entry, gpu_node

Edit = Callable[[Evidence], None]


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
        "spec": {"replicas": 1, "template": {"spec": {"containers": [{"image": f"repo/{name}:{tag or 'v1'}"}]}}},
        "status": counts,
    }


def operand(name: str) -> dict[str, Any]:
    return {
        "kind": "DaemonSet",
        "apiVersion": "apps/v1",
        "metadata": {"name": name, "namespace": "gpu-operator"},
        "spec": {"template": {"spec": {"containers": [{"image": "x:y"}]}}},
        "status": {"desiredNumberScheduled": 2, "numberReady": 2},
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


@pytest.fixture
def healthy(evidence: Evidence) -> Evidence:
    """All that a healthy H100 cluster shows."""
    nfd = workload("Deployment", "node-feature-discovery", "node-feature-discovery-master",
                   "node-feature-discovery", "node-feature-discovery-0.19.0")  # fmt: skip
    nfd["metadata"]["labels"] |= {"app.kubernetes.io/name": "node-feature-discovery", "role": "master"}
    operands = (
        *("nvidia-driver-daemonset", "nvidia-container-toolkit-daemonset", "nvidia-device-plugin-daemonset"),
        *("nvidia-operator-validator", "gpu-feature-discovery", "nvidia-dcgm-exporter", "nvidia-mig-manager"),
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
    evidence.cluster |= {
        "namespaces": [{"metadata": {"name": "kube-system", "uid": "u-1"}}],
        "pods": [],
        "configmaps": [{"metadata": {"name": "cilium-config"}, "data": {"cni-exclusive": "false"}}],
        "ciliumnodes.cilium.io": [{"metadata": {"name": name}} for name in ("gpu-0", "gpu-1")],
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
            *(operand(name) for name in operands),
        ],
        "resourceslices.resource.k8s.io": [
            slice_of(name, "compute-domain.nvidia.com", 1) for name in ("gpu-0", "gpu-1")
        ],
        "deviceclasses.resource.k8s.io": [],
    }  # fmt: skip
    return evidence


def results(expected: Expected, evidence: Evidence) -> tuple[Result, ...]:
    return judge(expected, evidence, list(registry.of_phase("check")))


def bad(expected: Expected, evidence: Evidence) -> list[Result]:
    return [one for one in results(expected, evidence) if one.status.rank >= Status.WARN.rank]


def test_a_healthy_cluster_raises_nothing(expected: Expected, healthy: Evidence) -> None:
    assert [(one.id, one.finding.cause, one.finding.detail) for one in bad(expected, healthy)] == []
    judged = {one.check for one in results(expected, healthy) if one.status is Status.PASS}
    assert judged == {one.id for one in registry.of_phase("check")}


def node(evidence: Evidence, name: str = "gpu-1") -> dict[str, Any]:
    found = evidence.find("nodes", name)
    assert found is not None
    return found


def drop(key: str, name: str) -> Edit:
    def edit(evidence: Evidence) -> None:
        evidence.cluster[key] = [one for one in evidence.cluster[key] if one["metadata"]["name"] != name]

    return edit


def on_node(change: Callable[[dict[str, Any]], None]) -> Edit:
    return lambda evidence: change(node(evidence))


def label(name: str, value: str | None) -> Edit:
    def change(one: dict[str, Any]) -> None:
        one["metadata"]["labels"].pop(name, None)
        if value is not None:
            one["metadata"]["labels"][name] = value

    return on_node(change)


def offers(resource: str, count: str) -> Edit:
    return on_node(lambda one: one["status"]["allocatable"].update({resource: count}))


def unready(one: dict[str, Any], **more: str) -> None:
    one["status"]["conditions"] = [{"type": "Ready", "status": "False", "reason": "KubeletNotReady", **more}]


def policy(**status: Any) -> Edit:
    return lambda evidence: evidence.cluster["clusterpolicies.nvidia.com"][0]["status"].update(status)


def falsely_ready(reason: str) -> Edit:
    return policy(conditions=[{"type": "Ready", "status": "True", "reason": reason}])


def operand_status(name: str, **counts: int) -> Edit:
    def edit(evidence: Evidence) -> None:
        found = evidence.find("daemonsets.apps", name)
        assert found is not None
        found["status"].update(counts)

    return edit


def rename_nic_policy(evidence: Evidence) -> None:
    evidence.cluster["nicclusterpolicies.mellanox.com"][0]["metadata"]["name"] = "my-policy"


def part_not_ready(evidence: Evidence) -> None:
    status = evidence.cluster["nicclusterpolicies.mellanox.com"][0]["status"]
    status["appliedStates"][1] |= {"state": "notReady", "message": "2 of 3"}
    status["state"] = "notReady"


def second_nfd(evidence: Evidence) -> None:
    found = evidence.find("deployments.apps", "node-feature-discovery-master")
    assert found is not None
    twin = copy.deepcopy(found)
    twin["metadata"] |= {"namespace": "gpu-operator", "annotations": {}}
    evidence.cluster["deployments.apps"].append(twin)


def another_chart(evidence: Evidence) -> None:
    found = evidence.find("deployments.apps", "gpu-operator")
    assert found is not None
    found["metadata"]["labels"]["helm.sh/chart"] = "gpu-operator-v26.3.0"


def pods_down(evidence: Evidence) -> None:
    found = evidence.find("deployments.apps", "network-operator")
    assert found is not None
    found["status"] = {}


def exclusive(evidence: Evidence) -> None:
    evidence.cluster["configmaps"][0]["data"]["cni-exclusive"] = "true"


def both_owners(evidence: Evidence) -> None:
    evidence.cluster["resourceslices.resource.k8s.io"].append(slice_of("gpu-1", "gpu.nvidia.com", 8))


def second_policy(evidence: Evidence) -> None:
    other = ready_policy("mine")
    other["status"] = {"state": "ignored"}
    evidence.cluster["clusterpolicies.nvidia.com"].append(other)


def cordon(one: dict[str, Any]) -> None:
    one["spec"]["unschedulable"] = True


def old_kubelet(one: dict[str, Any]) -> None:
    one["status"]["nodeInfo"]["kubeletVersion"] = "v1.31.9"


FAULTS: list[tuple[str, Edit, str, str, str]] = [
    ("another cluster", lambda e: e.about.update(uid="u-2"), "cluster.identity", "AnotherCluster", "lab"),
    ("node missing", drop("nodes", "gpu-1"), "nodes.present", "NodeMissing", "gpu-1"),
    ("node not ready", on_node(unready), "nodes.ready", "NotReady", "gpu-1"),
    ("cordoned", on_node(cordon), "nodes.schedulable", "Cordoned", "gpu-1"),
    ("release gone", drop("deployments.apps", "gpu-operator"), "release.installed", "ReleaseMissing",
     "gpu-operator/gpu-operator"),
    ("pods down", pods_down, "release.installed", "PodsNotReady", "nvidia-network-operator/network-operator"),
    ("other version", another_chart, "release.version", "VersionDiffers", "gpu-operator/gpu-operator"),
    ("cilium lost a node", drop("ciliumnodes.cilium.io", "gpu-1"), "cilium.nodes", "NoCiliumNode", "gpu-1"),
    ("cni exclusive", exclusive, "cilium.exclusive", "CniExclusive", "kube-system/cilium-config"),
    ("two NFDs", second_nfd, "nfd.single", "SeveralNfd", "lab"),
    ("no PCI label", label("feature.node.kubernetes.io/pci-10de.present", None), "nfd.labels", "NoPciLabel", "gpu-1"),
    ("no NIC policy", drop("nicclusterpolicies.mellanox.com", "nic-cluster-policy"), "network.policy", "NoPolicy",
     "nic-cluster-policy"),
    ("NIC policy misnamed", rename_nic_policy, "network.policy", "WrongName", "nic-cluster-policy"),
    ("NIC policy part", part_not_ready, "network.policy", "PolicyNotReady", "nic-cluster-policy"),
    ("no RDMA", offers("rdma/rdma_shared_device_a", "0"), "rdma.allocatable", "FewerThanExpected", "gpu-1"),
    ("policy not ready", policy(state="notReady"), "gpu.policy", "PolicyNotReady", "cluster-policy"),
    ("ready without NFD", falsely_ready("NFDLabelsMissing"), "gpu.policy", "FalselyReady", "cluster-policy"),
    ("ready without GPUs", falsely_ready("NoGPUNodes"), "gpu.policy", "FalselyReady", "cluster-policy"),
    ("second policy", second_policy, "gpu.policy", "SecondPolicy", "mine"),
    ("operand wants none", operand_status("nvidia-driver-daemonset", desiredNumberScheduled=0, numberReady=0),
     "gpu.operands", "WantsTooFewPods", "nvidia-driver-daemonset"),
    ("operand not ready", operand_status("nvidia-container-toolkit-daemonset", numberReady=1),
     "gpu.operands", "PodsNotReady", "nvidia-container-toolkit-daemonset"),
    ("7 of 8", offers("nvidia.com/gpu", "7"), "gpu.allocatable", "FewerThanExpected", "gpu-1"),
    ("16 of 8", offers("nvidia.com/gpu", "16"), "gpu.allocatable", "MoreThanExpected", "gpu-1"),
    ("other product", label("nvidia.com/gpu.product", "NVIDIA-A100"), "gpu.product", "ProductDiffers", "gpu-1"),
    ("old kubelet", on_node(old_kubelet), "versions.kubelet", "VersionSkew", "gpu-1"),
    ("other driver", label("nvidia.com/cuda.driver-version.full", "570.1"), "versions.driver", "DriverDiffers",
     "gpu-1"),
    ("Kubernetes too new", lambda e: e.about.update(server_version="v1.36.2"), "versions.kubernetes",
     "OutsideRange", "lab"),
    ("DRA driver bound", label("nvidia.com/cuda.driver-version.full", "570.1"), "dra.rules", "BelowBound", "lab"),
    ("no slice", drop("resourceslices.resource.k8s.io", "gpu-1-compute-domain.nvidia.com"), "dra.slices", "NoSlice",
     "gpu-1"),
    ("two owners", both_owners, "dra.owner", "TwoOwners", "gpu-1"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("edit", "check", "reason", "subject"), [row[1:] for row in FAULTS], ids=[row[0] for row in FAULTS]
)
def test_a_fault_is_found(
    expected: Expected, healthy: Evidence, edit: Edit, check: str, reason: str, subject: str
) -> None:
    pinned = dataclasses.replace(expected, cluster=dataclasses.replace(expected.cluster, cluster_uid="u-1"))
    edit(healthy)
    found = [(one.check, one.finding.reason, one.finding.subject.name) for one in bad(pinned, healthy)]
    assert (check, reason, subject) in found


def test_every_check_has_a_fault_that_it_catches() -> None:
    # The API server that does not answer is shown on a real one, in tests/rehearsal.
    covered = {row[2] for row in FAULTS} | {"cluster.reachable"}
    assert {one.id for one in registry.of_phase("check")} == covered


def test_the_first_operand_that_fails_is_the_one_to_look_at(expected: Expected, healthy: Evidence) -> None:
    for name in ("nvidia-driver-daemonset", "nvidia-device-plugin-daemonset"):
        operand_status(name, numberReady=0)(healthy)
    plugin = next(one for one in bad(expected, healthy) if one.finding.subject.name == "nvidia-device-plugin-daemonset")
    assert "it waits for nvidia-driver-daemonset" in plugin.finding.detail


def test_what_follows_from_a_missing_label_names_it(expected: Expected, healthy: Evidence) -> None:
    label("feature.node.kubernetes.io/pci-10de.present", None)(healthy)
    offers("nvidia.com/gpu", "0")(healthy)
    first, *rest = bad(expected, healthy)
    assert first.id == "nfd.labels/node/gpu-1"
    assert {one.caused_by for one in rest} == {first.id}


def test_a_preempted_spot_node_is_no_failure(healthy: Evidence) -> None:
    spot = entry()
    spot["groups"]["h100"]["capacity"] = "spot"
    expected = Expected.of(inventory.parse("lab", spot))
    node(healthy)["spec"]["unschedulable"] = True
    unready(node(healthy))
    excused = {one.check for one in results(expected, healthy) if one.finding.reason == "SpotNodeAbsent"}
    assert excused == {"nodes.ready"}
    assert "nodes.ready" not in {one.check for one in bad(expected, healthy)}


def test_gpus_by_dra_are_counted_in_slices(healthy: Evidence) -> None:
    expected = Expected.of(inventory.parse("lab", entry(dra="gpus")))
    healthy.cluster["resourceslices.resource.k8s.io"] = [
        slice_of("gpu-0", "gpu.nvidia.com", 8, "580.173.02"),
        slice_of("gpu-1", "gpu.nvidia.com", 7, "580.173.02"),
    ]
    for name in ("gpu-0", "gpu-1"):
        node(healthy, name)["status"]["allocatable"].pop("nvidia.com/gpu")
    found = [(one.check, one.finding.detail) for one in bad(expected, healthy)]
    assert ("dra.slices", "7 of 8") in found
    assert "gpu.allocatable" not in {check for check, _ in found}


def test_groups_by_selector_are_counted(healthy: Evidence) -> None:
    counted = entry()
    group = counted["groups"]["h100"]
    del group["nodes"]
    group |= {"count": 3, "selector": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}}
    expected = Expected.of(inventory.parse("lab", counted))
    missing = [one for one in bad(expected, healthy) if one.check == "nodes.present"]
    assert [one.finding.subject.name for one in missing] == ["h100 (1 of 3)"]
    healthy.cluster["nodes"].append(gpu_node("gpu-2"))
    assert "nodes.present" not in {one.check for one in bad(expected, healthy)}
