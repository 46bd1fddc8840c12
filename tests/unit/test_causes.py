"""What follows from what: root causes come first, name the node and the pod's own words, and hide nothing."""

from __future__ import annotations

from typing import Any

import pytest
from gpuready.charts_values import inventory
from gpuready.validators import workloads
from gpuready.validators.evidence import RELEASES, Evidence, ReadFailure
from gpuready.validators.expected import Expected
from gpuready.validators.model import Run, Status
from gpuready.validators.report import text

from .conftest import entry
from .healthy import claim, claimant, hook, namespace, pod, waiting
from .test_checks import (
    Edit,
    bad,
    both,
    drop,
    label,
    node,
    offers,
    on_node,
    operand_status,
    part_not_ready,
    plugin_hangs,
    policy,
    put,
    results,
    second_nfd,
    taint,
    unready,
    unready_pod,
)

DRIVER = "nvidia-driver-daemonset"
CRASH = {"containerStatuses": [waiting("CrashLoopBackOff", "back-off 5m0s", last="no kernel headers")]}
PATIENT = {"phase": "Pending", "initContainerStatuses": [{"name": "wait", "state": {"running": {}}}]}


def answer(expected: Expected, evidence: Evidence) -> str:
    """The first line of the text report."""
    return text.answer(Run("check", None, "", 0.0, 0, results(expected, evidence)))


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


def driver_crashes(evidence: Evidence) -> None:
    """As it shows on a cluster: the other operands wait, the labels and the devices of the node go."""
    unready_pod(DRIVER, **CRASH)(evidence)
    for name in ("nvidia-container-toolkit-daemonset", "nvidia-device-plugin-daemonset", "gpu-feature-discovery"):
        unready_pod(name, **PATIENT)(evidence)
    policy(state="notReady", conditions=[{"type": "Ready", "status": "False", "reason": "OperandNotReady"}])(evidence)
    for name in ("nvidia.com/gpu.product", "nvidia.com/cuda.driver-version.full"):
        label(name, None)(evidence)
    offers("nvidia.com/gpu", "0")(evidence)
    plugin_hangs(evidence)


def not_ready(evidence: Evidence) -> None:
    on_node(unready)(evidence)
    for name in ("cilium", DRIVER, "rdma-shared-dp-ds"):
        unready_pod(name)(evidence)
    part_not_ready(evidence)
    policy(state="notReady")(evidence)


def locked_out(evidence: Evidence) -> None:
    on_node(taint)(evidence)
    for name in (DRIVER, "nvidia-device-plugin-daemonset"):
        operand_status(name, desiredNumberScheduled=1, numberReady=1)(evidence)
    offers("nvidia.com/gpu", "0")(evidence)
    offers("rdma/rdma_shared_device_a", "0")(evidence)
    drop("resourceslices.resource.k8s.io", "gpu-1-compute-domain.nvidia.com")(evidence)


def blind(evidence: Evidence) -> None:
    for name in ("gpu-0", "gpu-1"):
        labels = node(evidence, name)["metadata"]["labels"]
        for key in [key for key in labels if "nvidia.com" in key or "pci" in key]:
            del labels[key]
        node(evidence, name)["status"]["allocatable"]["nvidia.com/gpu"] = "0"
    policy(conditions=[{"type": "Ready", "status": "True", "reason": "NoGPUNodes"}])(evidence)


def nfd_gone(evidence: Evidence) -> None:
    blind(evidence)
    drop("deployments.apps", "node-feature-discovery-master")(evidence)


def no_nic_policy(evidence: Evidence) -> None:
    drop("nicclusterpolicies.mellanox.com", "nic-cluster-policy")(evidence)
    for name in ("gpu-0", "gpu-1"):
        node(evidence, name)["status"]["allocatable"]["rdma/rdma_shared_device_a"] = "0"


def rdma_plugin_crashes(evidence: Evidence) -> None:
    unready_pod("rdma-shared-dp-ds", **CRASH)(evidence)
    part_not_ready(evidence)
    offers("rdma/rdma_shared_device_a", "0")(evidence)


def waits_for_ofed(evidence: Evidence) -> None:
    label("network.nvidia.com/operator.mofed.wait", "true")(evidence)
    offers("rdma/rdma_shared_device_a", "0")(evidence)


def operand_refused(evidence: Evidence) -> None:
    put("namespaces", namespace("gpu-operator", psa="restricted"))(evidence)
    found = evidence.find("daemonsets.apps", "nvidia-dcgm-exporter")
    assert found is not None
    found["status"]["numberReady"] = 1
    evidence.cluster["pods"].append(pod(found, "gpu-0", ready=True))
    policy(state="notReady")(evidence)


@pytest.mark.parametrize(
    ("edit", "first"),
    [
        (driver_crashes, "gpu.operands/object/nvidia-driver-daemonset"),
        (not_ready, "nodes.ready/node/gpu-1"),
        (locked_out, "nodes.taints/node/gpu-1"),
        (nfd_gone, "release.installed/object/node-feature-discovery/node-feature-discovery"),
        (no_nic_policy, "network.policy/object/nic-cluster-policy"),
        (rdma_plugin_crashes, "network.policy/object/nic-cluster-policy"),
        (waits_for_ofed, "rdma.wait/node/gpu-1"),
        (operand_refused, "release.namespace/object/gpu-operator/gpu-operator"),
        (plugin_hangs, "dra.slices/node/gpu-1"),
        (label("nvidia.com/cuda.driver-version.full", "560.35.03"), "versions.driver/node/gpu-1"),
    ],
)
def test_the_root_comes_first_and_explains_the_rest(
    expected: Expected, healthy: Evidence, edit: Edit, first: str
) -> None:
    edit(healthy)
    found = bad(expected, healthy)
    by_id = {one.id: one for one in found}
    assert found[0].id == first
    for one in found[1:]:
        while one.caused_by is not None:
            one = by_id[one.caused_by]
        assert one.id == first


def test_what_hits_every_node_has_a_root_on_each(expected: Expected, healthy: Evidence) -> None:
    blind(healthy)
    assert {one.check for one in bad(expected, healthy) if one.caused_by is None} == {"nfd.labels"}


@pytest.mark.parametrize(
    ("edit", "line"),
    [
        (driver_crashes, "FAIL gpu.operands: operand is not ready (nvidia-driver-daemonset on gpu-1)"),
        (label("nvidia.com/gpu.deploy.device-plugin", "false"),
         "FAIL gpu.operands: operand does not run on every GPU node (nvidia-device-plugin-daemonset on gpu-1)"),
        (rdma_plugin_crashes, "FAIL network.policy: the NicClusterPolicy is not ready (nic-cluster-policy on gpu-1)"),
        (locked_out, "FAIL nodes.taints: a taint that inventory does not declare keeps pods off the node (gpu-1)"),
    ],
)  # fmt: skip
def test_the_first_line_names_the_node(expected: Expected, healthy: Evidence, edit: Edit, line: str) -> None:
    edit(healthy)
    assert answer(expected, healthy) == line


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (driver_crashes, "gpu-1: CrashLoopBackOff: no kernel headers; 1 ready, 2 wanted"),
        (unready_pod("nvidia-dcgm-exporter", containerStatuses=[waiting("ImagePullBackOff", "not found")]),
         "gpu-1: ImagePullBackOff: not found"),
        (unready_pod("nvidia-operator-validator", **PATIENT), "gpu-1: Init:0/1"),
        (label("nvidia.com/gpu.deploy.device-plugin", "false"),
         "gpu-1: label nvidia.com/gpu.deploy.device-plugin is false"),
        (operand_status("nvidia-device-plugin-daemonset", desiredNumberScheduled=0), "2 GPU nodes"),
        (plugin_hangs, "kubelet plugin: Init:0/1"),
        (rdma_plugin_crashes, "gpu-1: rdma-shared-dp-ds: CrashLoopBackOff: no kernel headers"),
        (unready_pod("cilium", **CRASH), "cilium 1 of 2 ready, gpu-1: CrashLoopBackOff"),
        (both(offers("rdma/rdma_shared_device_a", "0"), offers("rdma/b", "63")), "offered: rdma/b 63"),
        (second_nfd, "gpu-operator/node-feature-discovery-master"),
    ],
)  # fmt: skip
def test_the_detail_has_the_reason(expected: Expected, healthy: Evidence, edit: Edit, told: str) -> None:
    edit(healthy)
    assert told in bad(expected, healthy)[0].finding.detail


def test_a_fault_on_another_node_is_not_explained_away(expected: Expected, healthy: Evidence) -> None:
    """The driver crashes on one node; the exporter waits there, and cannot be pulled on the other."""
    driver_crashes(healthy)
    exporter = healthy.find("daemonsets.apps", "nvidia-dcgm-exporter")
    assert exporter is not None
    exporter["status"]["numberReady"] = 0
    pull = {"containerStatuses": [waiting("ImagePullBackOff", "no such image")]}
    healthy.cluster["pods"] += [pod(exporter, "gpu-0", **pull), pod(exporter, "gpu-1", **PATIENT)]
    offers("rdma/rdma_shared_device_a", "0")(healthy)
    roots = {one.id: one for one in bad(expected, healthy) if one.caused_by is None}
    assert set(roots) == {
        f"gpu.operands/object/{DRIVER}", "gpu.operands/object/nvidia-dcgm-exporter", "rdma.allocatable/node/gpu-1",
    }  # fmt: skip
    assert "gpu-0: ImagePullBackOff" in roots["gpu.operands/object/nvidia-dcgm-exporter"].finding.detail


def test_a_failed_release_does_not_excuse_another(expected: Expected, healthy: Evidence) -> None:
    drop("deployments.apps", "network-operator")(healthy)
    offers("nvidia.com/gpu", "7")(healthy)
    roots = {one.check for one in bad(expected, healthy) if one.caused_by is None}
    assert roots == {"release.installed", "gpu.allocatable"}


def test_without_helms_records_the_check_is_skipped(expected: Expected, healthy: Evidence) -> None:
    del healthy.cluster[RELEASES]
    for failure in ({}, {RELEASES: ReadFailure("forbidden", "no")}, {RELEASES: ReadFailure("unreachable", "late")}):
        healthy.failures = dict(failure)
        told = [one for one in results(expected, healthy) if one.check == "release.status"]
        assert [(one.status, one.finding.required) for one in told] == [(Status.SKIP, False)]
    assert bad(expected, healthy) == []


@pytest.mark.parametrize(
    ("key", "checks"),
    [
        ("endpointslices.discovery.k8s.io", {"cluster.webhooks"}),
        ("resourceclaims.resource.k8s.io", {"dra.pending"}),
        ("namespaces", {"cluster.identity", "release.namespace", "versions.kubernetes"}),
        ("configmaps", {"cilium.exclusive", "cilium.cidr", "cilium.kube_proxy"}),
    ],
)
def test_what_may_not_be_read_is_unproven(expected: Expected, healthy: Evidence, key: str, checks: set[str]) -> None:
    del healthy.cluster[key]
    healthy.failures[key] = ReadFailure("forbidden", "no")
    found = bad(expected, healthy)
    assert {one.check for one in found} == checks
    assert {(one.status, one.finding.reason) for one in found} == {(Status.UNPROVEN, "PermissionMissing")}


def test_a_webhook_that_is_passed_over_is_a_warning(expected: Expected, healthy: Evidence) -> None:
    put("validatingwebhookconfigurations.admissionregistration.k8s.io", hook("Ignore"))(healthy)
    healthy.cluster["endpointslices.discovery.k8s.io"] = []
    assert [(one.check, one.status) for one in bad(expected, healthy)] == [("cluster.webhooks", Status.WARN)]


def test_a_fresh_claim_and_one_that_nobody_waits_for_are_left_alone(expected: Expected, healthy: Evidence) -> None:
    known = "compute-domain-daemon.nvidia.com"
    put("resourceclaims.resource.k8s.io", claim("nope"))(healthy)
    assert bad(expected, healthy) == []
    put("resourceclaims.resource.k8s.io", claim(known, created="2026-01-01T23:59:30Z"))(healthy)
    put("pods", claimant())(healthy)
    assert bad(expected, healthy) == []


def test_lifecycle_taints_are_left_to_who_sets_them(expected: Expected, healthy: Evidence) -> None:
    for key in ("node.kubernetes.io/unschedulable", "node.cilium.io/agent-not-ready", "node-role.kubernetes.io/infra"):
        node(healthy)["spec"]["taints"].append({"key": key, "effect": "NoSchedule"})
    node(healthy)["spec"]["taints"].append({"key": "soft", "effect": "PreferNoSchedule"})
    assert "nodes.taints" not in {one.check for one in bad(expected, healthy)}


@pytest.mark.parametrize("platform", ["k3s", "hosted"])
def test_where_kube_proxy_is_no_daemonset_none_is_asked_for(healthy: Evidence, platform: str) -> None:
    expected = Expected.of(inventory.parse("lab", entry(platform=platform)))
    healthy.cluster["configmaps"][0]["data"]["kube-proxy-replacement"] = "false"
    assert "cilium.kube_proxy" not in {one.check for one in bad(expected, healthy)}


def test_ranges_that_kubernetes_hands_out_are_compared_too(expected: Expected, healthy: Evidence) -> None:
    healthy.cluster["configmaps"][0]["data"]["ipam"] = "kubernetes"
    node(healthy)["spec"]["podCIDRs"] = ["10.244.3.0/24"]
    assert bad(expected, healthy) == []
    node(healthy)["spec"]["podCIDRs"] = ["10.96.3.0/24"]
    assert [one.finding.reason for one in bad(expected, healthy)] == ["PoolOverlaps"]


def test_a_host_that_brings_its_driver_needs_no_driver_pod(expected: Expected, healthy: Evidence) -> None:
    label("nvidia.com/gpu.deploy.driver", "pre-installed")(healthy)
    operand_status(DRIVER, desiredNumberScheduled=1, numberReady=1)(healthy)
    assert bad(expected, healthy) == []


@pytest.mark.parametrize(
    ("status", "told"),
    [
        ({"initContainerStatuses": [waiting("CrashLoopBackOff", last="boom")]}, "Init:CrashLoopBackOff: boom"),
        ({"initContainerStatuses": [{"ready": True, "state": {}}, {"state": {"running": {}}}]}, "Init:1/2"),
        ({"containerStatuses": [waiting("ContainerCreating")]}, "ContainerCreating"),
        ({"containerStatuses": [{"state": {"terminated": {"exitCode": 3}}}]}, "Error: exit 3"),
        ({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "taint"}]},
         "Unschedulable: taint"),
        ({"reason": "Evicted", "message": "disk  is\nfull"}, "Evicted: disk is full"),
        ({"conditions": [{"type": "Ready", "status": "False", "reason": "ContainersNotReady"}]}, "ContainersNotReady"),
        ({"phase": "Unknown", "conditions": []}, "phase Unknown"),
    ],
)  # fmt: skip
def test_why_a_pod_is_not_ready(status: dict[str, Any], told: str) -> None:
    one = {"metadata": {"name": "p"}, "status": {"phase": "Pending", **status}}
    assert workloads.why(one) == told
