"""Other clusters than the default one, from bare nodes to acceptance, with the commands that a user types.

Each then stands for healthy fleets of its profile, varied at random, none of which may raise an alarm.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gpuready.charts_values.kube import Api
from gpuready.rehearsal import healthy, rehearse, scoreboard, state
from gpuready.rehearsal.state import State

from .commands import report, run, until

POLICY = "/apis/mellanox.com/v1alpha1/nicclusterpolicies/nic-cluster-policy"
NETWORKS = "/apis/mellanox.com/v1alpha1/macvlannetworks"


@pytest.fixture(autouse=True)
def meant(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test's own cluster is what commands in this process mean, too."""
    monkeypatch.setenv("GPUREADY_STATE_DIR", str(state_dir))


def raised(now: State, profile: str) -> dict[str, list[str]]:
    """The alarms of healthy fleets that raise any."""
    found = dict(scoreboard.fleets(now, profile, seed=0))
    assert len(found) == scoreboard.VARIATIONS
    return {title: alarms for title, alarms in found.items() if alarms}


def rehearsed(folder: Path, profile: str, *more: str) -> tuple[State, dict[str, dict[str, Any]], Any]:
    """`gpuready rehearse run`, which must pass; then the results of its acceptance by their ids, and all of it."""
    size = ("--profile", profile, "--nodes", str(healthy.nodes(profile)), "--ssh-nodes", "0")
    done = run("gpuready", "rehearse", "run", *size, *more, state_dir=folder, seconds=300)
    assert done.returncode == 0, f"{done.stderr[-2000:]}\n{done.stdout[:3000]}"
    now = state.need(folder)
    data = json.loads((folder / rehearse.REPORT).read_text())
    left = [one for one in data["results"] if one["status"] not in ("pass", "skip")]
    # Where no figure is known, none is claimed.
    assert all((one["check"], one["required"]) == ("nccl.bandwidth", False) for one in left), left
    assert data["verdict"] == "pass"
    return now, {one["id"]: one for one in data["results"]}, data


def unchanged(now: State) -> bool:
    """Whether the installer, run again, changes nothing."""
    done = run("pyinfra", "inventory", "deploys/gpu.py", state_dir=now.folder, seconds=240)
    assert done.returncode == 0, done.stderr[-3000:]
    total = next(line for line in done.stderr.splitlines() if "Grand total" in line).split()[2:]
    return total[0] == total[-1] and total[1:-1] == ["-", "-"]


def test_cloud_vms_without_rdma(state_dir: Path) -> None:
    now, by_id, data = rehearsed(state_dir, "cloud-vm")
    assert data["counts"]["fail"] == 0
    by_check = {one["check"]: one for one in by_id.values()}
    assert not [one for one in by_id if "network-operator" in one], "there is nothing for it to do"
    assert by_check["rdma.allocatable"]["status"] == "skip"
    assert "no RDMA expected" in by_check["nccl.transport"]["detail"]
    # No figure is known for this fabric, so none is claimed.
    bandwidth = by_check["nccl.bandwidth"]
    assert (bandwidth["status"], bandwidth["required"], bandwidth["reason"]) == ("unproven", False, "NoBaseline")
    assert unchanged(now)
    assert raised(now, "cloud-vm") == {}


def test_roce_rails_reach_pods_as_secondary_networks(state_dir: Path) -> None:
    now, by_id, _ = rehearsed(state_dir, "h100-roce")
    assert by_id["network.secondary/rail/rail-7"]["detail"] == "default/rail-7 on enp220s0np0"
    assert by_id["nccl.transport/node/gpu-0000"]["detail"].endswith("8 of 8 rails used")
    assert unchanged(now)
    api = Api.connect(now.kubeconfig)
    # This profile's second taint, with NoExecute, keeps out whatever does not tolerate it.
    wanted = {
        one["metadata"]["name"]: one["status"]["desiredNumberScheduled"] for one in api.list("/apis/apps/v1/daemonsets")
    }
    assert min(wanted.values()) == len(now.nodes), wanted
    # Without Multus nobody reads what pods ask for: they start, and NCCL takes TCP.
    api.patch(POLICY, {"spec": {"secondaryNetwork": None}})
    multus = "/apis/apps/v1/namespaces/nvidia-network-operator/daemonsets/kube-multus-ds"
    until(lambda: api.find(multus), lambda found: found is None)
    until(lambda: api.get(POLICY)["status"]["state"], lambda seen: seen == "ready")
    first = report(now, "accept", "--nccl", "pair")["results"][0]
    assert (first["check"], first["cause"]) == ("nccl.transport", "NCCL fell back to TCP sockets")
    api.delete(f"{NETWORKS}/rail-3")
    found = until(lambda: report(now, "check"), lambda data: data["counts"]["fail"] == 1)
    assert found["results"][0]["id"] == "network.secondary/rail/rail-3"
    # The installer puts both back.
    assert not unchanged(now)
    assert report(now, "accept", "--nccl", "pair")["verdict"] == "pass"
    assert raised(now, "h100-roce") == {}


def test_a100_with_driver_and_ofed_on_the_host(state_dir: Path) -> None:
    now, by_id, _ = rehearsed(state_dir, "a100-ib")
    assert by_id["smi.gpus/node/gpu-0001"]["detail"] == "8 x NVIDIA A100-SXM4-80GB, driver 570.158.01"
    assert by_id["dra.rules/cluster/rehearsal"]["status"] == "skip"
    assert "floor 148.0 GB/s" in by_id["nccl.bandwidth/pair/gpu-0000+gpu-0002"]["detail"]
    assert unchanged(now)
    assert raised(now, "a100-ib") == {}


def test_gb200_talks_over_nvlink_within_a_rack(state_dir: Path) -> None:
    now, by_id, data = rehearsed(state_dir, "gb200-nvl72")
    assert "via P2P/MNNVL, domain " in by_id["nccl.nvlink/cluster/4 nodes"]["detail"]
    assert data["nccl"]["all"]["transport"]["gdr"] == "not_applicable"
    # The NICs lead out of the rack, and are proved by a run of their own.
    assert data["nccl"]["net"]["transport"]["gdr"] == "all"
    assert by_id["nccl.transport/node/gpu-0003"]["detail"].endswith("4 of 4 rails used")
    assert unchanged(now)
    api = Api.connect(now.kubeconfig)
    for kind in ("resource.k8s.io/v1/resourceclaimtemplates", "resource.nvidia.com/v1beta1/computedomains"):
        until(lambda kind=kind: api.list(f"/apis/{kind}", resourceVersion=""), lambda found: found == [])
    assert raised(now, "gb200-nvl72") == {}


def test_gpus_served_by_dra(state_dir: Path) -> None:
    now, by_id, data = rehearsed(state_dir, "h100-ib", "--nodes", "2", "--dra", "gpus")
    assert by_id["dra.claim/node/gpu-0000"]["detail"] == "8 GPUs by claim, each in the node's ResourceSlices"
    assert by_id["dra.slices/node/gpu-0001"]["status"] == "pass"
    assert by_id["gpu.allocatable/cluster/rehearsal"]["status"] == "skip"
    assert data["nccl"]["pair"]["transport"]["gdr"] == "all"
    assert unchanged(now)
    nodes = [one for one in Api.connect(now.kubeconfig).list("/api/v1/nodes") if one["metadata"]["name"] != "cp-0"]
    assert [one["metadata"]["labels"]["nvidia.com/dra-kubelet-plugin"] for one in nodes] == ["true", "true"]
    assert [one["status"]["allocatable"].get("nvidia.com/gpu", "0") for one in nodes] == ["0", "0"]
    refused = run("gpuready", "rehearse", "up", "--dra", "off", state_dir=state_dir)
    assert refused.returncode == 2
    assert "is up with DRA mode gpus, not off" in refused.stderr
