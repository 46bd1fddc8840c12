"""The literal command where something is wrong: one line, exit 2, nothing changed."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from gpuready.charts_values.kube import Api
from gpuready.rehearsal.state import State

from .installer import footprint, inventory, pyinfra


def refused(done: subprocess.CompletedProcess[str], line: str) -> None:
    """Exit 2, and exactly one line of ours, which holds ``line``; no traceback."""
    said = done.stdout + done.stderr
    ours = [text for text in said.splitlines() if text.startswith("gpuready: ")]
    assert done.returncode == 2, said
    assert len(ours) == 1, said
    assert line in ours[0]
    assert "Traceback" not in said
    assert "internal exception" not in said


def test_no_rehearsal_is_up(tmp_path: Path) -> None:
    refused(pyinfra(tmp_path), "no rehearsal cluster is up; start one with: gpuready rehearse up")


def test_a_typo_in_cluster(tmp_path: Path) -> None:
    refused(pyinfra(tmp_path, CLUSTER="rehersal"), "inventory has no cluster 'rehersal'; it has rehearsal")


def test_an_inventory_without_an_entry(tmp_path: Path) -> None:
    file = tmp_path / "inventory"
    file.write_text('cluster = ["@local"]\n')
    refused(pyinfra(tmp_path, file=file), "carries no gpuready entry")


# What is wrong in the entry, and what is said.
ENTRIES: dict[str, tuple[dict[str, Any], str]] = {
    "missing kubeconfig": ({"kubeconfig": "/nowhere/kubeconfig"}, "kubeconfig /nowhere/kubeconfig does not exist"),
    "missing context": ({"context": "prod"}, "prod"),
    "no group": ({"groups": {}}, "`groups` is empty"),
    "group without nodes": (
        {"groups": {"g": {"nodes": [], "gpu_product": "x", "resources": {"nvidia.com/gpu": 8}}}},
        "it has no nodes",
    ),
    "group that selects nothing": (
        {"groups": {"g": {"count": 2, "selector": {"a": "b"}, "gpu_product": "x", "resources": {"nvidia.com/gpu": 8}}}},
        "group 'g' of inventory has no node in the cluster (labels {'a': 'b'})",
    ),
    "other cluster": ({"cluster_uid": "not-this-one"}, "inventory pins 'rehearsal' to not-this-one"),
    "overlapping networks": ({"rail_cidrs": ["10.96.1.0/24"]}, "overlaps `rail_cidrs` 10.96.1.0/24"),
    "nodes within the pod network": ({"pod_cidr": "10.20.0.0/14", "node_cidrs": []}, "which lies in `pod_cidr`"),
    "other service network": ({"service_cidr": "172.30.0.0/16"}, "but Service kubernetes has address 10.96.0.1"),
    "no room for the nodes": ({"pod_cidr": "10.64.0.0/24"}, "has room for 1 nodes with /24 each, the cluster has 9"),
    "driver too old for DRA": ({"driver_version": "550.54.15"}, "driver 550.54.15 is below 565"),
    "no folder of charts": ({"charts": "/nowhere/charts"}, "which is no folder of charts"),
    "nameless rdma": (
        {
            "groups": {
                "g": {
                    "nodes": ["gpu-0000"],
                    "gpu_product": "x",
                    "rdma": "ib",
                    "resources": {"nvidia.com/gpu": 8, "rdma/a": 1, "rdma/b": 1},
                }
            }
        },
        "it expects several rdma/* resources",
    ),
}


@pytest.mark.parametrize("case", ENTRIES)
def test_a_wrong_entry(rehearsal: State, tmp_path: Path, case: str) -> None:
    changes, line = ENTRIES[case]
    api = Api.connect(rehearsal.kubeconfig)
    before = footprint(api)
    refused(pyinfra(rehearsal.folder, file=inventory(tmp_path, **changes)), line)
    assert footprint(api) == before


def test_helm_is_missing(rehearsal: State, tmp_path: Path) -> None:
    api = Api.connect(rehearsal.kubeconfig)
    before = footprint(api)
    file = inventory(tmp_path, state_dir=str(tmp_path))
    refused(
        pyinfra(rehearsal.folder, file=file, GPUREADY_BIN="", PATH=str(tmp_path)),
        "helm is missing (looked in PATH)",
    )
    assert footprint(api) == before


def test_the_api_server_is_gone(rehearsal: State, tmp_path: Path) -> None:
    elsewhere = tmp_path / "kubeconfig"
    elsewhere.write_text(rehearsal.kubeconfig.read_text().replace(rehearsal.server, "https://127.0.0.1:1"))
    refused(pyinfra(rehearsal.folder, file=inventory(tmp_path, kubeconfig=str(elsewhere))), "127.0.0.1:1")


def test_charts_that_do_not_fit(rehearsal: State, tmp_path: Path, root: Path) -> None:
    """Found before the first change, although the wrong chart is the last to be installed."""
    charts = tmp_path / "charts"
    charts.mkdir()
    for source in (root / "rehearsal" / "charts").iterdir():
        if source.is_dir() and source.name != "dra-driver-nvidia-gpu":
            (charts / source.name).symlink_to(source)
    wrong = charts / "dra-driver-nvidia-gpu" / "Chart.yaml"
    wrong.parent.mkdir()
    api = Api.connect(rehearsal.kubeconfig)
    before = footprint(api)
    for version, needs, line in (
        (
            "0.5.0",
            ">=1.32.0-0",
            "0.5.0, charts.yaml pins dra-driver-nvidia-gpu 0.4.0",
        ),
        ("0.4.0", ">=1.99.0-0", "takes Kubernetes >=1.99.0-0, the server has v"),
    ):
        wrong.write_text(f"apiVersion: v2\nname: dra-driver-nvidia-gpu\nversion: {version}\nkubeVersion: '{needs}'\n")
        refused(pyinfra(rehearsal.folder, GPUREADY_CHARTS=str(charts)), line)
    assert footprint(api) == before
