"""Values that unit tests share: a promised cluster and the objects of one that keeps the promise."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from gpuready.charts_values import inventory
from gpuready.validators.evidence import Evidence
from gpuready.validators.expected import Expected

ENTRY: dict[str, Any] = {
    "rehearsal": False,
    "platform": "kubeadm",
    "pod_cidr": "10.244.0.0/16",
    "service_cidr": "10.96.0.0/16",
    "driver_version": "580.173.02",
    "dra": "compute-domains",
    "groups": {
        "h100": {
            "nodes": ["gpu-0", "gpu-1"],
            "gpu_product": "NVIDIA-H100-80GB-HBM3",
            "resources": {"nvidia.com/gpu": 8, "rdma/rdma_shared_device_a": 63},
            "nics": 8,
            "nic_gbits_s": 400,
            "rdma": "ib",
            "taints": [{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}],
        }
    },
}


PARTS = (
    *("driver", "container-toolkit", "device-plugin", "operator-validator", "gpu-feature-discovery"),
    *("dcgm-exporter", "mig-manager"),
)


def entry(**changes: Any) -> dict[str, Any]:
    """A copy of the entry with some keys changed."""
    return {**copy.deepcopy(ENTRY), **changes}


def gpu_node(name: str) -> dict[str, Any]:
    """A healthy GPU node."""
    return {
        "kind": "Node",
        "apiVersion": "v1",
        "metadata": {
            "name": name,
            "labels": {
                "kubernetes.io/hostname": name,
                "feature.node.kubernetes.io/pci-10de.present": "true",
                "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3",
                "nvidia.com/cuda.driver-version.full": "580.173.02",
                "nvidia.com/mig.capable": "true",
                **{f"nvidia.com/gpu.deploy.{part}": "true" for part in PARTS},
            },
        },
        "spec": {"taints": [{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}]},
        "status": {
            "addresses": [{"type": "InternalIP", "address": f"192.168.1.{10 + int(name.rpartition('-')[2])}"}],
            "allocatable": {"nvidia.com/gpu": "8", "rdma/rdma_shared_device_a": "63"},
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
            "nodeInfo": {"kubeletVersion": "v1.35.4"},
        },
    }


@pytest.fixture
def expected() -> Expected:
    """Two H100 nodes with InfiniBand."""
    return Expected.of(inventory.parse("lab", entry()))


@pytest.fixture
def evidence() -> Evidence:
    """The nodes of the promised cluster, healthy; other kinds are added by the tests that need them."""
    return Evidence(
        cluster={"nodes": [gpu_node("gpu-0"), gpu_node("gpu-1")]},
        about={"server": "https://192.0.2.1:6443", "server_version": "v1.35.4", "uid": "u-1"},
    )


@pytest.fixture
def healthy(evidence: Evidence) -> Evidence:
    """All that a healthy H100 cluster shows."""
    from .healthy import objects

    evidence.cluster |= objects()
    evidence.about["time"] = "2026-01-02T00:00:00Z"
    return evidence
