"""An all-reduce whose pods do not all start: who is missing, and when waiting for them ends."""

from __future__ import annotations

import json
from typing import Any

import pytest
from gpuready.validators.acceptance.run import _given_up
from gpuready.validators.acceptance.verdicts import INDEX_LABEL, RUN_LABEL, WORKLOAD_LABEL
from gpuready.validators.checks.nccl import nccl_run
from gpuready.validators.evidence import Evidence
from gpuready.validators.expected import Expected
from gpuready.validators.model import Finding, Status

from .conftest import gpu_node


def pod(index: int, phase: str, node: str | None = None, **status: Any) -> dict[str, Any]:
    labels = {RUN_LABEL: "r1", WORKLOAD_LABEL: "nccl-pair", INDEX_LABEL: str(index)}
    spec = {"nodeName": node} if node else {}
    return {"metadata": {"name": f"pod-{index}", "labels": labels}, "spec": spec, "status": {"phase": phase, **status}}


def waited(index: int, node: str, *missing: int) -> dict[str, Any]:
    """A pod that ended since others did not come."""
    message = json.dumps({"index": index, "exit": 3, "missing": list(missing)})
    ended = {"state": {"terminated": {"exitCode": 1, "message": message}}}
    return pod(index, "Failed", node, containerStatuses=[ended])


def judged(expected: Expected, *pods: dict[str, Any]) -> Finding:
    evidence = Evidence(cluster={"nodes": [gpu_node("gpu-0"), gpu_node("gpu-1")], "pods": list(pods)})
    evidence.about |= {"run": "r1", "nccl": {"nccl-pair": {"nodes": ["gpu-0", "gpu-1"]}}}
    (finding,) = nccl_run(expected, evidence)
    return finding


def test_missing_ranks_are_named_with_their_node_and_why(expected: Expected) -> None:
    unplaced = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "Insufficient rdma/x"}
    finding = judged(expected, waited(0, "gpu-0", 1), pod(1, "Pending", conditions=[unplaced]))
    assert (finding.status, finding.reason, finding.nodes) == (Status.FAIL, "RanksMissing", ("gpu-1",))
    assert finding.detail == "ranks 8 to 15, on gpu-1: Unschedulable: Insufficient rdma/x"


def test_a_pod_that_was_never_made_is_missing_too(expected: Expected) -> None:
    finding = judged(expected, waited(0, "gpu-0", 1))
    assert (finding.reason, finding.nodes) == ("RanksMissing", ("gpu-1",))


def test_a_pod_that_runs_unheard_points_at_the_network(expected: Expected) -> None:
    finding = judged(expected, waited(0, "gpu-0", 1), pod(1, "Running", "gpu-1"))
    assert finding.detail == "ranks 8 to 15, on gpu-1: their pods run, and the others could not hear of them"
    both = judged(expected, waited(0, "gpu-0", 1), waited(1, "gpu-1", 0))
    assert both.reason == "RunFailed", "both were there, whatever they say"


def test_ranks_that_hang_are_named(expected: Expected) -> None:
    def hung(index: int, *ranks: int) -> dict[str, Any]:
        message = json.dumps({"index": index, "exit": 124, "hung": list(ranks)})
        return pod(index, "Failed", f"gpu-{index}", containerStatuses=[
            {"state": {"terminated": {"exitCode": 1, "message": message}}},
        ])  # fmt: skip

    finding = judged(expected, hung(0, 0, 3), hung(1, 11))
    assert (finding.reason, finding.detail) == ("RunFailed", "gpu-0: exit 1; ranks that hang: 0, 3, 11")


@pytest.mark.parametrize(
    ("phases", "over"),
    [
        (["Failed", "Pending"], True),
        (["Failed", "Running"], False),
        (["Running", "Pending"], False),
        (["Succeeded", "Pending"], False),
        ([], False),
    ],
)
def test_who_failed_waiting_is_not_waited_for(phases: list[str], over: bool) -> None:
    assert _given_up([pod(index, phase) for index, phase in enumerate(phases)]) is over
