"""Acceptance without a cluster: who is probed, what the objects say, how pods are read."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from gpuready.charts_values import inventory
from gpuready.validators.acceptance import holders, manifests, plan
from gpuready.validators.acceptance.verdicts import verdict_of
from gpuready.validators.evidence import Evidence
from gpuready.validators.expected import Expected

from .conftest import entry, gpu_node

OWNER = {"metadata": {"name": "anchor-x", "uid": "u"}}


def planned(expected: Expected, evidence: Evidence, pods: list[dict[str, Any]], nccl: str = "all") -> plan.Plan:
    return plan.plan(expected, evidence, pods, nccl=nccl)


def nodes_of(made: plan.Plan) -> dict[str, list[str]]:
    """The nodes of each NCCL run."""
    return {workload: [target.node for target in targets] for workload, targets in made.nccl.runs.items()}


def test_all_idle_nodes_are_probed_and_two_make_the_pair(expected: Expected, evidence: Evidence) -> None:
    made = planned(expected, evidence, [])
    assert [(t.node, t.gpus, dict(t.rdma)) for t in made.targets] == [
        ("gpu-0", 8, {"rdma/rdma_shared_device_a": 1}),
        ("gpu-1", 8, {"rdma/rdma_shared_device_a": 1}),
    ]
    # All nodes are the same two again, which would prove nothing more.
    assert nodes_of(made) == {"nccl-pair": ["gpu-0", "gpu-1"]}
    assert made.not_probed == {}


def test_a_busy_node_is_left_alone_and_its_holder_named(expected: Expected, evidence: Evidence) -> None:
    container = {"resources": {"limits": {"nvidia.com/gpu": "4"}}}
    pod = {
        "metadata": {"name": "train-0", "namespace": "ml"},
        "spec": {"nodeName": "gpu-1", "containers": [container]},
    }
    made = planned(expected, evidence, [pod])
    assert made.not_probed == {"gpu-1": "its GPUs are held by ml/train-0"}
    assert (made.nccl.runs, made.nccl.off) == ({}, "1 complete and idle nodes; two of one group are needed")


def test_a_node_with_7_of_8_runs_nvidia_smi_and_no_nccl(expected: Expected, evidence: Evidence) -> None:
    evidence.cluster["nodes"][1]["status"]["allocatable"]["nvidia.com/gpu"] = "7"
    made = planned(expected, evidence, [])
    assert [t.gpus for t in made.targets] == [8, 7]
    assert made.nccl_excluded == {"gpu-1": "it offers 7 of 8 GPUs"}


@pytest.mark.parametrize("index", [0, 1])
def test_a_node_without_its_rdma_resource_spoils_no_run(expected: Expected, index: int) -> None:
    """Whichever it is: the first one's resources are what every pod asks for."""
    nodes = [gpu_node(f"gpu-{number}") for number in range(3)]
    nodes[index]["status"]["allocatable"]["rdma/rdma_shared_device_a"] = "0"
    groups = entry()["groups"]
    groups["h100"]["nodes"] = ["gpu-0", "gpu-1", "gpu-2"]
    expected = Expected.of(inventory.parse("lab", entry(groups=groups)))
    made = planned(expected, Evidence(cluster={"nodes": nodes}), [])
    assert len(made.targets) == 3, "nvidia-smi needs no NIC"
    assert made.nccl_excluded == {f"gpu-{index}": "it offers no rdma/rdma_shared_device_a"}
    ((pair),) = made.nccl.runs.values()
    assert all(one.rdma == {"rdma/rdma_shared_device_a": 1} for one in pair)


def test_pods_that_have_gpus_by_claim_or_in_parts_hold_them() -> None:
    def pod(name: str, node: str, *limits: str, part: str = "containers") -> dict[str, Any]:
        asked = [{"resources": {"limits": dict.fromkeys(limits, "1")}}]
        return {"metadata": {"name": name, "namespace": "ml"}, "spec": {"nodeName": node, part: asked}}

    def claim(user: str, driver: str) -> dict[str, Any]:
        status = {
            "allocation": {"devices": {"results": [{"driver": driver, "pool": "p", "device": "gpu-0"}]}},
            "reservedFor": [{"resource": "pods", "name": user, "uid": "u"}],
        }
        return {"metadata": {"name": "c", "namespace": "ml"}, "status": status}

    pods = [
        pod("by-claim", "a"), pod("by-slice", "b", "nvidia.com/mig-1g.10gb"), pod("a-domain", "c"),
        pod("at-start", "d", "nvidia.com/gpu", part="initContainers"), pod("cpu", "e", "cpu"),
    ]  # fmt: skip
    claims = [claim("by-claim", "gpu.nvidia.com"), claim("a-domain", "compute-domain.nvidia.com")]
    assert holders.holders(pods, claims) == {"a": "ml/by-claim", "b": "ml/by-slice", "d": "ml/at-start"}


def nccl_pod(cpus: list[str], memory: str = "2048Gi") -> dict[str, Any]:
    """The pod of an all-reduce on nodes with so many CPUs."""
    nodes = [gpu_node(f"gpu-{number}") for number in range(len(cpus))]
    for one, count in zip(nodes, cpus, strict=True):
        one["status"]["allocatable"] |= {"cpu": count, "memory": memory}
    expected = Expected.of(inventory.parse("lab", entry()))
    targets = planned(expected, Evidence(cluster={"nodes": nodes}), []).nccl.runs["nccl-pair"]
    job = manifests.nccl_objects("r1", "nccl-pair", targets, expected.cluster, OWNER, 930)[-1]
    pod: dict[str, Any] = job["spec"]["template"]["spec"]
    return pod


@pytest.mark.parametrize(
    ("cpus", "memory", "cpu", "mib"),
    [
        (["192", "192"], "2048Gi", "32", "65536Mi"),
        # Half of the smaller node is left to what else runs there.
        (["192", "48"], "2048Gi", "24", "65536Mi"),
        (["191500m", "192"], "64Gi", "32", "32768Mi"),
    ],
)
def test_pods_of_an_all_reduce_are_guaranteed(cpus: list[str], memory: str, cpu: str, mib: str) -> None:
    (container,) = nccl_pod(cpus, memory)["containers"]
    limits = container["resources"]["limits"]
    assert (limits["cpu"], limits["memory"]) == (cpu, mib)
    # Requests that are not given are the limits: with all of them equal the pod is Guaranteed.
    assert "requests" not in container["resources"]


def test_memory_can_be_locked_and_shared() -> None:
    pod = nccl_pod(["192", "192"])
    (container,) = pod["containers"]
    assert container["securityContext"] == {"capabilities": {"add": ["IPC_LOCK"]}}
    assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
    assert {"name": "shm", "emptyDir": {"medium": "Memory"}} in pod["volumes"]


def test_the_clusters_own_settings_are_taken_over() -> None:
    (container,) = nccl_pod(["192", "192"])["containers"]
    assert container["envFrom"] == [{"configMapRef": {"name": "nccl-env", "optional": True}}]


def test_pods_give_up_before_their_job_ends_them() -> None:
    (container,) = nccl_pod(["192", "192"])["containers"]
    env = {one["name"]: one["value"] for one in container["env"]}
    assert int(env["GPUREADY_START_SECONDS"]) < int(env["GPUREADY_SECONDS"]) < 930


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
    assert (made.nccl.runs, made.nccl.off) == ({}, "deselected with --nccl off")


def mixed(count: int) -> tuple[Expected, Evidence]:
    """Two H100 nodes and ``count`` A100 nodes in one cluster."""
    groups = entry()["groups"]
    names = [f"old-{index}" for index in range(count)]
    groups["a100"] = {**groups["h100"], "nodes": names, "gpu_product": "NVIDIA-A100-SXM4-80GB", "nic_gbits_s": 200}
    nodes = [gpu_node(name) for name in ("gpu-0", "gpu-1", *names)]
    return Expected.of(inventory.parse("lab", entry(groups=groups))), Evidence(cluster={"nodes": nodes})


def test_unlike_groups_are_proved_apart_the_larger_first() -> None:
    made = planned(*mixed(3), [])
    assert nodes_of(made) == {
        "nccl-pair": ["old-0", "old-2"],
        "nccl-all": ["old-0", "old-1", "old-2"],
        "nccl-pair-2": ["gpu-0", "gpu-1"],
    }
    assert list(made.nccl.runs) == ["nccl-pair", "nccl-all", "nccl-pair-2"]
    assert made.nccl_excluded == {}


def test_a_node_without_a_peer_of_its_kind_is_named() -> None:
    expected, evidence = mixed(2)
    evidence.cluster["nodes"][2]["spec"]["unschedulable"] = True
    made = planned(expected, evidence, [])
    assert nodes_of(made) == {"nccl-pair": ["gpu-0", "gpu-1"]}
    assert made.nccl_excluded == {
        "old-0": "the node is cordoned",
        "old-1": "no other node of group a100 is complete and idle",
    }


def test_a_group_of_one_node_has_no_fabric_to_prove() -> None:
    made = planned(*mixed(1), [])
    assert (nodes_of(made), made.nccl_excluded) == ({"nccl-pair": ["gpu-0", "gpu-1"]}, {})


def test_a_preempted_spot_node_is_not_expected(evidence: Evidence) -> None:
    groups = entry()["groups"]
    groups["h100"]["capacity"] = "spot"
    expected = Expected.of(inventory.parse("lab", entry(groups=groups)))
    evidence.cluster["nodes"][1]["spec"]["unschedulable"] = True
    made = planned(expected, evidence, [])
    assert ([t.node for t in made.targets], made.not_probed, made.nccl_excluded) == (["gpu-0"], {}, {})


def in_racks(evidence: Evidence, *cliques: str) -> Evidence:
    """The same nodes, with NVLink domains that reach beyond them."""
    for node, clique in zip(evidence.cluster["nodes"], cliques, strict=True):
        node["metadata"]["labels"]["nvidia.com/gpu.clique"] = clique
    return evidence


def test_nodes_of_one_nvlink_domain_are_proved_with_it_and_by_nic(expected: Expected, evidence: Evidence) -> None:
    made = planned(expected, in_racks(evidence, "rack-a.0", "rack-a.0"), [])
    assert nodes_of(made) == {"nccl-pair": ["gpu-0", "gpu-1"], "nccl-net": ["gpu-0", "gpu-1"]}
    assert plan.domain_of(made.targets) == "rack-a.0"


@pytest.mark.parametrize(("dra", "cliques"), [("compute-domains", "ab"), ("off", "aa")])
def test_without_a_common_domain_there_is_nothing_to_prove_by_nic_again(
    evidence: Evidence, dra: str, cliques: str
) -> None:
    expected = Expected.of(inventory.parse("lab", entry(dra=dra)))
    made = planned(expected, in_racks(evidence, *cliques), [])
    assert list(made.nccl.runs) == ["nccl-pair"]
    assert plan.domain_of(made.targets) == ""


def test_a_run_within_an_nvlink_domain_claims_a_channel(expected: Expected, evidence: Evidence) -> None:
    made = planned(expected, in_racks(evidence, "rack-a.0", "rack-a.0"), [])
    objects = {}
    for workload, targets in made.nccl.runs.items():
        for item in manifests.nccl_objects("r1", workload, targets, expected.cluster, OWNER, 60):
            objects[workload, item["kind"]] = item
    domain = objects["nccl-pair", "ComputeDomain"]
    assert domain["spec"] == {"numNodes": 0, "channel": {"resourceClaimTemplate": {"name": "nccl-pair-r1"}}}
    pod = objects["nccl-pair", "Job"]["spec"]["template"]["spec"]
    assert pod["resourceClaims"] == [{"name": "nvlink", "resourceClaimTemplateName": "nccl-pair-r1"}]
    assert pod["containers"][0]["resources"]["claims"] == [{"name": "nvlink"}]
    assert ("nccl-net", "ComputeDomain") not in objects
    by_nic = objects["nccl-net", "Job"]["spec"]["template"]["spec"]["containers"][0]
    assert {"name": "NCCL_MNNVL_ENABLE", "value": "0"} in by_nic["env"]
    assert "claims" not in by_nic["resources"]


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
    targets = planned(expected, evidence, []).nccl.runs["nccl-pair"]
    config, service, job = manifests.nccl_objects("r1", "nccl-pair", targets, expected.cluster, OWNER, 60)
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert (job["spec"]["completionMode"], job["spec"]["completions"]) == ("Indexed", 2)
    container = job["spec"]["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "8", "rdma/rdma_shared_device_a": "1"}
    env = {one["name"]: one["value"] for one in container["env"]}
    assert (env["NCCL_DEBUG"], env["NCCL_DEBUG_SUBSYS"]) == ("INFO", "INIT,BOOTSTRAP,ENV,NET,GRAPH")
    assert not {"NCCL_NET_GDR_LEVEL", "NCCL_IB_HCA"} & env.keys()
    compile(config["data"]["allreduce.py"], "allreduce.py", "exec")


def nccl_template(change: dict[str, Any], evidence: Evidence) -> dict[str, Any]:
    """The pod template of the NCCL job on RoCE nodes."""
    groups = entry()["groups"]
    groups["h100"] |= {"rdma": "roce", "nics": 2, **change}
    expected = Expected.of(inventory.parse("lab", entry(groups=groups)))
    targets = planned(expected, evidence, []).nccl.runs["nccl-pair"]
    job = manifests.nccl_objects("r1", "nccl-pair", targets, expected.cluster, OWNER, 60)[-1]
    template: dict[str, Any] = job["spec"]["template"]
    return template


def test_pods_on_roce_nodes_get_every_rail(evidence: Evidence) -> None:
    rails = {"rail-0": {"interface": "ens1", "cidr": "172.16.0.0/20"}, "fabric/rail-1": {}}
    template = nccl_template({"networks": rails}, evidence)
    assert template["metadata"]["annotations"] == {"k8s.v1.cni.cncf.io/networks": "default/rail-0,fabric/rail-1"}
    assert "hostNetwork" not in template["spec"]


def test_pods_share_the_nodes_network_where_inventory_says_so(evidence: Evidence) -> None:
    template = nccl_template({"host_network": True}, evidence)
    assert "annotations" not in template["metadata"]
    assert (template["spec"]["hostNetwork"], template["spec"]["dnsPolicy"]) == (True, "ClusterFirstWithHostNet")


def test_every_taint_is_tolerated(evidence: Evidence) -> None:
    taints = [
        {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"},
        {"key": "dedicated", "value": "training", "effect": "NoExecute"},
    ]
    template = nccl_template({"host_network": True, "taints": taints}, evidence)
    assert template["spec"]["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
        {"key": "dedicated", "operator": "Exists", "effect": "NoExecute"},
    ]


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
