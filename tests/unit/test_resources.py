"""Resources other than GPUs and RDMA, and operands of several DaemonSets: judged, and never a pass for nothing."""

from __future__ import annotations

from typing import Any

import pytest
from gpuready.charts_values import inventory
from gpuready.validators.evidence import Evidence
from gpuready.validators.expected import Expected
from gpuready.validators.model import Status

from .conftest import entry
from .healthy import operand, pod
from .test_checks import bad, results


def promising(resources: dict[str, int]) -> Expected:
    """The lab whose nodes are promised these resources."""
    groups = entry()["groups"]
    groups["h100"]["resources"] = resources
    return Expected.of(inventory.parse("lab", entry(groups=groups)))


def offered(evidence: Evidence, name: str) -> dict[str, str]:
    """What a node offers, to be changed."""
    found = evidence.find("nodes", name)
    assert found is not None
    allocatable: dict[str, str] = found["status"]["allocatable"]
    return allocatable


def kernels(evidence: Evidence, *versions: str) -> list[dict[str, Any]]:
    """A precompiled driver: a DaemonSet for each kernel; gpu-0 runs the first kernel and gpu-1 the last."""
    found = []
    for version in versions:
        one = operand(f"nvidia-driver-daemonset-{version}-ubuntu24.04", "driver")
        one["metadata"]["labels"] = {"app.kubernetes.io/component": "nvidia-driver"}
        one["spec"]["template"]["spec"]["nodeSelector"]["kernel"] = version
        one["status"] = {"desiredNumberScheduled": 1, "numberReady": 1}
        found.append(one)
    for name, version in (("gpu-0", versions[0]), ("gpu-1", versions[-1])):
        run_kernel(evidence, name, version)
    others = [
        one for one in evidence.cluster["daemonsets.apps"] if one["metadata"]["name"] != "nvidia-driver-daemonset"
    ]
    evidence.cluster["daemonsets.apps"] = [*others, *found]
    return found


def run_kernel(evidence: Evidence, name: str, version: str) -> None:
    found = evidence.find("nodes", name)
    assert found is not None
    found["metadata"]["labels"]["kernel"] = version


@pytest.mark.parametrize("resource", ["vpc.amazonaws.com/efa", "nvidia.com/mig-1g.10gb", "nvidia.com/rail_0_pool"])
def test_any_promised_resource_is_judged(healthy: Evidence, resource: str) -> None:
    expected = promising({"nvidia.com/gpu": 8, "rdma/rdma_shared_device_a": 63, resource: 4})
    offered(healthy, "gpu-0")[resource] = "4"
    offered(healthy, "gpu-1")[resource] = "3"
    told = [(one.id, one.finding.detail) for one in bad(expected, healthy)]
    assert told == [("resources.allocatable/node/gpu-1", f"{resource}: 3 of 4")]
    del offered(healthy, "gpu-1")[resource]
    assert [one.finding.observed for one in bad(expected, healthy)] == ["0"]
    offered(healthy, "gpu-1")[resource] = "1k"
    assert bad(expected, healthy) == []


def test_a_group_of_mig_devices_alone_proves_no_gpus(healthy: Evidence) -> None:
    expected = promising({"nvidia.com/mig-1g.10gb": 56})
    for name in ("gpu-0", "gpu-1"):
        offered(healthy, name).update({"nvidia.com/gpu": "0", "nvidia.com/mig-1g.10gb": "56"})
    found = {one.id: one.status for one in results(expected, healthy) if one.check.endswith(".allocatable")}
    assert found["gpu.allocatable/node/gpu-0"] is Status.SKIP
    assert found["resources.allocatable/node/gpu-0"] is Status.PASS
    offered(healthy, "gpu-1")["nvidia.com/gpu"] = "1"
    assert "gpu.allocatable/node/gpu-1" in {one.id for one in bad(expected, healthy)}


def test_the_driver_may_have_a_daemonset_for_each_kernel(expected: Expected, healthy: Evidence) -> None:
    _, last = kernels(healthy, "6.8.0-40", "6.8.0-41")
    assert bad(expected, healthy) == []
    last["status"]["numberReady"] = 0
    healthy.cluster["pods"] = [pod(last, "gpu-1")]
    (found,) = [one for one in bad(expected, healthy) if one.check == "gpu.operands"]
    assert found.id == "gpu.operands/object/nvidia-driver-daemonset"
    assert (found.finding.reason, found.finding.nodes) == ("PodsNotReady", ("gpu-1",))


def test_a_kernel_without_a_driver_is_told(expected: Expected, healthy: Evidence) -> None:
    kernels(healthy, "6.8.0-40")
    run_kernel(healthy, "gpu-1", "6.8.0-42")
    (found,) = [one for one in bad(expected, healthy) if one.check == "gpu.operands"]
    assert (found.finding.reason, found.finding.nodes) == ("WantsTooFewPods", ("gpu-1",))
    assert "label kernel is 6.8.0-42" in found.finding.detail
