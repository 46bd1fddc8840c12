"""Faults on a real API server: what breaks, what the cluster shows of it, and that it heals."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from gpuready.charts_values.kube import Api, Object
from gpuready.rehearsal import faults
from gpuready.rehearsal.state import State
from gpuready.validators.acceptance.manifests import smi_script

from .commands import until
from .platform import GPU_TAINT, Platform

JOBS = "/apis/batch/v1/namespaces/default/jobs"
PODS = "/api/v1/namespaces/default/pods"
NODE = "gpu-0002"


@pytest.fixture
def platform(installed: State) -> Iterator[Platform]:
    """The installed cluster; whatever a test breaks is mended, and its Jobs are removed."""
    platform = Platform(installed)
    yield platform
    for name in faults.active(installed.folder):
        faults.heal(installed.folder, name)
    for one in platform.api.list(JOBS, resourceVersion=""):
        platform.api.delete(f"{JOBS}/{one['metadata']['name']}")
    until(lambda: platform.api.list(PODS, resourceVersion=""), lambda pods: pods == [])
    platform.wait_ready()


def run(api: Api, name: str, probe: str, command: list[str], limits: Object, nodes: list[str]) -> list[Object]:
    """A Job with one pod on each of the nodes; returns its pods in the order of their index, once they ended."""
    terms = [{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": nodes}]}]
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    container = {"name": "main", "image": "image", "command": command, "resources": {"limits": limits}}
    pod = {
        "restartPolicy": "Never",
        "tolerations": [GPU_TAINT],
        "affinity": {"nodeAffinity": required},
        "containers": [container],
    }
    body: Object = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {
            "backoffLimit": 0,
            "completionMode": "Indexed",
            "completions": len(nodes),
            "parallelism": len(nodes),
            "template": {"metadata": {"labels": {"gpuready.io/probe": probe}}, "spec": pod},
        },
    }
    api.create(JOBS, body)
    found = until(
        lambda: api.list(PODS, labelSelector=f"job-name={name}", resourceVersion=""),
        lambda pods: sum(pod["status"].get("phase") in ("Succeeded", "Failed") for pod in pods) == len(nodes),
    )
    return sorted(found, key=lambda pod: str(pod["metadata"]["name"]))


def smi(platform: Platform, name: str, gpus: int) -> int:
    """How many GPUs nvidia-smi counts on NODE."""
    command = ["sh", "-c", smi_script()]
    pod = run(platform.api, name, "nvidia-smi", command, {"nvidia.com/gpu": str(gpus)}, [NODE])[0]
    message = json.loads(pod["status"]["containerStatuses"][0]["state"]["terminated"]["message"])
    return int(message["gpus"])


def networks(platform: Platform, name: str) -> dict[str, set[str]]:
    """The networks by node of an all-reduce between NODE and another."""
    limits = {"nvidia.com/gpu": "8", "rdma/rdma_shared_device_a": "1"}
    pods = run(platform.api, name, "nccl", ["allreduce"], limits, ["gpu-0000", NODE])
    found = {}
    for pod in pods:
        text = platform.api.text(f"{PODS}/{pod['metadata']['name']}/log")
        used = {line.rpartition("Using network ")[2] for line in text.splitlines() if "Using network " in line}
        found[pod["spec"]["nodeName"]] = used
    return found


def test_gpu_missing_shows_everywhere_and_heals(platform: Platform) -> None:
    assert faults.inject(platform.now.folder, "gpu-missing", NODE) == NODE
    until(lambda: platform.offers("nvidia.com/gpu", NODE), lambda seen: seen == "7")
    until(lambda: platform.labels(NODE)["nvidia.com/gpu.count"], lambda seen: seen == "7")
    assert smi(platform, "broken", 7) == 7
    assert platform.offers("nvidia.com/gpu", "gpu-0001") == "8"
    assert platform.verdict() == ("ready", "Reconciled")
    assert faults.heal(platform.now.folder, "gpu-missing") == NODE
    until(lambda: platform.offers("nvidia.com/gpu", NODE), lambda seen: seen == "8")
    until(lambda: platform.labels(NODE)["nvidia.com/gpu.count"], lambda seen: seen == "8")
    assert smi(platform, "healed", 8) == 8


def test_tcp_fallback_shows_in_nccl_alone_and_heals(platform: Platform) -> None:
    faults.inject(platform.now.folder, "tcp-fallback", NODE)
    # The actors see the file within half a second; a run that began before shows what was then.
    found = until(lambda: networks(platform, f"broken-{next(_NUMBERS)}"), lambda seen: seen[NODE] == {"Socket"})
    assert found["gpu-0000"] == {"IB"}
    assert platform.offers("rdma/rdma_shared_device_a", NODE) == "63"
    faults.heal(platform.now.folder, "tcp-fallback")
    until(
        lambda: networks(platform, f"healed-{next(_NUMBERS)}"),
        lambda seen: seen == {"gpu-0000": {"IB"}, NODE: {"IB"}},
    )


_NUMBERS = iter(range(1000))


def test_the_promise_stays_as_it_was(platform: Platform) -> None:
    before = (platform.now.folder / "state.json").read_bytes()
    faults.inject(platform.now.folder, "gpu-missing")
    assert (platform.now.folder / "state.json").read_bytes() == before
    assert faults.active(platform.now.folder) == {"gpu-missing": "gpu-0003"}
