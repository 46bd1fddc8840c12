"""What Ctrl-C, a deadline or a silent API leave open is unproven: neither proved nor held against a node."""

from __future__ import annotations

from typing import Any

import pytest
from gpuready.validators import registry
from gpuready.validators.acceptance.verdicts import RUN_LABEL, WORKLOAD_LABEL
from gpuready.validators.evidence import Evidence, ReadFailure
from gpuready.validators.expected import Expected
from gpuready.validators.judge import judge
from gpuready.validators.model import Result, Run, Status

PROBES = ("probes.run", "smi.pod", "smi.gpus", "nccl.run")


def probe(workload: str, node: str, phase: str, exit_code: int | None = None) -> dict[str, Any]:
    """A probe pod of run r1 as the API shows it."""
    state = {"running": {}} if exit_code is None else {"terminated": {"exitCode": exit_code}}
    labels = {RUN_LABEL: "r1", WORKLOAD_LABEL: workload}
    return {
        "metadata": {"name": f"{workload}-{node}", "labels": labels},
        "spec": {"nodeName": node},
        "status": {"phase": phase, "containerStatuses": [{"state": state}]},
    }


@pytest.fixture
def cut(evidence: Evidence) -> Evidence:
    """A run that reached one node of two, and began its all-reduce."""
    evidence.about |= {"run": "r1", "kind": "accept", "nccl": {"nccl-pair": {"nodes": ["gpu-0", "gpu-1"]}}}
    evidence.cluster["pods"] = [
        probe("nvidia-smi", "gpu-0", "Failed", 9),
        probe("nvidia-smi", "gpu-1", "Running"),
        probe("nccl-pair", "gpu-0", "Running"),
        probe("nccl-pair", "gpu-1", "Running"),
    ]
    return evidence


def judged(expected: Expected, evidence: Evidence) -> dict[str, Result]:
    """The results of the probes by id."""
    found = judge(expected, evidence, [registry.get(one) for one in PROBES])
    return {one.id: one for one in found}


def test_without_a_reason_a_pod_that_did_not_end_is_a_failure(expected: Expected, cut: Evidence) -> None:
    found = judged(expected, cut)
    assert found["smi.pod/node/gpu-1"].status is Status.FAIL
    assert found["nccl.run/pair/gpu-0+gpu-1"].status is Status.FAIL


@pytest.mark.parametrize(
    ("change", "status", "told"),
    [
        ({"about": {"interrupted": True}}, Status.UNPROVEN, "interrupted by Ctrl-C"),
        ({"about": {"cut_short": "the 20 s of --timeout were up"}}, Status.UNPROVEN, "the 20 s of --timeout were up"),
        ({"failures": {"acceptance": ReadFailure("unreachable", "no answer")}}, Status.ERROR, "no answer"),
    ],
    ids=["interrupted", "late", "silent"],
)
def test_what_was_cut_short_is_open_and_what_had_ended_counts(
    expected: Expected, cut: Evidence, change: dict[str, dict[str, Any]], status: Status, told: str
) -> None:
    cut.about |= change.get("about", {})
    cut.failures |= change.get("failures", {})
    found = judged(expected, cut)
    root = found["probes.run/cluster/lab"]
    assert (root.status, root.finding.detail) == (status, told)
    assert found["smi.pod/node/gpu-0"].status is Status.FAIL
    for one in (found["smi.pod/node/gpu-1"], found["nccl.run/pair/gpu-0+gpu-1"]):
        assert (one.status, one.finding.detail) == (Status.UNPROVEN, told)


def test_a_refusal_of_the_probes_is_a_failure(expected: Expected, cut: Evidence) -> None:
    cut.failures["acceptance"] = ReadFailure("refused", "denied by a webhook")
    root = judged(expected, cut)["probes.run/cluster/lab"]
    assert (root.status, root.finding.reason) == (Status.FAIL, "ProbesRefused")


@pytest.mark.parametrize("key", ["leftovers", "cleanup_failed"])
def test_what_may_be_left_is_told_beside_the_cause(expected: Expected, cut: Evidence, key: str) -> None:
    cut.about |= {"interrupted": True, key: ["Job anchor-r1"] if key == "leftovers" else "Job anchor-r1"}
    detail = judged(expected, cut)["probes.run/cluster/lab"].finding.detail
    assert detail == "interrupted by Ctrl-C; its objects may still be there: Job anchor-r1"


@pytest.mark.parametrize(("status", "verdict"), [(Status.PASS, "incomplete"), (Status.FAIL, "fail")])
def test_an_interrupted_run_never_passes(expected: Expected, cut: Evidence, status: Status, verdict: str) -> None:
    some = [one for one in judged(expected, cut).values() if one.status is Status.FAIL]
    results = tuple(some if status is Status.FAIL else ())
    run = Run("check", None, "2026-01-01T00:00:00Z", 1.0, 1, results, interrupted=True)
    assert (run.exit_code, run.verdict) == (130, verdict)
    again = Run.from_json(run.to_json())
    assert (again.interrupted, again.exit_code, again.strict) == (True, 130, False)
