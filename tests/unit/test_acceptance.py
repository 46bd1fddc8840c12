"""Acceptance without a cluster: who is probed, what the objects say, how pods are read."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from gpuready.charts_values import inventory
from gpuready.validators.acceptance import manifests, plan
from gpuready.validators.acceptance.verdicts import verdict_of
from gpuready.validators.evidence import Evidence
from gpuready.validators.expected import Expected

from .conftest import entry

OWNER = {"metadata": {"name": "anchor-x", "uid": "u"}}


def planned(expected: Expected, evidence: Evidence, pods: list[dict[str, Any]], nccl: str = "all") -> plan.Plan:
    return plan.plan(expected, evidence, pods, nccl=nccl)


def test_all_idle_nodes_are_probed_and_two_make_the_pair(expected: Expected, evidence: Evidence) -> None:
    made = planned(expected, evidence, [])
    assert [(t.node, t.gpus, dict(t.rdma)) for t in made.targets] == [
        ("gpu-0", 8, {"rdma/rdma_shared_device_a": 1}),
        ("gpu-1", 8, {"rdma/rdma_shared_device_a": 1}),
    ]
    assert [t.node for t in made.pair] == ["gpu-0", "gpu-1"]
    assert made.all == ()  # the same two nodes again would prove nothing more
    assert made.not_probed == {}


def test_a_busy_node_is_left_alone_and_its_holder_named(expected: Expected, evidence: Evidence) -> None:
    container = {"resources": {"limits": {"nvidia.com/gpu": "4"}}}
    pod = {
        "metadata": {"name": "train-0", "namespace": "ml"},
        "spec": {"nodeName": "gpu-1", "containers": [container]},
    }
    made = planned(expected, evidence, [pod])
    assert made.not_probed == {"gpu-1": "its GPUs are held by ml/train-0"}
    assert made.pair == () and made.nccl_off == "1 complete and idle nodes; two are needed"


def test_a_node_with_7_of_8_runs_nvidia_smi_and_no_nccl(expected: Expected, evidence: Evidence) -> None:
    evidence.cluster["nodes"][1]["status"]["allocatable"]["nvidia.com/gpu"] = "7"
    made = planned(expected, evidence, [])
    assert [t.gpus for t in made.targets] == [8, 7]
    assert made.nccl_excluded == {"gpu-1": "it offers 7 of 8 GPUs"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"spec": {"unschedulable": True}}, "the node is cordoned"),
        ({"status": {"conditions": []}}, "the node is not Ready"),
        ({"status": {"conditions": [{"type": "Ready", "status": "True"}]}}, "the node offers no GPU"),
    ],
)
def test_unfit_nodes(expected: Expected, evidence: Evidence, change: dict[str, Any], reason: str) -> None:
    evidence.cluster["nodes"][1].update(change)
    assert planned(expected, evidence, []).not_probed == {"gpu-1": reason}


def test_nccl_off_runs_nothing(expected: Expected, evidence: Evidence) -> None:
    made = planned(expected, evidence, [], nccl="off")
    assert (made.pair, made.all, made.nccl_off) == ((), (), "deselected with --nccl off")


def test_the_probe_asks_for_all_gpus_by_affinity_and_tolerates_the_taint(
    expected: Expected, evidence: Evidence
) -> None:
    target = planned(expected, evidence, []).targets[0]
    job = manifests.smi_job("r1", 0, target, expected.cluster, OWNER, 60)
    pod = job["spec"]["template"]["spec"]
    assert "nodeName" not in pod
    terms = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert terms[0]["matchExpressions"][0]["values"] == ["gpu-0"]
    assert pod["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": "8"}
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert job["metadata"]["ownerReferences"][0]["uid"] == "u"
    assert job["spec"]["activeDeadlineSeconds"] == 60


def test_with_dra_the_probe_claims_its_gpus(evidence: Evidence) -> None:
    expected = Expected.of(inventory.parse("lab", entry(dra="gpus")))
    target = planned(expected, evidence, []).targets[0]
    pod = manifests.smi_job("r1", 0, target, expected.cluster, OWNER, 60)["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"] == {"limits": {}, "claims": [{"name": "gpus"}]}
    assert pod["resourceClaims"] == [{"name": "gpus", "resourceClaimTemplateName": "gpus-r1"}]


def test_the_nccl_job_asks_for_rdma_and_decrees_nothing(expected: Expected, evidence: Evidence) -> None:
    targets = planned(expected, evidence, []).pair
    config, service, job = manifests.nccl_objects("r1", "nccl-pair", targets, expected.cluster, OWNER, 60)
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert (job["spec"]["completionMode"], job["spec"]["completions"]) == ("Indexed", 2)
    container = job["spec"]["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "8", "rdma/rdma_shared_device_a": "1"}
    env = {one["name"]: one["value"] for one in container["env"]}
    assert env["NCCL_DEBUG"] == "INFO"
    assert not {"NCCL_NET_GDR_LEVEL", "NCCL_IB_HCA"} & env.keys()
    compile(config["data"]["allreduce.py"], "allreduce.py", "exec")


def test_a_pod_is_read_from_its_status() -> None:
    ended = {"terminated": {"exitCode": 9, "message": '{"exit":9,"gpus":0}'}}
    pod = {
        "metadata": {"name": "p"},
        "spec": {"nodeName": "gpu-0"},
        "status": {"phase": "Failed", "containerStatuses": [{"state": ended}]},
    }
    verdict = verdict_of(pod)
    assert (verdict.exit_code, verdict.message["gpus"], verdict.waiting) == (9, 0, "")


def test_a_pod_that_cannot_be_placed_says_why() -> None:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/9 nodes"}
    pod = {"metadata": {"name": "p"}, "spec": {}, "status": {"phase": "Pending", "conditions": [condition]}}
    assert verdict_of(pod).waiting == "Unschedulable: 0/9 nodes"


def run_smi(tmp_path: Path, program: str) -> tuple[int, str, dict[str, Any]]:
    """Run the probe's own script with a given nvidia-smi."""
    shim = tmp_path / "bin" / "nvidia-smi"
    shim.parent.mkdir()
    shim.write_text(f"#!/bin/sh\n{program}\n")
    shim.chmod(0o755)
    message = tmp_path / "message"
    env = os.environ | {"PATH": f"{shim.parent}:{os.environ['PATH']}", "GPUREADY_TERMINATION_LOG": str(message)}
    done = subprocess.run(
        ["sh", "-c", manifests.smi_script()], env=env, capture_output=True, text=True, timeout=20, check=False
    )
    return done.returncode, done.stdout, json.loads(message.read_text())


def test_the_smi_script_counts_gpus(tmp_path: Path) -> None:
    program = """case "$*" in
      *query-gpu=index*) printf '0\\n1\\n';;
      *query-gpu=name*) printf 'NVIDIA H100 80GB HBM3\\nNVIDIA H100 80GB HBM3\\n';;
      *query-gpu=driver_version*) printf '580.173.02\\n580.173.02\\n';;
      *-x*) echo '<?xml version="1.0" ?>';;
      *) echo table;;
    esac"""
    code, out, message = run_smi(tmp_path, program)
    assert (code, out.split()[0]) == (0, "table")
    assert message == {"exit": 0, "gpus": 2, "product": "NVIDIA H100 80GB HBM3", "driver": "580.173.02"}


def test_the_smi_script_keeps_the_exit_code_and_the_text(tmp_path: Path) -> None:
    code, out, message = run_smi(tmp_path, "echo NVIDIA-SMI has failed; exit 9")
    assert (code, out.strip(), message) == (9, "NVIDIA-SMI has failed", {"exit": 9, "gpus": 0})
