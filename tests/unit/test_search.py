"""The search of an acceptance without a cluster: pods as a rehearsal ends them, and what follows from what they say."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from gpuready.charts_values import inventory
from gpuready.rehearsal.actors import outcomes
from gpuready.rehearsal.outputs.nccl import Host, narrowed, render
from gpuready.validators import localise
from gpuready.validators.acceptance import allreduce, baseline, manifests, plan, search
from gpuready.validators.acceptance.verdicts import RUN_LABEL, WORKLOAD_LABEL
from gpuready.validators.checks.benchmark import limits, nccl_bandwidth, nccl_slow
from gpuready.validators.evidence import Evidence
from gpuready.validators.expected import Expected
from gpuready.validators.model import ClusterIdentity, Finding, Result, Run, Status

from .conftest import entry, gpu_node

NICS = tuple(f"mlx5_{number}" for number in range(8))
OWNER = {"metadata": {"name": "anchor-x", "uid": "u"}}
SCRIPT = Path(allreduce.__file__)


def host(name: str, slow: Mapping[str, float] | None = None, **changes: Any) -> Host:
    """A pod on an H100 node; ``slow`` is the share of its rate that a NIC reaches."""
    one = Host(name, 8, NICS, "IB", 400, rdma=True, gdr=True, address="192.0.2.1", slow=slow or {})
    return dataclasses.replace(one, **changes)


class Lab:
    """An accepted cluster of H100 nodes, some of which are slow."""

    def __init__(self, count: int, slow: Mapping[str, Mapping[str, float]], **changes: Any) -> None:
        names = [f"gpu-{number}" for number in range(count)]
        groups = entry()["groups"]
        groups["h100"]["nodes"] = names
        self.expected = Expected.of(inventory.parse("lab", entry(groups=groups, **changes)))
        self.evidence = Evidence(cluster={"nodes": [gpu_node(name) for name in names], "pods": []})
        self.evidence.about |= {"kind": "accept", "run": "r1", "time": "2026-01-02T00:00:00Z"}
        self.hosts = {name: host(name, slow.get(name)) for name in names}
        self.plan = plan.plan(self.expected, self.evidence, [], nccl="all")
        for workload, targets in self.plan.nccl.runs.items():
            self.run(workload, [self.hosts[one.node] for one in targets])

    def run(self, workload: str, hosts: Sequence[Host]) -> None:
        """Put the logs and pods of an all-reduce into the evidence."""
        done = render(hosts, min_bytes=1 << 30, max_bytes=8 << 30, seed=7)
        self.evidence.logs[workload] = {one.name: done.logs[one.name] for one in hosts}
        self.evidence.about.setdefault("nccl", {})[workload] = {"nodes": [one.name for one in hosts]}
        for one in hosts:
            labels = {RUN_LABEL: "r1", WORKLOAD_LABEL: workload}
            state = {"terminated": {"exitCode": 0}}
            pod = {
                "metadata": {"name": one.name, "labels": labels},
                "spec": {"nodeName": one.name},
                "status": {"phase": "Succeeded", "containerStatuses": [{"state": state}]},
            }
            self.evidence.cluster["pods"].append(pod)

    def pods(self, run: localise.Run, number: int) -> list[dict[str, Any]]:
        """The pods of a run of the search, played from the very Job that would be made."""
        targets = [one for one in self.plan.targets if one.node in run.nodes]
        names = tuple(NICS[rail] for rail in run.rails)
        job = manifests.search_job("r1", run.id, "w", targets, names, run.repeats, self.expected.cluster, OWNER, 60)
        spec = job["spec"]["template"]["spec"]
        pods = [{"metadata": {"name": name, "uid": name}, "spec": spec} for name in run.nodes]
        ended = outcomes.nccl_probe(pods, [self.hosts[name] for name in run.nodes], f"{number}")
        for pod in pods:
            said = ended[str(pod["metadata"]["uid"])]
            state = {"terminated": {"exitCode": said.exit_code, "message": said.message}}
            pod["status"] = {"phase": "Succeeded", "containerStatuses": [{"state": state}]}
        return pods

    def search(self) -> list[Finding]:
        """Search as acceptance does, and judge."""
        slow, refused = search.slow_runs(self.expected, self.evidence, self.plan)
        about: dict[str, Any] = {"not_searched": refused, "searches": []}
        for one in slow:
            names = search.rails_of(one.run)
            found = search.start(self.expected, self.evidence, one)
            while planned := found.next_round():
                for run in planned:
                    pods = self.pods(run, len(found.outcomes))
                    found.record(run.id, search.outcome(pods, len(run.nodes), names, in_full=True))
            about["searches"].append(
                {
                    "workload": one.run.workload,
                    "missed": "fail",
                    "nodes": [target.node for target in one.targets],
                    "rounds": found.rounds,
                    "runs": len(found.runs),
                    "seconds": 1.0,
                    "rails": list(names),
                    "verdicts": [verdict.to_json() for verdict in found.verdicts()],
                    "state": found.to_json(),
                }
            )
        if slow or refused:
            # As it comes back from a saved bundle.
            self.evidence.about["nccl_search"] = json.loads(json.dumps(about))
        return list(nccl_slow(self.expected, self.evidence))


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


def test_two_slow_parts_are_both_named() -> None:
    found = Lab(8, {"gpu-1": {"mlx5_0": 0.4}, "gpu-6": dict.fromkeys(NICS, 0.6)}).search()
    assert {one.subject.name for one in found} == {"gpu-1/mlx5_0", "gpu-6"}


def test_of_two_nodes_none_is_accused_but_the_nic_is_named() -> None:
    (finding,) = Lab(2, {"gpu-1": {"mlx5_5": 0.5}}).search()
    assert (finding.status, finding.required, finding.reason) == (Status.UNPROVEN, False, "Undecided")
    assert finding.cause == "one of two nodes is slow, and without a third it cannot be told which"
    assert finding.detail.startswith("between them mlx5_5 is slow: 2")
    assert finding.nodes == ("gpu-0", "gpu-1")


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


def launched(tmp_path: Path, port: int, **env: str) -> list[dict[str, Any]]:
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
        command = [sys.executable, str(SCRIPT)]
        pods.append(subprocess.Popen(command, env={**os.environ, **settings, **env}, stdout=subprocess.PIPE))
    try:
        assert [one.wait(timeout=120) for one in pods] == [0, 0]
    finally:
        for one in pods:
            one.kill()
            one.communicate()
    return [json.loads((tmp_path / f"verdict.{index}").read_text()) for index in range(2)]


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
def test_the_script_runs_on_pytorch(tmp_path: Path, free_port: int) -> None:
    first, second = launched(tmp_path, free_port, GPUREADY_REPEATS="3")
    assert (first["exit"], first["ranks"], first["wrong"], len(first["series"])) == (0, 2, 0, 3)
    assert first["busbw_gbytes_s"] == first["series"][-1] > 0
    assert second == {"index": 1, "exit": 0, "ranks": 2}
    first, _ = launched(tmp_path, free_port, GPUREADY_REPEATS="2", GPUREADY_RAILS="mlx5_0,mlx5_1")
    assert {name: len(series) for name, series in first["rails"].items()} == {"mlx5_0": 2, "mlx5_1": 2}


@pytest.fixture
def free_port() -> int:
    """The first of some ports that nobody listens on."""
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


# -- baselines ----------------------------------------------------------------------------------------------------


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
