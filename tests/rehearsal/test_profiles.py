"""Other clusters than the default one, from bare nodes to acceptance: no RDMA, and GPUs served by DRA."""

from __future__ import annotations

from pathlib import Path

from gpuready.rehearsal import controlplane

from .commands import ROOT, report, run


def test_cloud_vms_without_rdma(state_dir: Path) -> None:
    now = controlplane.up(state_dir, nodes=2, profile="cloud-vm")
    done = run("pyinfra", "inventory", "deploys/gpu.py", state_dir=state_dir, seconds=240)
    assert done.returncode == 0, done.stderr[-3000:]
    data = report(now, "accept")
    assert (data["verdict"], data["counts"]["fail"]) == ("pass", 0)
    by_check = {one["check"]: one for one in data["results"]}
    assert by_check["rdma.allocatable"]["status"] == "skip"
    assert "no RDMA expected" in by_check["nccl.transport"]["detail"]
    # No figure is known for this fabric, so none is claimed.
    bandwidth = by_check["nccl.bandwidth"]
    assert (bandwidth["status"], bandwidth["required"], bandwidth["reason"]) == ("unproven", False, "NoBaseline")


def test_gpus_served_by_dra(state_dir: Path, tmp_path: Path) -> None:
    text = (ROOT / "inventory").read_text(encoding="utf-8")
    inventory = tmp_path / "inventory"
    inventory.write_text(text.replace('{"rehearsal": True}', '{"rehearsal": True, "dra": "gpus"}'), encoding="utf-8")
    now = controlplane.up(state_dir, nodes=2, profile="h100-ib")
    done = run("pyinfra", str(inventory), "deploys/gpu.py", state_dir=state_dir, seconds=240)
    assert done.returncode == 0, done.stderr[-3000:]
    data = report(now, "accept", "--inventory", str(inventory))
    assert (data["verdict"], data["counts"]["fail"]) == ("pass", 0)
    by_id = {one["id"]: one for one in data["results"]}
    assert by_id["dra.claim/node/gpu-0000"]["detail"] == "8 GPUs by claim, each in the node's ResourceSlices"
    assert by_id["dra.slices/node/gpu-0001"]["status"] == "pass"
    assert by_id["gpu.allocatable/cluster/rehearsal"]["status"] == "skip"
    assert data["nccl"]["pair"]["transport"]["gdr"] == "all"
