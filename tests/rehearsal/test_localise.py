"""`gpuready accept` names the node or the NIC that holds an all-reduce back, on one cluster of eight nodes."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from gpuready.charts_values.kube import Api
from gpuready.rehearsal import controlplane, engine, faults
from gpuready.rehearsal.state import State
from gpuready.validators.acceptance import baseline, holders
from gpuready.validators.acceptance.run import NAMESPACE

from .commands import BIN, ROOT, environment, report, run, until
from .test_accept import traces
from .test_check import kubeconfig_for

KEPT = f"{NAMESPACE}/configmaps/{baseline.NAME}"
# A search takes some forty pods one after the other; other tests may run beside this one.
SECONDS = 900.0


@pytest.fixture(scope="module")
def eight(binaries: engine.Binaries, tmp_path_factory: pytest.TempPathFactory) -> Iterator[State]:
    """Eight h100-ib nodes with the platform on them."""
    folder = tmp_path_factory.mktemp("localise") / "state"
    now = controlplane.up(folder, nodes=8, profile="h100-ib", leash=os.getpid())
    try:
        done = run("pyinfra", "inventory", "deploys/gpu.py", state_dir=folder, seconds=SECONDS)
        assert done.returncode == 0, done.stderr[-4000:]
        yield now
    finally:
        controlplane.down(folder)


@pytest.fixture
def api(eight: State) -> Iterator[Api]:
    api = Api.connect(eight.kubeconfig)
    yield api
    for name in faults.active(eight.folder):
        faults.heal(eight.folder, name)
    faults.settle(eight.folder, SECONDS)
    until(lambda: traces(api), lambda left: left == [], seconds=SECONDS)


def break_it(now: State, fault: str) -> None:
    """Inject a fault and wait until the fleet shows it."""
    faults.inject(now.folder, fault)
    faults.settle(now.folder, SECONDS)


def wrong(data: dict[str, Any]) -> list[dict[str, Any]]:
    """The results that are no pass."""
    return [one for one in data["results"] if one["status"] not in ("pass", "skip")]


def test_running_pods_come_page_by_page(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {one["metadata"]["name"] for one in api.list("/api/v1/pods", fieldSelector="status.phase=Running")}
    monkeypatch.setattr(holders, "_PAGE", 7)
    before = api.calls
    found = holders.running_pods(api)
    assert whole <= {one["metadata"]["name"] for one in found}
    assert api.calls - before > len(whole) // 7
    assert all(set(one["spec"]) == {"nodeName", "containers", "initContainers"} for one in found)


def test_a_healthy_cluster_is_not_searched_and_keeps_what_it_reached(
    eight: State, api: Api, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """By the shipped role, which must suffice."""
    file = kubeconfig_for(eight, "accept", tmp_path_factory.mktemp("role"))
    args = ("accept", "--cluster", "rehearsal", "--kubeconfig", str(file))
    data = report(eight, *args, seconds=SECONDS)
    assert (data["verdict"], "search" in data["nccl"]) == ("pass", False), wrong(data)
    kept = json.loads(api.get(KEPT)["data"]["baselines.json"])["baselines"]
    figures = {name: one["busbw_gbytes_s"] for name, one in data["nccl"]["baseline"]["measured"].items()}
    assert {name: one["busbw_gbytes_s"] for name, one in kept.items()} == figures
    assert [name.split("/")[1:3] for name in figures] == [["pair", "2-nodes"], ["all", "8-nodes"]]
    # The next run is held against them, and lowers none.
    data = report(eight, *args, seconds=SECONDS)
    assert data["verdict"] == "pass", wrong(data)
    bandwidth = next(one for one in data["results"] if one["id"] == "nccl.bandwidth/cluster/8 nodes")
    assert "GB/s of this cluster, 20" in bandwidth["detail"]
    after = json.loads(api.get(KEPT)["data"]["baselines.json"])["baselines"]
    assert all(after[name]["busbw_gbytes_s"] >= figure for name, figure in figures.items())


@pytest.mark.parametrize(
    ("fault", "answer"),
    [
        ("nic-slow", "a NIC is slower than the others (gpu-0003/mlx5_5)"),
        ("node-slow", "a node is slower than the others (gpu-0003)"),
    ],
)
def test_the_culprit_is_named_in_the_first_line(eight: State, api: Api, fault: str, answer: str) -> None:
    break_it(eight, fault)
    before = api.find(KEPT)
    data = report(eight, "accept", seconds=SECONDS)
    bad = wrong(data)
    assert (data["exit_code"], traces(api)) == (1, []), bad
    assert [one["check"] for one in bad] == ["nccl.slow", "nccl.bandwidth"], bad
    assert bad[1]["caused_by"] == bad[0]["id"]
    assert f"{bad[0]['cause']} ({bad[0]['subject']['name']})" == answer
    (search,) = data["nccl"]["search"]["searches"]
    assert search["rounds"] <= 4
    assert search["verdicts"][0]["nodes"] == ["gpu-0003"]
    # What is slow is no measure of what the cluster can do.
    assert (api.find(KEPT) or {}).get("data") == (before or {}).get("data")


def test_a_search_that_was_killed_is_gone_on_with_by_the_next_run(eight: State, api: Api) -> None:
    break_it(eight, "nic-slow")
    command = [str(BIN / "gpuready"), "accept"]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, cwd=ROOT, env=environment(eight.folder), stdout=quiet, stderr=quiet)

    def state() -> dict[str, Any]:
        for one in api.list(f"{NAMESPACE}/configmaps", resourceVersion=""):
            if one["metadata"]["name"].startswith("search-"):
                found: dict[str, Any] = json.loads(one["data"]["search.json"])["searches"][0]
                return found
        return {}

    try:
        until(lambda: len(state().get("state", {}).get("outcomes", ())), lambda done: done >= 8, seconds=SECONDS)
    finally:
        process.kill()
        process.wait(timeout=10)
    left = state()
    assert left["verdicts"]
    known = left["state"]["outcomes"]
    data = report(eight, "accept", seconds=SECONDS)
    (search,) = data["nccl"]["search"]["searches"]
    assert search["resumed"] >= len(known), "what the killed run measured counts"
    assert {name: search["state"]["outcomes"][name] for name in known} == known
    assert search["rounds"] <= 4
    first = wrong(data)[0]
    assert (first["check"], first["subject"]["name"]) == ("nccl.slow", "gpu-0003/mlx5_5")
    until(lambda: traces(api), lambda names: names == [], seconds=SECONDS)
