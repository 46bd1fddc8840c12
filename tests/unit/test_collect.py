"""What the collector asks for beyond its fixed reads, and what it keeps of an answer."""

from __future__ import annotations

import json
from typing import Any

from gpuready.validators.checks.releases import image_tags
from gpuready.validators.collect import cluster
from gpuready.validators.collect.cluster import pod_reads
from gpuready.validators.evidence import Evidence
from gpuready.validators.workloads import kept_out, selector

from .conftest import gpu_node
from .healthy import operand, pod, ready_policy

READS = {read.key: read for read in cluster.READS}
PLATFORM = {"gpu-operator", "kube-system"}


def short_of_pods(*names: str, wanted: int = 4, namespace: str = "gpu-operator") -> list[dict[str, Any]]:
    """DaemonSets that lack a pod."""
    found = [operand(name, "driver", namespace) for name in names]
    for one in found:
        one["status"] = {"desiredNumberScheduled": wanted, "numberReady": wanted - 1}
    return found


def test_a_healthy_cluster_is_asked_nothing_more(healthy: Evidence) -> None:
    assert pod_reads(healthy, PLATFORM) == []


def test_small_workloads_share_a_request(healthy: Evidence) -> None:
    healthy.cluster["daemonsets.apps"] = [
        *short_of_pods("a", "b"), *short_of_pods("cilium", namespace="kube-system"),
    ]  # fmt: skip
    assert [(read.path, read.query["labelSelector"]) for read in pod_reads(healthy, PLATFORM)] == [
        ("/api/v1/namespaces/gpu-operator/pods", "app in (a,b)"),
        ("/api/v1/namespaces/kube-system/pods", "app in (cilium)"),
    ]


def test_large_ones_have_one_each_and_there_is_an_end(healthy: Evidence) -> None:
    healthy.cluster["daemonsets.apps"] = short_of_pods(*(f"d{number}" for number in range(30)), wanted=1000)
    reads = pod_reads(healthy, PLATFORM)
    assert len(reads) == 12
    assert [read.query["labelSelector"] for read in reads[:2]] == ["app in (d0)", "app in (d1)"]


def test_what_others_run_is_left_alone(healthy: Evidence) -> None:
    healthy.cluster["daemonsets.apps"] = short_of_pods("theirs", namespace="ml")
    assert pod_reads(healthy, PLATFORM) == []


def test_several_labels_are_asked_for_together(healthy: Evidence) -> None:
    (one,) = short_of_pods("plugin")
    one["spec"]["selector"]["matchLabels"] = {"app": "plugin", "part": "node"}
    healthy.cluster["daemonsets.apps"] = [one]
    assert [read.query["labelSelector"] for read in pod_reads(healthy, PLATFORM)] == ["app=plugin,part=node"]


def test_of_a_pod_little_is_kept_and_least_of_a_ready_one() -> None:
    one = pod(operand("d", "driver"), "gpu-0", ready=True, containerStatuses=[{"name": "c"}])
    one["spec"] |= {"containers": [{"name": "c", "env": [{"name": "TOKEN", "value": "secret"}]}]}
    kept = cluster._trim_pod(one)
    assert kept["spec"] == {"nodeName": "gpu-0"}
    assert set(kept["status"]) == {"phase", "conditions"}
    one["status"]["conditions"] = []
    assert "containerStatuses" in cluster._trim_pod(one)["status"]


def test_a_claim_that_has_its_devices_is_dropped() -> None:
    claim = {"metadata": {"name": "c"}, "status": {"allocation": {"devices": {}}}}
    assert cluster._trim_claim(claim) is None
    assert cluster._trim_claim({"metadata": {"name": "c"}}) is not None


def test_of_a_workload_no_environment_is_kept() -> None:
    one = operand("d", "driver")
    private = {
        "env": [{"name": "DB_PASSWORD", "value": "hunter2"}],
        "args": ["--token=hunter2"],
        "command": ["hunter2"],
    }
    container = {"name": "c", "image": "x:y", **private}
    one["spec"]["template"]["spec"] |= {"containers": [container], "initContainers": [container]}
    one["spec"]["template"]["metadata"] = {"annotations": {"config": "hunter2"}}
    one["metadata"]["annotations"] = {"objectset.rio.cattle.io/applied": "hunter2", "note": "kept"}
    kept = cluster._trimmed(READS["daemonsets.apps"], one)
    assert kept is not None and "hunter2" not in json.dumps(kept)
    assert kept["metadata"]["annotations"] == {"note": "kept"}
    assert kept["status"] == one["status"] and selector(kept) == selector(one)
    assert kept_out(kept, gpu_node("gpu-0")) is None
    assert image_tags(kept) == {"y"}


def test_of_an_operators_policy_no_environment_is_kept() -> None:
    spec = {"driver": {"enabled": True, "env": [{"name": "HTTPS_PROXY", "value": "http://me:hunter2@proxy"}]}}
    kept = cluster._trimmed(READS["clusterpolicies.nvidia.com"], {**ready_policy(), "spec": spec})
    assert kept is not None and kept["spec"] == {"driver": {"enabled": True}}
