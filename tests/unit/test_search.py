"""The search of an acceptance without a cluster: pods as a rehearsal ends them, and what follows from what they say."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gpuready.rehearsal.outputs.nccl import narrowed
from gpuready.validators import localise
from gpuready.validators.acceptance import allreduce, killed, manifests, search
from gpuready.validators.acceptance.verdicts import INDEX_LABEL, RUN_LABEL, not_started, verdict_of
from gpuready.validators.checks.benchmark import nccl_slow
from gpuready.validators.model import Status

from .lab import NICS, OWNER, Lab, host

SCRIPT = Path(allreduce.__file__)


@pytest.mark.parametrize("count", [3, 4, 8, 9])
def test_a_slow_nic_is_named(count: int) -> None:
    finding, *more = Lab(count, {"gpu-2": {"mlx5_5": 0.5}}).search()
    assert (finding.status, finding.reason, more) == (Status.FAIL, "NicSlow", [])
    assert (finding.subject.kind, finding.subject.name) == ("nic", "gpu-2/mlx5_5")
    assert finding.nodes == ("gpu-2",)
    slow, usual = (float(text) for text in finding.detail.partition(" GB/s")[0].split(" of "))
    assert (slow, usual) == (pytest.approx(24, rel=0.02), pytest.approx(48, rel=0.02))
    assert finding.observed == f"{slow} GB/s"


@pytest.mark.parametrize("count", [3, 8])
def test_a_slow_node_is_named(count: int) -> None:
    (finding,) = Lab(count, {"gpu-1": dict.fromkeys(NICS, 0.5)}).search()
    assert (finding.reason, finding.subject.kind, finding.subject.name) == ("NodeSlow", "node", "gpu-1")


@pytest.mark.parametrize("count", [3, 8])
def test_a_slow_nvlink_is_named_by_the_runs_of_single_nodes(count: int) -> None:
    lab = Lab(count, {}, broken={"gpu-1": {"nvlink": 0.5}})
    (finding,) = lab.search()
    assert (finding.status, finding.reason) == (Status.FAIL, "NodeSlowInside")
    assert (finding.subject.kind, finding.subject.name) == ("node", "gpu-1")
    assert "slow or failing alone, 2 times: no NIC takes part" in finding.detail
    slow, usual = (float(text) for text in finding.detail.partition(" GB/s")[0].split(" of "))
    assert (slow, usual) == (pytest.approx(237.5, rel=0.02), pytest.approx(475, rel=0.02))
    assert "nvidia-smi nvlink" in (finding.fix or "")


def test_two_slow_parts_are_both_named() -> None:
    found = Lab(8, {"gpu-1": {"mlx5_0": 0.4}, "gpu-6": dict.fromkeys(NICS, 0.6)}).search()
    assert {one.subject.name for one in found} == {"gpu-1/mlx5_0", "gpu-6"}


def test_of_two_nodes_none_is_accused_but_the_nic_is_named() -> None:
    (finding,) = Lab(2, {"gpu-1": {"mlx5_5": 0.5}}).search()
    assert (finding.status, finding.required, finding.reason) == (Status.UNPROVEN, False, "Undecided")
    assert finding.cause == "one of two nodes is slow, and without a third it cannot be told which"
    assert finding.detail.startswith("between them mlx5_5 is slow: 2")
    assert finding.nodes == ("gpu-0", "gpu-1")


def test_what_the_log_hints_at_is_looked_at_first_and_accuses_nobody() -> None:
    lab = Lab(8, {"gpu-2": {"mlx5_5": 0.5}})
    logs = lab.evidence.logs["nccl-all"]
    mark = "There are mismatched physical devices between local (mlx5_0) and remote (mlx5_1)"
    logs["gpu-6"] += f"gpu-6:101:301 [0] NCCL INFO {mark}\n"
    (slow,), _ = search.slow_runs(lab.expected, lab.evidence, lab.plan)
    assert search.votes(slow) == [localise.Vote("gpu-6", "its order of NICs differs from its peers'")]
    (finding,) = lab.search()
    assert finding.subject.name == "gpu-2/mlx5_5"


def test_a_warning_of_most_nodes_hints_at_none() -> None:
    lab = Lab(4, {"gpu-2": {"mlx5_5": 0.5}})
    for name, log in lab.evidence.logs["nccl-all"].items():
        lab.evidence.logs["nccl-all"][name] = f"\n{name}:101:301 [0] init.cc:7 NCCL WARN something new\n{log}"
    (slow,), _ = search.slow_runs(lab.expected, lab.evidence, lab.plan)
    assert len(slow.run.report.warnings) == 4
    assert search.votes(slow) == []


def test_a_healthy_cluster_is_not_searched() -> None:
    lab = Lab(4, {})
    assert search.slow_runs(lab.expected, lab.evidence, lab.plan) == ([], {})
    (finding,) = lab.search()
    assert finding.status is Status.PASS


def test_what_another_check_explains_is_not_searched() -> None:
    lab = Lab(4, {})
    lab.hosts["gpu-3"] = host("gpu-3", gdr=False)
    lab.evidence.parsed.clear()
    lab.evidence.cluster["pods"].clear()
    for workload, targets in lab.plan.nccl.runs.items():
        lab.run(workload, [lab.hosts[one.node] for one in targets])
    found = lab.search()
    assert {one.status for one in found} == {Status.SKIP}
    assert {one.detail for one in found} == {"RDMA runs without GPUDirect (gpu-3)"}


def test_with_pairs_alone_the_report_says_what_a_search_takes() -> None:
    lab = Lab(4, {"gpu-3": {"mlx5_5": 0.5}})
    found = list(nccl_slow(lab.expected, lab.evidence))
    assert {(one.status, one.detail) for one in found} == {(Status.SKIP, "that takes --nccl all")}


# -- what pods say ------------------------------------------------------------------------------------------------


def pod(phase: str, code: int | None = None, **message: Any) -> dict[str, Any]:
    state: dict[str, Any] = {} if code is None else {"terminated": {"exitCode": code, "message": json.dumps(message)}}
    status = {"phase": phase, "containerStatuses": [{"state": state}]}
    return {"metadata": {"name": "p"}, "spec": {"nodeName": "n"}, "status": status}


RUNNING, PENDING = pod("Running"), pod("Pending")
GOOD = pod("Succeeded", 0, index=0, series=[390.0, 391.0])


@pytest.mark.parametrize(
    ("pods", "in_full", "expected"),
    [
        ([GOOD, pod("Succeeded", 0, index=1)], True, localise.Outcome((390.0, 391.0))),
        ([pod("Failed", 1, index=0), GOOD], True, localise.Outcome(failed=True)),
        ([pod("Succeeded", 0, index=0, series=[390.0], wrong=3)], True, localise.Outcome(failed=True)),
        # Both run to the end of their time: NCCL hangs. One that was never placed says nothing.
        ([RUNNING, RUNNING], True, localise.Outcome(failed=True)),
        ([RUNNING, RUNNING], False, localise.Outcome()),
        ([RUNNING, PENDING], True, localise.Outcome()),
        ([], True, localise.Outcome()),
        ([pod("Succeeded", 0, index=0, rails={"mlx5_1": [47.0, 48.0]})], True, localise.Outcome((), {1: (47.0, 48.0)})),
        # A lone GPU has nobody to reduce with.
        ([pod("Succeeded", 0, index=0, series=[0.0])], True, localise.Outcome()),
    ],
)
def test_what_a_run_measured(pods: list[dict[str, Any]], in_full: bool, expected: localise.Outcome) -> None:
    assert search.outcome(pods, max(len(pods), 1), NICS, in_full=in_full) == expected


def test_the_jobs_of_a_search_are_short_and_choose_nics_only_for_rails() -> None:
    lab = Lab(4, {})
    both = lab.plan.targets[:2]
    jobs = [
        manifests.search_job("r1", "n", "w", both, rails, 5, lab.expected.cluster, OWNER, 60)
        for rails in ((), NICS[:2])
    ]
    envs = [
        {one["name"]: one["value"] for one in job["spec"]["template"]["spec"]["containers"][0]["env"]} for job in jobs
    ]
    assert envs[1].pop("GPUREADY_RAILS") == "mlx5_0,mlx5_1"
    assert envs[0] == envs[1]
    assert envs[0]["GPUREADY_MASTER"] == "n-r1-0.nccl-search-r1.gpuready.svc"
    assert int(envs[0]["GPUREADY_MAX_BYTES"]) < manifests.LARGEST_BYTES
    assert "NCCL_IB_HCA" not in envs[0]
    _, service = manifests.search_objects("r1", OWNER)
    labels = jobs[0]["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert jobs[0]["spec"]["template"]["spec"]["subdomain"] == service["metadata"]["name"]


@pytest.mark.parametrize(
    ("hca", "left"),
    [
        ("", 12),
        ("=mlx5_1", 1),
        ("mlx5_1", 3),
        ("^mlx5_1", 9),
        ("^=mlx5_1", 11),
        ("=mlx5_1:1,mlx5_2", 2),
        ("=mlx5_99", 0),
    ],
)
def test_the_rehearsal_respects_nccl_ib_hca(hca: str, left: int) -> None:
    nics = tuple(f"mlx5_{number}" for number in range(12))
    assert len(narrowed(host("a", nics=nics), hca).nics) == left


# -- the script ---------------------------------------------------------------------------------------------------


def test_each_rail_has_a_process_with_its_nic_alone() -> None:
    settings = {"rails": ["mlx5_0", "mlx5_1"], "gpus": 8, "port": "29500", "backend": "gloo"}
    first, second = allreduce.rails(settings)
    assert (first["NCCL_IB_HCA"], second["NCCL_IB_HCA"]) == ("=mlx5_0", "=mlx5_1")
    assert (first["GPUREADY_PORT"], second["GPUREADY_PORT"]) == ("29501", "29502")
    # Without a look at the PCI bus, NICs are spread over the GPUs in order.
    assert (first["GPUREADY_LOCAL_RANK"], second["GPUREADY_LOCAL_RANK"]) == ("0", "4")


@pytest.mark.parametrize(
    ("nic", "gpus", "found"),
    [
        ("/sys/devices/pci0/sw1/nic", ["/sys/devices/pci0/sw0/gpu", "/sys/devices/pci0/sw1/gpu"], 1),
        # As near to both: the one whose turn it is.
        ("/sys/devices/pci0/sw1/nic", ["/sys/devices/pci0/sw1/a", "/sys/devices/pci0/sw1/b"], 7),
        ("/sys/devices/pci0/sw1/nic", [], 7),
    ],
)
def test_a_rail_is_measured_from_the_gpu_next_to_its_nic(nic: str, gpus: list[str], found: int) -> None:
    assert allreduce.nearest(nic, gpus, 7) == found


def launched(python: str, tmp_path: Path, port: int, **env: str) -> list[dict[str, Any]]:
    """The verdicts of two pods of the script on PyTorch's gloo, which needs no GPU."""
    pods = []
    for index in range(2):
        settings = {
            "JOB_COMPLETION_INDEX": str(index),
            "GPUREADY_NODES": "2",
            "GPUREADY_GPUS": "1",
            "GPUREADY_MASTER": "127.0.0.1",
            "GPUREADY_PORT": str(port),
            "GPUREADY_MIN_BYTES": str(1 << 16),
            "GPUREADY_MAX_BYTES": str(1 << 17),
            "GPUREADY_BACKEND": "gloo",
            "GPUREADY_TERMINATION_LOG": str(tmp_path / f"verdict.{index}"),
        }
        command = [python, str(SCRIPT)]
        pods.append(subprocess.Popen(command, env={**os.environ, **settings, **env}, stdout=subprocess.PIPE))
    try:
        assert [one.wait(timeout=120) for one in pods] == [0, 0]
    finally:
        for one in pods:
            one.kill()
            one.communicate()
    return [json.loads((tmp_path / f"verdict.{index}").read_text()) for index in range(2)]


@pytest.fixture(scope="session")
def torch_python() -> str:
    """An interpreter that has PyTorch: this one, or the system's (Debian's package python3-torch)."""
    for python in (sys.executable, "/usr/bin/python3"):
        with contextlib.suppress(OSError):
            done = subprocess.run([python, "-c", "import torch.distributed"], capture_output=True, timeout=60)
            if done.returncode == 0:
                return python
    pytest.skip("PyTorch is not installed")


def test_the_script_runs_on_pytorch(tmp_path: Path, free_port: int, torch_python: str) -> None:
    first, second = launched(torch_python, tmp_path, free_port, GPUREADY_REPEATS="3")
    assert (first["exit"], first["ranks"], first["wrong"], len(first["series"])) == (0, 2, 0, 3)
    assert first["busbw_gbytes_s"] == first["series"][-1] > 0
    assert second == {"index": 1, "exit": 0, "ranks": 2}
    first, _ = launched(torch_python, tmp_path, free_port, GPUREADY_REPEATS="2", GPUREADY_RAILS="mlx5_0,mlx5_1")
    assert {name: len(series) for name, series in first["rails"].items()} == {"mlx5_0": 2, "mlx5_1": 2}


@pytest.fixture
def free_port() -> int:
    """The first of some ports that nobody listens on."""
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


# -- a search that was interrupted --------------------------------------------------------------------------------

NOW = "2026-01-02T00:30:00Z"


def half_done(lab: Lab) -> tuple[search.Slow, str]:
    """What an all-reduce was too slow for, and the state that a killed search left behind after its first round."""
    (slow,), _ = search.slow_runs(lab.expected, lab.evidence, lab.plan)
    found = search.start(lab.expected, lab.evidence, slow)
    for run in found.next_round() or []:
        pods = lab.pods(run, len(found.outcomes))
        found.record(run.id, search.outcome(pods, len(run.nodes), NICS, in_full=True))
    entry = {"rails": list(NICS), "time": "2026-01-02T00:00:00Z", "state": found.to_json()}
    return slow, json.dumps({"searches": [entry]})


def test_a_search_goes_on_from_what_a_killed_run_knew() -> None:
    lab = Lab(8, {"gpu-2": {"mlx5_5": 0.5}})
    slow, left = half_done(lab)
    resumed = search.resumed(search.start(lab.expected, lab.evidence, slow), NICS, NOW, left)
    assert resumed is not None
    found, since = resumed
    # Its age goes on counting, however often it is gone on with.
    assert (len(found.outcomes), since) == (8, "2026-01-02T00:00:00Z")
    while planned := found.next_round():
        assert all(run.kind != "single" or run.round > 1 for run in planned), "the first round is done"
        for run in planned:
            pods = lab.pods(run, len(found.outcomes))
            found.record(run.id, search.outcome(pods, len(run.nodes), NICS, in_full=True))
    assert found.rounds <= 4
    assert [one.subject for one in found.verdicts() if one.accuses] == ["gpu-2 rail 5"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"time": "2026-01-01T22:00:00Z"}, "too old"),
        ({"rails": ["mlx5_0"]}, "other NICs"),
        ({"state": {}}, "no state"),
        ({"time": None}, "no time"),
    ],
)
def test_a_search_starts_anew_where_the_question_is_another(change: dict[str, Any], why: str) -> None:
    lab = Lab(8, {"gpu-2": {"mlx5_5": 0.5}})
    slow, left = half_done(lab)
    fresh = search.start(lab.expected, lab.evidence, slow)
    assert search.resumed(fresh, NICS, NOW, left) is not None
    entry = {**json.loads(left)["searches"][0], **change}
    assert search.resumed(fresh, NICS, NOW, json.dumps({"searches": [entry]})) is None, why


def test_a_search_starts_anew_among_other_nodes_and_floors() -> None:
    lab = Lab(8, {"gpu-2": {"mlx5_5": 0.5}})
    slow, left = half_done(lab)
    fewer = dataclasses.replace(slow, targets=slow.targets[:-1])
    warned = dataclasses.replace(slow, ratio=0.92)
    for other in (fewer, warned):
        assert search.resumed(search.start(lab.expected, lab.evidence, other), NICS, NOW, left) is None
    fresh = search.start(lab.expected, lab.evidence, slow)
    assert [search.resumed(fresh, NICS, NOW, text) for text in ("", "{", "[]", "{}", '{"searches": [1]}')] == [None] * 5


def test_pods_of_a_killed_run_hold_no_gpus() -> None:
    anchor = {"metadata": {"name": "anchor-dead", "labels": {RUN_LABEL: "dead"}}}
    pods = [{"metadata": {"name": name, "labels": {RUN_LABEL: run}}} for name, run in (("a", "dead"), ("b", "alive"))]
    pods.append({"metadata": {"name": "c"}})
    left = killed.Killed((anchor,)).others(pods)
    assert [one["metadata"]["name"] for one in left] == ["b", "c"]
    assert killed.Killed().others(pods) == pods


def test_a_pod_that_was_never_placed_accuses_nobody() -> None:
    waited = pod("Failed", 1, index=0, missing=[1])
    waited["metadata"]["labels"] = {INDEX_LABEL: "0"}
    absent = {**PENDING, "metadata": {"name": "q", "labels": {INDEX_LABEL: "1"}}}
    silent = {**RUNNING, "metadata": {"name": "q", "labels": {INDEX_LABEL: "1"}}}
    assert search.outcome([waited, absent], 2, NICS, in_full=True) == localise.Outcome()
    assert search.outcome([waited], 2, NICS, in_full=True) == localise.Outcome()
    # It runs and the other did not hear of it: that is what a broken network does.
    assert search.outcome([waited, silent], 2, NICS, in_full=True) == localise.Outcome(failed=True)
    assert not_started([verdict_of(one) for one in (waited, absent)]) == (1,)
