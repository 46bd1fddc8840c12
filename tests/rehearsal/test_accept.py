"""`gpuready accept` on a real API server: proves, names the culprit, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from gpuready.charts_values.kube import Api, Object
from gpuready.rehearsal.state import State
from gpuready.validators.acceptance import baseline, manifests
from gpuready.validators.acceptance.run import JOBS, NAMESPACE, PODS

from .commands import BIN, ROOT, environment, gpuready, report, run, until
from .test_check import healed, kubeconfig_for

__all__ = ["healed"]


def traces(api: Api) -> list[str]:
    """Everything in the probes' namespace that a run may have left. Baselines stay on purpose."""
    paths = (JOBS, PODS, f"{NAMESPACE}/services", f"{NAMESPACE}/configmaps")
    found = [item for path in paths for item in api.list(path, resourceVersion="")]
    kept = ("kube-root-ca.crt", baseline.NAME)
    return [one["metadata"]["name"] for one in found if one["metadata"]["name"] not in kept]


@pytest.fixture
def api(installed: State) -> Iterator[Api]:
    api = Api.connect(installed.kubeconfig)
    yield api
    until(lambda: traces(api), lambda left: left == [], seconds=60)


def test_a_healthy_cluster_is_proved(installed: State, api: Api) -> None:
    data = report(installed, "accept")
    assert (data["verdict"], data["counts"]["fail"], data["counts"]["warn"]) == ("pass", 0, 0)
    by_id = {one["id"]: one for one in data["results"]}
    for node in ("gpu-0000", "gpu-0001", "gpu-0002", "gpu-0003"):
        assert by_id[f"smi.gpus/node/{node}"]["detail"] == "8 x NVIDIA H100 80GB HBM3, driver 580.173.02"
        assert "8 of 8 rails used" in by_id[f"nccl.transport/node/{node}"]["detail"]
    for one in ("pair", "all"):
        transport = data["nccl"][one]["transport"]
        assert transport["gdr"] == "all"
        assert transport["gdr_channels"] == transport["net_channels"] > 0
    assert data["nccl"]["pair"]["ranks"] == 16 and data["nccl"]["all"]["ranks"] == 32
    assert {one["tier"] for one in data["results"]} == {"simulated"}
    assert traces(api) == []


def test_tcp_fallback_is_named_in_the_first_line(healed: State, api: Api) -> None:
    gpuready(healed, "rehearse", "inject", "tcp-fallback")
    until(lambda: report(healed, "accept")["counts"]["fail"], lambda failed: failed > 0, seconds=60)
    done = gpuready(healed, "accept")
    assert done.returncode == 1
    first = done.stdout.splitlines()[0]
    assert first == "REHEARSAL FAIL nccl.transport: NCCL fell back to TCP sockets (gpu-0003)"
    wrong = [one for one in report(healed, "accept")["results"] if one["status"] not in ("pass", "skip")]
    assert {one["caused_by"] for one in wrong[1:]} == {"nccl.transport/node/gpu-0003"}


def test_a_missing_gpu_is_seen_from_inside_too(healed: State, api: Api) -> None:
    gpuready(healed, "rehearse", "inject", "gpu-missing")
    until(lambda: gpuready(healed, "check").returncode, lambda code: code == 1)
    data = report(healed, "accept")
    assert data["results"][0]["id"] == "gpu.allocatable/node/gpu-0003"
    inside = next(one for one in data["results"] if one["id"] == "smi.gpus/node/gpu-0003")
    assert (inside["status"], inside["detail"]) == ("fail", "7 of 8")
    assert inside["caused_by"] == "gpu.allocatable/node/gpu-0003"


def test_the_shipped_role_is_enough(installed: State, api: Api, tmp_path: Path) -> None:
    file = kubeconfig_for(installed, "accept", tmp_path)
    data = report(installed, "accept", "--cluster", "rehearsal", "--kubeconfig", str(file))
    assert (data["verdict"], data["counts"]["unproven"]) == ("pass", 0)


def test_a_role_that_may_not_start_probes_proves_nothing(installed: State, api: Api, tmp_path: Path) -> None:
    file = kubeconfig_for(installed, "check", tmp_path)
    data = report(installed, "accept", "--cluster", "rehearsal", "--kubeconfig", str(file))
    assert (data["verdict"], data["exit_code"]) == ("incomplete", 2)
    assert data["results"][0]["check"] == "probes.run"
    assert data["results"][0]["reason"] == "PermissionMissing"


@pytest.fixture
def quota(installed: State, api: Api) -> Iterator[Callable[[str], None]]:
    """Sets a quota of the probes' namespace to 0; it is gone afterwards."""
    path = f"{NAMESPACE}/resourcequotas"

    def limit(what: str) -> None:
        body = {
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": {"name": "full"},
            "spec": {"hard": {what: "0"}},
        }
        api.create(path, body)
        until(lambda: api.get(f"{path}/full").get("status", {}).get("hard"), lambda hard: bool(hard))

    yield limit
    api.delete(f"{path}/full")
    until(lambda: api.find(f"{path}/full"), lambda found: found is None)


def test_pods_that_a_quota_refuses_are_not_waited_for(
    installed: State, api: Api, quota: Callable[[str], None], tmp_path: Path
) -> None:
    file = kubeconfig_for(installed, "accept", tmp_path)
    quota("pods")
    data = report(installed, "accept", "--cluster", "rehearsal", "--kubeconfig", str(file))
    first = data["results"][0]
    assert (data["verdict"], first["check"], first["reason"]) == ("fail", "probes.admitted", "PodsRefused")
    assert first["detail"].startswith("exceeded quota: full")
    assert data["seconds"] < 60
    assert {one["caused_by"] for one in data["results"][1:] if one["status"] == "unproven"} == {first["id"]}


def test_objects_that_a_quota_refuses_are_no_missing_permission(
    installed: State, api: Api, quota: Callable[[str], None]
) -> None:
    quota("count/jobs.batch")
    first = report(installed, "accept")["results"][0]
    assert (first["check"], first["status"], first["reason"]) == ("probes.run", "fail", "ProbesRefused")
    assert "exceeded quota: full" in first["detail"]


def test_a_busy_node_is_unproven_and_its_holder_named(installed: State, api: Api) -> None:
    pods = "/api/v1/namespaces/default/pods"
    api.create(pods, training_pod("gpu-0001"))
    try:
        until(lambda: api.get(f"{pods}/train")["spec"].get("nodeName"), lambda name: name == "gpu-0001")
        data = report(installed, "accept", "--nccl", "off")
        busy = next(one for one in data["results"] if one["id"] == "smi.pod/node/gpu-0001")
        assert (busy["status"], busy["detail"]) == ("unproven", "its GPUs are held by default/train")
        assert data["exit_code"] == 2
    finally:
        api.delete(f"{pods}/train")
        until(lambda: api.find(f"{pods}/train"), lambda pod: pod is None)


def training_pod(node: str) -> Object:
    affinity = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}}  # fmt: skip
    container = {"name": "c", "image": "train", "resources": {"limits": {"nvidia.com/gpu": "2"}}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "train"},
        "spec": {
            "containers": [container],
            "affinity": {"nodeAffinity": affinity},
            "tolerations": [{"operator": "Exists"}],
        },
    }


def start_accept(now: State, api: Api) -> subprocess.Popen[bytes]:
    """An acceptance that is in the middle of its probes."""
    process = subprocess.Popen(
        [str(BIN / "gpuready"), "accept"],
        cwd=ROOT,
        env=environment(now.folder),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until(lambda: traces(api), lambda found: any(name.startswith("smi-") for name in found))
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_cleans_up(installed: State, api: Api, number: int) -> None:
    process = start_accept(installed, api)
    process.send_signal(number)
    assert process.wait(timeout=60) == 130
    assert traces(api) == []


def test_after_kill_9_the_next_run_cleans_up(installed: State, api: Api) -> None:
    process = start_accept(installed, api)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(timeout=10)
    assert traces(api) != []
    report(installed, "accept", "--nccl", "off")
    until(lambda: traces(api), lambda left: left == [], seconds=60)


def test_an_abandoned_anchor_takes_its_run_along(installed: State, api: Api) -> None:
    anchor = api.create(JOBS, manifests.anchor("abandoned", 1, "elsewhere/1"))
    owner = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "name": anchor["metadata"]["name"],
        "uid": anchor["metadata"]["uid"],
    }
    meta = {"name": "left-behind", "ownerReferences": [owner]}
    api.create(f"{NAMESPACE}/configmaps", {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta})
    until(lambda: traces(api), lambda left: left == [], seconds=60)


def test_formats(installed: State, api: Api, tmp_path: Path) -> None:
    saved = tmp_path / "run.json"
    assert gpuready(installed, "accept", "--nccl", "pair", "-o", "json", "--output-file", str(saved)).returncode == 0
    junit = gpuready(installed, "show", str(saved), "-o", "junit").stdout
    assert int(ET.fromstring(junit).get("tests", "0")) > 30
    assert gpuready(installed, "show", str(saved), "-o", "markdown").stdout.startswith("# REHEARSAL PASS")
    assert gpuready(installed, "show", str(saved)).stdout.startswith("REHEARSAL PASS")


def test_the_suite_that_users_run(healed: State, api: Api) -> None:
    suite = ("pytest", "-q", "tests/acceptance", "-p", "no:cacheprovider")
    done = run(*suite, state_dir=healed.folder, CLUSTER="rehearsal")
    assert done.returncode == 0, done.stdout[-3000:]
    gpuready(healed, "rehearse", "inject", "gpu-missing")
    until(lambda: gpuready(healed, "check").returncode, lambda code: code == 1)
    done = run(*suite, "--read-only", state_dir=healed.folder, CLUSTER="rehearsal")
    assert done.returncode == 1
    assert "test_check[gpu.allocatable]" in done.stdout and "7 of 8" in done.stdout
