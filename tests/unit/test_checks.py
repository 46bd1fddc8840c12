"""Every read-only check: silent on a healthy cluster, and naming what was broken."""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from gpuready.charts_values import inventory
from gpuready.validators import registry
from gpuready.validators.evidence import RELEASES, Evidence
from gpuready.validators.expected import Expected
from gpuready.validators.judge import judge
from gpuready.validators.model import Result, Status
from gpuready.validators.webhooks import ENDPOINTS

from .conftest import entry, gpu_node
from .healthy import (
    claim,
    claimant,
    endpoints,
    namespace,
    operand,
    pod,
    ready_policy,
    record,
    slice_of,
)

Edit = Callable[[Evidence], None]


def results(expected: Expected, evidence: Evidence) -> tuple[Result, ...]:
    return judge(expected, evidence, list(registry.of_phase("check")))


def bad(expected: Expected, evidence: Evidence) -> list[Result]:
    return [one for one in results(expected, evidence) if one.status.rank >= Status.WARN.rank]


def twice(expected: Expected, evidence: Evidence) -> list[str]:
    """Subjects of which a check said two things: results of one id would hide each other in reports."""
    return [
        f"{one.id} {subject}"
        for one in registry.of_phase("check")
        for subject, count in Counter(finding.subject for finding in one.judge(expected, evidence)).items()
        if count > 1
    ]


def test_a_healthy_cluster_raises_nothing(expected: Expected, healthy: Evidence) -> None:
    assert [(one.id, one.finding.cause, one.finding.detail) for one in bad(expected, healthy)] == []
    judged = {one.check for one in results(expected, healthy) if one.status is Status.PASS}
    # The promised cluster has no RoCE rails, and no machine is reached by SSH: tests/unit/test_node_checks.py.
    others = {one.id for one in registry.of_phase("check") if one.group != "node"}
    assert judged == others - {"network.secondary", "resources.allocatable"}
    assert twice(expected, healthy) == []


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


def config(**changes: str) -> Edit:
    def edit(evidence: Evidence) -> None:
        found = evidence.find("configmaps", "cilium-config")
        assert found is not None
        found["data"] = found["data"] | {key.replace("_", "-"): value for key, value in changes.items()}

    return edit


def put(key: str, *things: dict[str, Any]) -> Edit:
    """These objects in place of those of the same name."""

    def edit(evidence: Evidence) -> None:
        names = {one["metadata"]["name"] for one in things}
        kept = [one for one in evidence.objects(key) if one["metadata"]["name"] not in names]
        evidence.cluster[key] = [*kept, *things]

    return edit


def both(*edits: Edit) -> Edit:
    def edit(evidence: Evidence) -> None:
        for one in edits:
            one(evidence)

    return edit


def taint(one: dict[str, Any]) -> None:
    one["spec"]["taints"].append({"key": "maintenance", "value": "firmware", "effect": "NoExecute"})


def switched_off(evidence: Evidence) -> None:
    found = evidence.find("deployments.apps", "gpu-operator")
    assert found is not None
    found["spec"]["replicas"] = 0
    found["status"] = {}


def kube_proxy(evidence: Evidence) -> None:
    put("daemonsets.apps", operand("kube-proxy", "", "kube-system"))(evidence)


def unready_pod(name: str, *, ready: int = 1, **status: Any) -> Edit:
    """The pod of a DaemonSet on gpu-1 is not ready, the one on gpu-0 is."""

    def edit(evidence: Evidence) -> None:
        found = evidence.find("daemonsets.apps", name)
        assert found is not None
        found["status"]["numberReady"] = ready
        pods = [pod(found, "gpu-0", ready=True), pod(found, "gpu-1", **status)]
        evidence.cluster["pods"] += pods

    return edit


def plugin_hangs(evidence: Evidence) -> None:
    patient = {"initContainerStatuses": [{"name": "init", "state": {"running": {}}}], "phase": "Pending"}
    unready_pod("dra-driver-nvidia-gpu-kubelet-plugin", **patient)(evidence)
    drop("resourceslices.resource.k8s.io", "gpu-1-compute-domain.nvidia.com")(evidence)


def cordon(one: dict[str, Any]) -> None:
    one["spec"]["unschedulable"] = True


def old_kubelet(one: dict[str, Any]) -> None:
    one["status"]["nodeInfo"]["kubeletVersion"] = "v1.31.9"


FAULTS: list[tuple[str, Edit, str, str, str]] = [
    ("another cluster", lambda e: e.about.update(uid="u-2"), "cluster.identity", "AnotherCluster", "lab"),
    ("node missing", drop("nodes", "gpu-1"), "nodes.present", "NodeMissing", "gpu-1"),
    ("node not ready", on_node(unready), "nodes.ready", "NotReady", "gpu-1"),
    ("webhook down", put(ENDPOINTS, endpoints(ready=False)), "cluster.webhooks", "WebhookDead",
     "ValidatingWebhookConfiguration/kueue"),
    ("webhook without a Service", drop(ENDPOINTS, "w-1"), "cluster.webhooks", "WebhookDead",
     "ValidatingWebhookConfiguration/kueue"),
    ("undeclared taint", on_node(taint), "nodes.taints", "UndeclaredTaint", "gpu-1"),
    ("upgrade failed", put(RELEASES, record("gpu-operator", "gpu-operator", "failed", 3)), "release.status",
     "ReleaseNotDeployed", "gpu-operator/gpu-operator"),
    ("upgrade pending", put(RELEASES, record("gpu-operator", "gpu-operator", "pending-upgrade", 3)),
     "release.status", "ReleasePending", "gpu-operator/gpu-operator"),
    ("pods not admitted", put("namespaces", namespace("gpu-operator", psa="restricted")), "release.namespace",
     "PodsRefused", "gpu-operator/gpu-operator"),
    ("no Pod Security label", put("namespaces", namespace("gpu-operator")), "release.namespace", "NoLabel",
     "gpu-operator/gpu-operator"),
    ("operator stopped", switched_off, "release.installed", "ScaledToZero", "gpu-operator/gpu-operator"),
    ("pool over nodes", config(cluster_pool_ipv4_cidr="192.168.0.0/16"), "cilium.cidr", "PoolOverlaps",
     "kube-system/cilium-config"),
    ("pool over Services", config(cluster_pool_ipv4_cidr="10.0.0.0/8"), "cilium.cidr", "PoolOverlaps",
     "kube-system/cilium-config"),
    ("another pool", config(cluster_pool_ipv4_cidr="10.245.0.0/16"), "cilium.cidr", "PoolDiffers",
     "kube-system/cilium-config"),
    ("kube-proxy beside", kube_proxy, "cilium.kube_proxy", "TwoProxies", "kube-system/kube-proxy"),
    ("no proxy at all", config(kube_proxy_replacement="false"), "cilium.kube_proxy", "NoProxy",
     "kube-system/kube-proxy"),
    ("waits for OFED", label("network.nvidia.com/operator.mofed.wait", "true"), "rdma.wait", "WaitsForDriver",
     "gpu-1"),
    ("RDMA misnamed", both(offers("rdma/rdma_shared_device_a", "0"), offers("rdma/shared_b", "63")),
     "rdma.allocatable", "OtherName", "gpu-1"),
    ("operand crashes", unready_pod("nvidia-driver-daemonset"), "gpu.operands", "PodsNotReady",
     "nvidia-driver-daemonset"),
    ("operand switched off", label("nvidia.com/gpu.deploy.device-plugin", "false"), "gpu.operands",
     "WantsTooFewPods", "nvidia-device-plugin-daemonset"),
    ("plugin hangs, slice stays", unready_pod("dra-driver-nvidia-gpu-kubelet-plugin"), "dra.slices",
     "PluginNotReady", "gpu-1"),
    ("plugin hangs", plugin_hangs, "dra.slices", "NoSlice", "gpu-1"),
    ("claim for an unknown class", both(put("resourceclaims.resource.k8s.io", claim("nope")), put("pods", claimant())),
     "dra.pending", "ClassMissing", "default/mine"),
    ("claim without a device", both(put("resourceclaims.resource.k8s.io", claim("compute-domain-daemon.nvidia.com")),
     put("pods", claimant())), "dra.pending", "NoDevice", "default/mine"),
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
    ("DRA driver bound", label("nvidia.com/cuda.driver-version.full", "570.1"), "dra.rules", "BelowBound", "gpu-1"),
    ("DRA driver unknown", label("nvidia.com/cuda.driver-version.full", None), "dra.rules", "VersionUnknown", "gpu-1"),
    ("Kubernetes below DRA", lambda e: e.about.update(server_version="v1.31.2"), "dra.rules", "BelowBound", "lab"),
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
    assert twice(pinned, healthy) == []


def test_every_check_has_a_fault_that_it_catches() -> None:
    # The API server that does not answer is shown on a real one, in tests/rehearsal.
    # The rails of RoCE are in test_rails.py, machines in test_node_checks.py, other resources further down.
    covered = {row[2] for row in FAULTS} | {"cluster.reachable", "network.secondary", "resources.allocatable"}
    assert {one.id for one in registry.of_phase("check") if one.group != "node"} == covered


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


def test_an_old_cluster_with_old_drivers_is_told_of_both(expected: Expected, healthy: Evidence) -> None:
    healthy.about["server_version"] = "v1.31.2"
    for name, version in (("gpu-0", "560.1"), ("gpu-1", "570.1")):
        node(healthy, name)["metadata"]["labels"]["nvidia.com/cuda.driver-version.full"] = version
    told = {one.id: one.finding.cause for one in results(expected, healthy) if one.check == "dra.rules"}
    assert told == {
        "dra.rules/cluster/lab": "Kubernetes is older than DRA needs",
        "dra.rules/node/gpu-0": "driver is older than DRA needs",
        "dra.rules/node/gpu-1": "driver is older than DRA needs",
    }
    assert twice(expected, healthy) == []
