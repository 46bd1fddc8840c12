"""Pods whose inside is played: probes, Jobs and what users start by hand, with logs and ends through the API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gpuready.charts_values.kube import Api, Object
from gpuready.rehearsal.state import State
from gpuready.validators.acceptance.manifests import smi_script

from .commands import until
from .platform import GPU_TAINT

NAMESPACE = "played"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
JOBS = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs"
LOGS = f"/apis/kwok.x-k8s.io/v1alpha1/namespaces/{NAMESPACE}/logs"
RDMA = "rdma/rdma_shared_device_a"


@pytest.fixture(scope="module")
def api(installed: State) -> Iterator[Api]:
    """The cluster, with a namespace for these tests."""
    api = Api.connect(installed.kubeconfig)
    path = f"/api/v1/namespaces/{NAMESPACE}"
    api.create("/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    account = f"{path}/serviceaccounts/default"
    until(lambda: api.find(account), lambda found: found is not None)
    yield api
    api.delete(path)


def spec(*command: str, gpus: int = 0, rdma: int = 0, **more: Any) -> Object:
    limits = {name: str(count) for name, count in (("nvidia.com/gpu", gpus), (RDMA, rdma)) if count}
    container: Object = {"name": "main", "image": "some/image:1", "resources": {"limits": limits}}
    if command:
        container["command"] = list(command)
    return {"restartPolicy": "Never", "tolerations": [GPU_TAINT], "containers": [container | more]}


def job(name: str, pod: Object, *, probe: str = "", **more: Any) -> Object:
    labels = {"gpuready.io/probe": probe} if probe else {}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {"backoffLimit": 0, "template": {"metadata": {"labels": labels}, "spec": pod}} | more,
    }


def pods_of(api: Api, name: str) -> list[Object]:
    found = api.list(PODS, labelSelector=f"job-name={name}", resourceVersion="")
    return sorted(found, key=lambda pod: str(pod["metadata"]["name"]))


def finished(api: Api, name: str, count: int = 1) -> list[Object]:
    """The pods of a Job once all have ended."""
    return until(
        lambda: pods_of(api, name),
        lambda pods: sum(pod["status"].get("phase") in ("Succeeded", "Failed") for pod in pods) == count,
    )


def end(pod: Object) -> Object:
    state: Object = pod["status"]["containerStatuses"][0]["state"]["terminated"]
    return state


def log(api: Api, pod: Object) -> str:
    return api.text(f"{PODS}/{pod['metadata']['name']}/log")


def test_the_nvidia_smi_probe_runs_for_real(api: Api) -> None:
    api.create(JOBS, job("smi", spec("sh", "-c", smi_script(), gpus=8), probe="nvidia-smi"))
    pod = finished(api, "smi")[0]
    message = json.loads(end(pod)["message"])
    assert message == {"exit": 0, "gpus": 8, "product": "NVIDIA H100 80GB HBM3", "driver": "580.173.02"}
    text = log(api, pod)
    assert text.count("NVIDIA H100 80GB HBM3") >= 16
    assert text.rstrip().endswith("</nvidia_smi_log>")
    complete = until(lambda: api.get(f"{JOBS}/smi")["status"], lambda status: status.get("succeeded") == 1)
    assert {one["type"] for one in complete["conditions"]} >= {"Complete"}


def test_no_other_script_is_ever_run(api: Api, tmp_path: Path) -> None:
    proof = tmp_path / "was-run"
    script = f"touch {proof}\n{smi_script()}"
    api.create(JOBS, job("forged", spec("sh", "-c", script, gpus=1), probe="nvidia-smi"))
    pod = finished(api, "forged")[0]
    assert end(pod)["exitCode"] == 126
    assert not proof.exists()


def test_a_job_that_nobody_knows_succeeds(api: Api) -> None:
    api.create(JOBS, job("hook", spec("some-migration", "--now")))
    pod = finished(api, "hook")[0]
    assert (pod["status"]["phase"], end(pod)["exitCode"]) == ("Succeeded", 0)
    assert log(api, pod).startswith("simulated: ")


@pytest.mark.parametrize(
    ("command", "lines"),
    [
        (["nvidia-smi", "-L"], 2),
        (["sh", "-c", "nvidia-smi --query-gpu=name,index --format=csv,noheader && echo done"], 2),
    ],
)
def test_a_user_calls_nvidia_smi_in_a_pod(api: Api, command: list[str], lines: int) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "hello-gpu-"}}
    name = api.create(PODS, pod | {"spec": spec(*command, gpus=2)})["metadata"]["name"]
    pod = until(lambda: api.get(f"{PODS}/{name}"), lambda seen: seen["status"].get("phase") == "Succeeded")
    text = log(api, pod)
    assert len(text.splitlines()) == lines
    assert all("H100" in line for line in text.splitlines())


def test_a_service_with_gpus_runs_on(api: Api) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "service"}}
    api.create(PODS, pod | {"spec": spec("serve", gpus=1) | {"restartPolicy": "Always"}})
    seen = until(lambda: api.get(f"{PODS}/service"), lambda seen: seen["status"].get("phase") == "Running")
    assert seen["status"]["containerStatuses"][0]["ready"]
    api.delete(f"{PODS}/service")


def test_an_anchor_runs_until_it_is_deleted(api: Api) -> None:
    api.create(JOBS, job("anchor", spec("true"), probe="anchor"))
    until(lambda: pods_of(api, "anchor"), lambda pods: [pod["status"]["phase"] for pod in pods] == ["Running"])
    api.delete(f"{JOBS}/anchor")
    until(lambda: pods_of(api, "anchor"), lambda pods: pods == [])


def nccl_job(name: str, nodes: int, *, rdma: int = 1) -> Object:
    env = [{"name": "GPUREADY_MIN_BYTES", "value": "1048576"}, {"name": "GPUREADY_MAX_BYTES", "value": "8589934592"}]
    pod = spec("python3", "allreduce.py", gpus=8, rdma=rdma, env=env)
    return job(name, pod, probe="nccl", completionMode="Indexed", completions=nodes, parallelism=nodes)


def test_nccl_ranks_talk_over_rdma(api: Api) -> None:
    api.create(JOBS, nccl_job("nccl", 2))
    first, second = finished(api, "nccl", 2)
    message = json.loads(end(first)["message"])
    assert message.pop("busbw_gbytes_s") > 300
    assert min(message.pop("series")) > 300
    assert message == {"index": 0, "exit": 0, "ranks": 16, "wrong": 0}
    assert json.loads(end(second)["message"]) == {"index": 1, "exit": 0, "ranks": 16}
    for pod in (first, second):
        lines = [line for line in log(api, pod).splitlines() if " via NET/" in line]
        assert lines
        assert all("/GDRDMA" in line for line in lines)
        assert {line.partition(":")[0] for line in lines} == {pod["metadata"]["name"]}


def test_nccl_without_an_rdma_device_uses_sockets(api: Api) -> None:
    api.create(JOBS, nccl_job("sockets", 2, rdma=0))
    pods = finished(api, "sockets", 2)
    assert json.loads(end(pods[0])["message"])["busbw_gbytes_s"] < 10
    assert "via NET/Socket/" in log(api, pods[1])


def test_nccl_pods_wait_for_each_other(api: Api) -> None:
    """One more pod than nodes: none may end, since the last one never starts."""
    api.create(JOBS, nccl_job("too-many", 5))
    pods = until(
        lambda: pods_of(api, "too-many"),
        lambda pods: sum(pod["status"]["phase"] == "Running" for pod in pods) == 4,
    )
    assert sorted(pod["status"]["phase"] for pod in pods) == ["Pending"] + ["Running"] * 4
    api.delete(f"{JOBS}/too-many")
    until(lambda: pods_of(api, "too-many"), lambda pods: pods == [])


def test_the_policy_decides_on_gpudirect(api: Api) -> None:
    path = "/apis/nvidia.com/v1/clusterpolicies/cluster-policy"
    before = api.get(path)["spec"]["driver"].get("kernelModuleType")
    api.patch(path, {"spec": {"driver": {"kernelModuleType": "proprietary"}}})
    api.create(JOBS, nccl_job("no-gdr", 2))
    lines = [line for line in log(api, finished(api, "no-gdr", 2)[0]).splitlines() if " via NET/IB/" in line]
    assert lines
    assert not [line for line in lines if "GDRDMA" in line]
    api.patch(path, {"spec": {"driver": {"kernelModuleType": before}}})


def test_nothing_is_left_of_deleted_pods(api: Api, installed: State) -> None:
    for one in api.list(JOBS, resourceVersion=""):
        api.delete(f"{JOBS}/{one['metadata']['name']}")
    for one in api.list(PODS, resourceVersion=""):
        api.delete(f"{PODS}/{one['metadata']['name']}")
    until(lambda: api.list(PODS, resourceVersion=""), lambda pods: pods == [])
    until(lambda: api.list(LOGS, resourceVersion=""), lambda logs: logs == [])
    until(lambda: list((installed.folder / "logs").glob(f"{NAMESPACE}_*")), lambda files: files == [])
