"""What an acceptance keeps of a cluster, and what later runs are held against."""

from __future__ import annotations

import dataclasses

import pytest
from gpuready.validators.acceptance import baseline, manifests
from gpuready.validators.checks.benchmark import limits, nccl_bandwidth
from gpuready.validators.model import ClusterIdentity, Result, Run, Status

from .lab import Lab


def accepted(lab: Lab, status: Status = Status.PASS, reason: str = "AsExpected") -> Run:
    """A run in which every check that vouches for a figure ended so."""
    results = []
    for check in ("nccl.run", "nccl.transport", "nccl.rails", "nccl.errors", "nccl.correct", "nccl.bandwidth"):
        (finding, *_) = nccl_bandwidth(lab.expected, lab.evidence)
        ended = dataclasses.replace(finding, status=status, reason=reason, required=False)
        results.append(Result(check, ended, "", "", "fabric"))
    return Run("accept", ClusterIdentity("lab", None, None, False), "", 1.0, 1, tuple(results))


def test_a_passing_acceptance_is_kept_by_what_it_was_measured_on() -> None:
    lab = Lab(4, {})
    new = baseline.worth_keeping(accepted(lab), lab.expected, lab.evidence)
    assert list(new) == [
        "h100/pair/2-nodes/all_reduce/8589934592/8xNVIDIA-H100-80GB-HBM3/8x400-ib",
        "h100/all/4-nodes/all_reduce/8589934592/8xNVIDIA-H100-80GB-HBM3/8x400-ib",
    ]
    assert all(one["busbw_gbytes_s"] > 380 for one in new.values())


def test_what_is_not_proved_is_not_kept() -> None:
    lab = Lab(4, {})
    assert baseline.worth_keeping(accepted(lab, Status.WARN), lab.expected, lab.evidence) == {}
    run = accepted(lab)
    partly = dataclasses.replace(run, results=run.results[:-1])
    assert baseline.worth_keeping(partly, lab.expected, lab.evidence) == {}
    assert baseline.worth_keeping(accepted(lab, Status.FAIL), lab.expected, lab.evidence) == {}


def test_a_baseline_is_raised_and_never_lowered() -> None:
    lab = Lab(2, {})
    ((name, one),) = baseline.measured(lab.expected, lab.evidence).items()
    for before, kept in ((one["busbw_gbytes_s"] + 1, False), (one["busbw_gbytes_s"] - 1, True)):
        lab.evidence.about["baseline"] = {name: {"busbw_gbytes_s": before}}
        assert (name in baseline.worth_keeping(accepted(lab), lab.expected, lab.evidence)) == kept


@pytest.mark.parametrize(("own", "status"), [(700.0, Status.FAIL), (520.0, Status.WARN), (460.0, Status.PASS)])
def test_a_run_is_held_against_what_the_cluster_reached(own: float, status: Status) -> None:
    lab = Lab(2, {})
    (name,) = baseline.measured(lab.expected, lab.evidence)
    lab.evidence.about["baseline"] = {name: {"busbw_gbytes_s": own, "time": "2026-01-01T00:00:00Z"}}
    (finding,) = nccl_bandwidth(lab.expected, lab.evidence)
    assert finding.status is status
    assert finding.detail.endswith(f"floor {0.8 * own:.1f} GB/s ({own:.1f} GB/s of this cluster, 2026-01-01T00:00:00Z)")


def test_a_low_baseline_does_not_lower_the_floor_of_the_class() -> None:
    lab = Lab(2, {})
    (name,) = baseline.measured(lab.expected, lab.evidence)
    lab.evidence.about["baseline"] = {name: {"busbw_gbytes_s": 100.0}}
    bar = limits(lab.expected, lab.evidence, lab.expected.cluster.groups[0], "pair", 2)
    assert bar is not None and (bar.fail, bar.warn) == (352.0, 404.8)


def test_a_class_without_a_figure_is_held_against_its_own_past() -> None:
    lab = Lab(2, {})
    group = dataclasses.replace(lab.expected.cluster.groups[0], gpu_product="NVIDIA-L40S")
    assert limits(lab.expected, lab.evidence, group, "pair", 2) is None
    name = baseline.key(group, "pair", 2, manifests.LARGEST_BYTES)
    lab.evidence.about["baseline"] = {name: {"busbw_gbytes_s": 100.0}}
    bar = limits(lab.expected, lab.evidence, group, "pair", 2)
    assert bar is not None and bar.fail == 80.0
