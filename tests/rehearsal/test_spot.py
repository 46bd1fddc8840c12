"""Spot nodes that their platform takes away and gives back: nobody is paged, and the installer goes on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from gpuready.charts_values.kube import Api, Object
from gpuready.rehearsal import controlplane, engine, fleet
from gpuready.rehearsal.actors.stage import POWER
from gpuready.rehearsal.state import State

from .commands import gpuready, report, run, until

NODES = "/api/v1/nodes"
CILIUM = "/apis/apps/v1/namespaces/kube-system/daemonsets/cilium"
LOST = "gpu-0002"


@pytest.fixture(scope="module")
def spot(binaries: engine.Binaries, tmp_path_factory: pytest.TempPathFactory) -> Iterator[State]:
    """Three spot nodes with everything installed. The tests take them away, in this order."""
    folder = tmp_path_factory.mktemp("spot") / "state"
    now = controlplane.up(folder, nodes=3, profile="cloud-vm")
    try:
        install(now)
        yield now
    finally:
        controlplane.down(folder)


def install(now: State) -> str:
    done = run("pyinfra", "inventory", "deploys/gpu.py", state_dir=now.folder, seconds=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def troubles(data: dict[str, Any]) -> list[tuple[str, str]]:
    """What is neither as expected nor excused; a missing baseline is no trouble."""
    results = data["results"]
    return [(one["id"], one["cause"]) for one in results if one["status"] not in ("pass", "skip") and one["required"]]


def judged_well(now: State) -> None:
    """An acceptance, which makes every check, passes; of the node it speaks only to excuse it."""
    data = report(now, "accept", "--nccl", "pair")
    assert (troubles(data), data["verdict"]) == ([], "pass")
    about = {one["check"]: one["reason"] for one in data["results"] if one["subject"]["name"] == LOST}
    assert set(about.values()) <= {"AsExpected", "SpotNodeAbsent"}, about
    assert len(data["nccl"]["pair"]["hosts"]) == 2


def test_a_cordoned_spot_node_is_on_its_way_out(spot: State) -> None:
    """The platform drains it, and powers it off in five minutes."""
    api = Api.connect(spot.kubeconfig)
    api.patch(f"{NODES}/{LOST}", {"spec": {"unschedulable": True}})
    for pod in pods_of_the_node(api):
        if pod["metadata"]["ownerReferences"][0]["kind"] != "DaemonSet":
            api.delete(path_of(pod))
    until(lambda: unavailable(api), lambda names: names == [])
    judged_well(spot)
    install(spot)


def test_a_preempted_node_that_is_still_listed(spot: State) -> None:
    """Its kubelet has gone silent, and its pods count as not ready."""
    api = Api.connect(spot.kubeconfig)
    power_off(api)
    until(lambda: api.get(CILIUM)["status"]["numberReady"], lambda ready: ready == 3)
    judged_well(spot)
    install(spot)
    # Silent without a cordon it is broken, and somebody must look.
    api.patch(f"{NODES}/{LOST}", {"spec": {"unschedulable": None}})
    assert report(spot, "check")["results"][0]["id"] == f"nodes.ready/node/{LOST}"
    api.patch(f"{NODES}/{LOST}", {"spec": {"unschedulable": True}})


def test_a_node_that_is_gone(spot: State) -> None:
    """Its bid has ended, and the platform has removed it."""
    api = Api.connect(spot.kubeconfig)
    api.delete(f"{NODES}/{LOST}")
    judged_well(spot)
    collect_pods(api, LOST)
    assert f"has 2 of 3 nodes in the cluster; missing: {LOST}" in install(spot)


def test_a_group_without_nodes_is_installed_for_later(spot: State) -> None:
    """All of them are gone; what comes back finds everything there."""
    api = Api.connect(spot.kubeconfig)
    for name in ("gpu-0000", "gpu-0001"):
        api.delete(f"{NODES}/{name}")
        collect_pods(api, name)
    install(spot)
    assert gpuready(spot, "check").returncode in (0, 2)
    back = next(one for one in fleet.nodes(fleet.load_profile("cloud-vm"), 3, spot.ports["kwok"]) if named(one, LOST))
    api.create(NODES, back)
    until(lambda: state_of(api), lambda seen: seen[0] == "4", seconds=60)
    assert troubles(report(spot, "check")) == []


def named(node: Object, name: str) -> bool:
    return bool(node["metadata"]["name"] == name)


def state_of(api: Api) -> tuple[str, list[str], list[str], dict[str, str]]:
    """The GPUs that the lost node offers and, in case there are none, what may be in the way."""
    one = api.get(f"{NODES}/{LOST}")
    taints = [taint["key"] for taint in one["spec"].get("taints") or ()]
    conditions = [f"{each['type']}={each['status']}" for each in one["status"]["conditions"]]
    here = api.list("/api/v1/pods", fieldSelector=f"spec.nodeName={LOST}", resourceVersion="")
    pods = {pod["metadata"]["name"]: pod["status"]["phase"] for pod in here}
    return one["status"]["allocatable"].get("nvidia.com/gpu", "0"), taints, conditions, pods


def power_off(api: Api) -> None:
    """Play a machine that is off: kwok and the actors leave it alone, and its kubelet no longer reports.

    Its pods are taken from Ready here, since the controller-manager does so only after most of a minute.
    """
    meta = {"labels": {POWER: "off"}, "annotations": {"kwok.x-k8s.io/node": None}}
    api.patch(f"{NODES}/{LOST}", {"metadata": meta})
    silent = {"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown", "message": "Kubelet stopped"}
    api.patch(f"{NODES}/{LOST}/status", {"status": {"conditions": [silent]}}, kind="strategic")
    for pod in pods_of_the_node(api):
        unready = {"type": "Ready", "status": "False", "reason": "NodeNotReady"}
        api.patch(f"{path_of(pod)}/status", {"status": {"conditions": [unready]}}, kind="strategic")


def pods_of_the_node(api: Api, name: str = LOST) -> list[Object]:
    return api.list("/api/v1/pods", fieldSelector=f"spec.nodeName={name}", resourceVersion="")


def collect_pods(api: Api, name: str) -> None:
    """Remove the pods of a node that is gone, as Kubernetes does after a minute."""
    for pod in pods_of_the_node(api, name):
        api._request("DELETE", path_of(pod), {"gracePeriodSeconds": "0"})


def path_of(pod: Object) -> str:
    return f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"


def unavailable(api: Api) -> list[str]:
    """Deployments that lack a pod."""
    found = api.list("/apis/apps/v1/deployments", resourceVersion="")
    return [one["metadata"]["name"] for one in found if one["status"].get("unavailableReplicas")]
