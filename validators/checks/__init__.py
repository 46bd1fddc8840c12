"""The checks. The order of imports is the order in which a platform comes up, and so the order of causes."""

# isort: off
from . import cluster
from . import node_access, node_system, node_containerd, node_kubelet, node_pci, node_driver, node_rdma
from . import nodes
from . import releases, cilium, network, secondary, gpu, resources, node_gdr, versions
from . import dra, probes, smi, claims, nccl, nccl_settings, benchmark, nvlink

# isort: on

__all__ = [
    "benchmark",
    "cilium",
    "claims",
    "cluster",
    "dra",
    "gpu",
    "nccl",
    "nccl_settings",
    "network",
    "node_access",
    "node_containerd",
    "node_driver",
    "node_gdr",
    "node_kubelet",
    "node_pci",
    "node_rdma",
    "node_system",
    "nodes",
    "nvlink",
    "probes",
    "releases",
    "resources",
    "secondary",
    "smi",
    "versions",
]
