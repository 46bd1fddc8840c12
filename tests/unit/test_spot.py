"""Spot nodes that are away: nothing is expected of them, and nothing else is excused with them."""

from __future__ import annotations

from typing import Any

import pytest
from gpuready.charts_values import inventory
from gpuready.validators import registry
from gpuready.validators.evidence import Evidence
from gpuready.validators.expected import Expected
from gpuready.validators.judge import judge
from gpuready.validators.model import Status

from .conftest import entry, gpu_node


def spot() -> Expected:
    groups = entry()["groups"]
    groups["h100"] |= {"capacity": "spot", "nodes": ["gpu-0", "gpu-1", "gpu-2"]}
    return Expected.of(inventory.parse("lab", entry(groups=groups)))


def pod(node: str, *, ready: bool) -> dict[str, Any]:
    return {
        "metadata": {"name": f"cilium-{node}", "namespace": "kube-system", "labels": {"k8s-app": "cilium"}},
        "spec": {"nodeName": node},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": str(ready)}]},
    }


def seen(ready: int, *pods: dict[str, Any], cordoned: bool = True, exists: bool = True) -> Evidence:
    """gpu-2 is off; Cilium's DaemonSet wants three pods."""
    last = gpu_node("gpu-2")
    last["spec"]["unschedulable"] = cordoned
    last["status"]["conditions"] = [{"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown"}]
    notes = {"meta.helm.sh/release-name": "cilium", "meta.helm.sh/release-namespace": "kube-system"}
    daemonset = {
        "kind": "DaemonSet",
        "metadata": {"name": "cilium", "namespace": "kube-system", "annotations": notes},
        "spec": {
            "selector": {"matchLabels": {"k8s-app": "cilium"}},
            "template": {"spec": {"containers": [{"image": "cilium:v1.19.6"}]}},
        },
        "status": {"desiredNumberScheduled": 3, "numberReady": ready},
    }
    nodes = [gpu_node("gpu-0"), gpu_node("gpu-1"), *([last] if exists else ())]
    return Evidence(cluster={"nodes": nodes, "daemonsets.apps": [daemonset], "pods": list(pods)})


def cilium(evidence: Evidence) -> Status:
    """The verdict on Cilium's release."""
    results = judge(spot(), evidence, [registry.get("release.installed")])
    return next(one.status for one in results if one.finding.subject.name == "kube-system/cilium")


@pytest.mark.parametrize(
    ("evidence", "status"),
    [
        (seen(2), Status.PASS),
        (seen(2, pod("gpu-2", ready=False)), Status.PASS),
        (seen(2, pod("gpu-2", ready=False), exists=False), Status.PASS),
        (seen(2, pod("gpu-1", ready=False)), Status.FAIL),
        (seen(1, pod("gpu-2", ready=False), pod("gpu-1", ready=False)), Status.FAIL),
        (seen(1), Status.FAIL),
        (seen(2, pod("gpu-2", ready=False), cordoned=False), Status.FAIL),
    ],
    ids=[
        *("away", "its pod", "gone, and its pod still counted", "another node's pod"),
        *("its pod and another's", "two pods, one node away", "silent without a cordon"),
    ],
)
def test_only_the_pods_of_nodes_that_are_away_are_excused(evidence: Evidence, status: Status) -> None:
    assert cilium(evidence) is status


def test_the_evidence_itself_stays_as_it_was_seen() -> None:
    evidence = seen(2)
    cilium(evidence)
    assert evidence.cluster["daemonsets.apps"][0]["status"]["desiredNumberScheduled"] == 3


def test_a_cordoned_spot_node_is_away_and_a_silent_one_is_broken() -> None:
    group = spot().cluster.groups[0]
    node = gpu_node("gpu-2")
    assert not group.away(node)
    node["status"]["conditions"] = []
    assert not group.away(node)
    node["spec"]["unschedulable"] = True
    assert group.away(node) and group.gone(node)
    node = gpu_node("gpu-2")
    node["spec"]["unschedulable"] = True
    assert group.away(node) and not group.gone(node)
