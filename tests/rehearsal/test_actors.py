"""The actors on a real API server: an installation step by step, and what wrong values lead to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gpuready.charts_values.kube import Api, Object
from gpuready.rehearsal import controlplane, engine
from gpuready.rehearsal.actors.cache import Cache
from gpuready.rehearsal.actors.informers import Informers
from gpuready.rehearsal.actors.stage import Stage
from gpuready.rehearsal.fleet import load_profile

from .commands import until
from .platform import GPU_TAINT, NIC_POLICIES, POLICY, Platform, ready, waits_in_init
from .story import RDMA, Story, claim_one_gpu, nic_policy, nic_spec, taints


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("values")


@pytest.fixture(scope="module")
def story(binaries: engine.Binaries, tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[Story]:
    """Two nodes on which everything gets installed, part by part."""
    state_dir = tmp_path_factory.mktemp("actors") / "state"
    now = controlplane.up(state_dir, nodes=2, profile="h100-ib", leash=os.getpid())
    try:
        yield Story(Platform(now), folder)
    finally:
        controlplane.down(state_dir)


@pytest.fixture
def platform(story: Story) -> Platform:
    return story.platform


# -- step by step -------------------------------------------------------------------------------------------


def test_a_node_starts_bare(story: Story) -> None:
    condition = next(one for one in story.bare["status"]["conditions"] if one["type"] == "Ready")
    assert (condition["status"], condition["reason"]) == ("False", "KubeletNotReady")
    assert not [name for name in story.bare["status"]["allocatable"] if "/" in name]
    assert not [key for key in story.bare["metadata"]["labels"] if "nvidia" in key or "feature" in key]


def test_cilium_makes_nodes_ready(story: Story) -> None:
    conditions = {one["type"]: one for one in story.networked["status"]["conditions"]}
    assert conditions["NetworkUnavailable"]["reason"] == "CiliumIsUp"
    assert taints(story.networked) == ["nvidia.com/gpu"]
    found = story.platform.api.list("/apis/cilium.io/v2/ciliumnodes")
    assert {one["metadata"]["name"] for one in found} == {"cp-0", "gpu-0000", "gpu-0001"}
    cidrs = [cidr for one in found for cidr in one["spec"]["ipam"]["podCIDRs"]]
    assert len(set(cidrs)) == 3
    assert all(cidr.endswith("/24") for cidr in cidrs)


def test_without_nfd_the_policy_is_ready_for_the_wrong_reason(story: Story) -> None:
    assert story.without_nfd == ("ready", "NFDLabelsMissing")


def test_without_the_gpu_class_there_is_no_gpu_node(story: Story) -> None:
    assert story.without_gpu_class == ("ready", "NoGPUNodes")
    assert "feature.node.kubernetes.io/pci-10de.present" not in story.labels_without_gpu_class
    # The class of network devices was listed, so the NICs are seen without the Network Operator's rule.
    assert story.labels_without_gpu_class["feature.node.kubernetes.io/pci-15b3.present"] == "true"
    assert story.daemonsets_without_gpus == {}


def test_operands_come_up_in_order(story: Story) -> None:
    order = story.order
    chain = [
        "nvidia-driver-daemonset",
        "nvidia-container-toolkit-daemonset",
        "nvidia-device-plugin-daemonset",
        "nvidia.com/gpu",
        "nvidia-operator-validator",
        "gpu-feature-discovery",
        "product label",
        "nvidia-mig-manager",
    ]
    assert [one for one in order if one in chain] == chain
    assert order.index("nvidia-operator-validator") < order.index("nvidia-dcgm-exporter")
    assert order.index("rdma-shared-dp-ds") < order.index(RDMA)


def test_a_finished_platform(platform: Platform) -> None:
    labels = platform.labels()
    assert labels["nvidia.com/gpu.product"] == "NVIDIA-H100-80GB-HBM3"
    assert labels["nvidia.com/gpu.count"] == "8"
    assert labels["nvidia.com/cuda.driver-version.full"] == "580.173.02"
    assert labels["network.nvidia.com/operator.mofed.wait"] == "false"
    assert "nvidia.com/gpu.present" not in platform.labels("cp-0")
    policy = platform.api.get(f"{NIC_POLICIES}/nic-cluster-policy")["status"]
    assert policy["state"] == "ready"
    states = {one["name"]: one["state"] for one in policy["appliedStates"]}
    assert states.pop("state-RDMA-device-plugin") == "ready"
    assert set(states.values()) == {"ignore"}
    for one in platform.daemonsets().values():
        assert one["status"]["numberReady"] == one["status"]["desiredNumberScheduled"] == 2
    slices = platform.api.list("/apis/resource.k8s.io/v1/resourceslices")
    assert {one["spec"]["driver"] for one in slices} == {"compute-domain.nvidia.com"}
    assert {one["spec"]["nodeName"] for one in slices} == {"gpu-0000", "gpu-0001"}


def test_nothing_is_written_while_nothing_changes(platform: Platform) -> None:
    now = platform.now
    api, cache = Api.connect(now.kubeconfig, connections=40), Cache()
    informers = Informers(api, cache)
    informers.start()
    assert informers.synced.wait(30)
    stage = Stage(now.folder, load_profile(now.profile), api, cache)
    stage.look()

    def look_at_everything() -> int:
        cache.touch_all()
        return stage.look() + stage.writer.busy

    # The last events of the installation may still be under way; a write that repeats itself never ends.
    until(look_at_everything, lambda asked: asked == 0)
    informers.stop()
    stage.close()
    assert cache.nodes.keys() == {"cp-0", "gpu-0000", "gpu-0001"}


# -- what values lead to ------------------------------------------------------------------------------------


def test_device_plugin_off_means_no_gpus(platform: Platform) -> None:
    with platform.policy(devicePlugin={"enabled": False}):
        until(lambda: platform.offers("nvidia.com/gpu"), lambda seen: seen == "0")
        until(platform.daemonsets, lambda seen: "nvidia-device-plugin-daemonset" not in seen)
        # Without the plugin the validator does not look for what it would offer.
        until(platform.verdict, lambda seen: seen == ("ready", "Reconciled"))


def test_feature_discovery_off_takes_its_labels_back(platform: Platform) -> None:
    with platform.policy(gfd={"enabled": False}):
        until(platform.labels, lambda seen: "nvidia.com/gpu.product" not in seen)
        assert platform.labels()["nvidia.com/gpu.present"] == "true"
        assert platform.offers("nvidia.com/gpu") == "8"


def test_without_any_driver_the_operands_stay_in_init(platform: Platform) -> None:
    with platform.policy(driver={"enabled": False}):
        until(platform.daemonsets, lambda seen: "nvidia-driver-daemonset" not in seen)
        for pod in platform.pods("nvidia-operator-validator"):
            platform.api.delete(f"/api/v1/namespaces/gpu-operator/pods/{pod['metadata']['name']}")
        pods = until(
            lambda: platform.pods("nvidia-operator-validator"),
            lambda seen: len(seen) == 2 and all(waits_in_init(pod) for pod in seen),
        )
        assert waits_in_init(pods[0])[0] == "driver-validation"
        assert {pod["status"]["phase"] for pod in pods} == {"Pending"}
        assert until(platform.verdict, lambda seen: seen[0] == "notReady")[1] == "OperandNotReady"


def test_operands_that_do_not_tolerate_the_taint_are_wanted_nowhere(platform: Platform) -> None:
    with platform.policy(daemonsets={"tolerations": [{"key": "other", "operator": "Exists"}]}):
        until(lambda: platform.offers("nvidia.com/gpu"), lambda seen: seen == "0")
        desired = until(
            lambda: {one["status"]["desiredNumberScheduled"] for one in platform.daemonsets().values()},
            lambda seen: seen == {0},
        )
        assert desired == {0}
        # The trap: the operator takes DaemonSets without pods for finished ones.
        until(platform.verdict, lambda seen: seen == ("ready", "Reconciled"))


def test_a_new_driver_waits_for_the_deletion_of_the_old_pod(platform: Platform) -> None:
    version = "nvidia.com/cuda.driver-version.full"
    with platform.policy(driver={"version": "580.178.04", "upgradePolicy": {"autoUpgrade": False}}):
        until(platform.verdict, lambda seen: seen[0] == "notReady")
        until(
            lambda: platform.daemonsets()["nvidia-driver-daemonset"],
            lambda one: one["status"]["observedGeneration"] == one["metadata"]["generation"] > 1,
        )
        assert {pod["status"]["phase"] for pod in platform.pods("nvidia-driver-daemonset")} == {"Running"}
        assert platform.labels()[version] == "580.173.02"
        pods = {pod["spec"]["nodeName"]: pod for pod in platform.pods("nvidia-driver-daemonset")}
        platform.api.delete(f"/api/v1/namespaces/gpu-operator/pods/{pods['gpu-0000']['metadata']['name']}")
        until(lambda: platform.labels()[version], lambda seen: seen == "580.178.04")
        assert platform.labels("gpu-0001")[version] == "580.173.02"
        platform.set_policy(driver={"upgradePolicy": {"autoUpgrade": True}})
        until(lambda: platform.labels("gpu-0001")[version], lambda seen: seen == "580.178.04")
        until(platform.verdict, lambda seen: seen == ("ready", "Reconciled"))
    until(lambda: platform.labels()[version], lambda seen: seen == "580.173.02")


def test_a_second_cluster_policy_is_ignored(platform: Platform) -> None:
    path = POLICY.rpartition("/")[0]
    first = platform.api.get(POLICY)
    second = {**first, "metadata": {"name": "another"}}
    second.pop("status")
    platform.api.create(path, second)
    until(lambda: platform.api.get(f"{path}/another").get("status"), lambda seen: seen == {"state": "ignored"})
    assert platform.verdict() == ("ready", "Reconciled")
    platform.api.delete(f"{path}/another")


def test_without_a_cluster_policy_everything_is_taken_back(platform: Platform) -> None:
    policy = platform.api.get(POLICY)
    platform.api.delete(POLICY)
    until(platform.daemonsets, lambda seen: seen == {})
    until(lambda: platform.offers("nvidia.com/gpu"), lambda seen: seen == "0")
    until(platform.labels, lambda seen: not [key for key in seen if key.startswith("nvidia.com/gpu")])
    policy["metadata"] = {key: policy["metadata"][key] for key in ("name", "labels", "annotations")}
    policy.pop("status")
    platform.api.create(POLICY.rpartition("/")[0], policy)
    platform.wait_ready()


def test_nfd_that_does_not_tolerate_the_taint_sees_no_gpu_node(platform: Platform, folder: Path) -> None:
    worker = {"config": {"sources": {"pci": {"deviceClassWhitelist": ["0302"], "deviceLabelFields": ["vendor"]}}}}
    platform.install("node-feature-discovery", folder, worker=worker | {"tolerations": [GPU_TAINT]})
    # Without class 02 the NICs' label comes from the Network Operator's rule alone.
    until(platform.labels, lambda seen: "feature.node.kubernetes.io/pci-14e4.present" not in seen)
    assert platform.labels()["feature.node.kubernetes.io/pci-15b3.present"] == "true"
    platform.api.delete("/apis/nfd.k8s-sigs.io/v1alpha1/nodefeaturerules/nvidia-nics-rules")
    until(platform.labels, lambda seen: "feature.node.kubernetes.io/pci-15b3.present" not in seen)
    until(lambda: platform.offers(RDMA), lambda seen: seen == "0")
    platform.nfd(folder)
    until(lambda: platform.offers(RDMA), lambda seen: seen == "63")


@pytest.mark.parametrize(
    "selectors",
    [
        {"vendors": ["15b4"]},
        {"deviceIDs": ["101b"]},
        {"ifNames": ["ens1f0"]},
        {"drivers": ["mlx4_core"]},
        {"linkTypes": ["ether"]},
        {"vendors": ["15b3"], "deviceIDs": ["101b"]},
    ],
)
def test_selectors_that_match_no_nic_offer_nothing(platform: Platform, selectors: Any) -> None:
    path = f"{NIC_POLICIES}/nic-cluster-policy"
    platform.api.patch(path, {"spec": nic_spec(**selectors)})
    until(lambda: platform.offers(RDMA), lambda seen: seen == "0")
    platform.api.patch(path, {"spec": nic_spec(deviceIDs=["1021"], drivers=["mlx5_core"])})
    until(lambda: platform.offers(RDMA), lambda seen: seen == "63")


def reasons(pods: list[Object]) -> set[str]:
    """Why containers wait."""
    states = [one["state"] for pod in pods for one in pod["status"].get("containerStatuses", ())]
    return {state["waiting"]["reason"] for state in states if "waiting" in state}


def test_a_configuration_that_is_no_json_crashes_the_device_plugin(platform: Platform) -> None:
    path = f"{NIC_POLICIES}/nic-cluster-policy"
    platform.api.patch(path, {"spec": {"rdmaSharedDevicePlugin": {"config": "configList: []"}}})
    until(lambda: reasons(platform.pods("rdma-shared-dp-ds", "nvidia-network-operator")), lambda seen: bool(seen))
    assert reasons(platform.pods("rdma-shared-dp-ds", "nvidia-network-operator")) == {"CrashLoopBackOff"}
    until(lambda: platform.api.get(path)["status"]["state"], lambda seen: seen == "notReady")
    platform.api.patch(path, {"spec": nic_spec(vendors=["15b3"])})
    until(lambda: platform.api.get(path)["status"]["state"], lambda seen: seen == "ready")
    until(lambda: platform.offers(RDMA, "gpu-0001"), lambda seen: seen == "63")


def test_a_nic_policy_of_another_name_is_ignored(platform: Platform) -> None:
    path = f"{NIC_POLICIES}/nic-cluster-policy"
    platform.api.delete(path)
    platform.api.create(NIC_POLICIES, nic_policy("my-policy"))
    status = until(lambda: platform.api.get(f"{NIC_POLICIES}/my-policy").get("status", {}), lambda seen: bool(seen))
    assert status["state"] == "ignore"
    until(lambda: platform.offers(RDMA), lambda seen: seen == "0")
    platform.api.delete(f"{NIC_POLICIES}/my-policy")
    platform.api.create(NIC_POLICIES, nic_policy())
    until(lambda: platform.offers(RDMA), lambda seen: seen == "63")


def test_ofed_keeps_the_device_plugin_waiting(platform: Platform) -> None:
    path = f"{NIC_POLICIES}/nic-cluster-policy"
    wait = "network.nvidia.com/operator.mofed.wait"
    platform.api.patch(path, {"spec": {"ofedDriver": {"image": "doca-driver", "version": "doca3.4.1"}}})
    found = until(
        lambda: platform.daemonsets("nvidia-network-operator"),
        lambda seen: any(name.startswith("mofed-ubuntu24.04-") for name in seen),
    )
    ofed = next(one for name, one in found.items() if name.startswith("mofed-"))
    assert ofed["spec"]["template"]["spec"]["nodeSelector"]["feature.node.kubernetes.io/pci-15b3.present"] == "true"
    # Both were so before; the plugin must have come back after the driver.
    name = ofed["metadata"]["name"]
    until(
        lambda: [ready(pod) for pod in platform.pods(name, "nvidia-network-operator")],
        lambda seen: seen == ["True"] * len(platform.now.nodes),
    )
    until(lambda: (platform.labels()[wait], platform.offers(RDMA)), lambda seen: seen == ("false", "63"))
    platform.api.patch(path, {"spec": {"ofedDriver": None}})
    until(lambda: platform.daemonsets("nvidia-network-operator"), lambda seen: set(seen) == {"rdma-shared-dp-ds"})


def test_a_component_that_is_not_played_is_an_error(platform: Platform) -> None:
    path = f"{NIC_POLICIES}/nic-cluster-policy"
    platform.api.patch(path, {"spec": {"ibKubernetes": {"image": "ib-kubernetes"}}})
    status = until(lambda: platform.api.get(path)["status"], lambda seen: seen["state"] == "notReady")
    states = {one["name"]: one["state"] for one in status["appliedStates"]}
    assert states["state-ib-kubernetes"] == "error"
    platform.api.patch(path, {"spec": {"ibKubernetes": None}})
    until(lambda: platform.api.get(path)["status"]["state"], lambda seen: seen == "ready")


def test_a_wrong_driver_root_keeps_the_dra_plugin_in_init(platform: Platform, folder: Path) -> None:
    slices = "/apis/resource.k8s.io/v1/resourceslices"
    plugin = "/api/v1/namespaces/dra-driver-nvidia-gpu/pods"
    selector = "dra-driver-nvidia-gpu-component=kubelet-plugin"
    off = {"resources": {"gpus": {"enabled": False}}}
    platform.install("dra-driver-nvidia-gpu", folder, **off, nvidiaDriverRoot="/")
    pods = until(
        lambda: platform.api.list(plugin, labelSelector=selector, resourceVersion=""),
        lambda seen: bool(seen) and all(waits_in_init(pod) for pod in seen),
    )
    assert {pod["status"]["phase"] for pod in pods} == {"Pending"}
    gpus = {"resources": {"gpus": {"enabled": True}}, "gpuResourcesEnabledOverride": True}
    platform.install("dra-driver-nvidia-gpu", folder, **gpus, nvidiaDriverRoot="/run/nvidia/driver")
    found = until(
        lambda: [one for one in platform.api.list(slices) if one["spec"]["driver"] == "gpu.nvidia.com"],
        lambda seen: len(seen) == 2,
    )
    assert len(found[0]["spec"]["devices"]) == 8
    assert found[0]["spec"]["devices"][0]["attributes"]["driverVersion"] == {"version": "580.173.2"}
    claim_one_gpu(platform.api)
    platform.install("dra-driver-nvidia-gpu", folder, **off, nvidiaDriverRoot="/run/nvidia/driver")
    until(lambda: {one["spec"]["driver"] for one in platform.api.list(slices)}, lambda seen: len(seen) == 1)


# -- staying alive ------------------------------------------------------------------------------------------


def test_a_node_that_did_not_answer_comes_back(platform: Platform) -> None:
    """As after a laptop's sleep: the controller-manager has given up on the node and marked its pods."""
    unknown = [
        {"type": kind, "status": "Unknown", "reason": "NodeStatusUnknown", "message": "gone"}
        for kind in ("Ready", "MemoryPressure")
    ]
    marked = {"status": {"conditions": [{"type": "Ready", "status": "False", "reason": "NodeNotReady"}]}}
    pods = [
        f"/api/v1/namespaces/{one['metadata']['namespace']}/pods/{one['metadata']['name']}"
        for one in platform.api.list("/api/v1/pods", fieldSelector="spec.nodeName=gpu-0001", resourceVersion="")
    ]
    assert len(pods) > 10
    platform.api.patch("/api/v1/nodes/gpu-0001/status", {"status": {"conditions": unknown}}, kind="strategic")
    for pod in pods:
        platform.api.patch(f"{pod}/status", marked, kind="strategic")
    node = until(lambda: platform.node("gpu-0001"), lambda seen: ready(seen) == "True")
    memory = next(one for one in node["status"]["conditions"] if one["type"] == "MemoryPressure")
    assert memory["status"] == "False"
    until(lambda: {pod for pod in pods if ready(platform.api.get(pod)) != "True"}, lambda left: left == set())


def test_the_actors_outlive_the_api_server_and_are_outlived_by_the_cluster(platform: Platform) -> None:
    now = platform.now
    for name in ("kube-apiserver", "actors"):
        process = now.processes[name]
        os.kill(process.pid, 9)
        until(lambda process=process: process.alive, lambda alive: not alive)
        platform.now = now = controlplane.up(now.folder, leash=os.getpid())
        with platform.policy(devicePlugin={"enabled": False}):
            until(lambda: platform.offers("nvidia.com/gpu"), lambda seen: seen == "0")
    log = now.log("actors").read_text()
    assert "Traceback" not in log
    assert "HTTP 422" not in log
    assert "a bug" not in log
