"""The checks. The order of imports is the order in which a platform comes up, and so the order of causes."""

# isort: off
from . import cluster, nodes, releases, cilium, network, secondary, gpu, versions
from . import dra, probes, smi, claims, nccl, benchmark, nvlink

# isort: on

__all__ = [
    "benchmark",
    "cilium",
    "claims",
    "cluster",
    "dra",
    "gpu",
    "nccl",
    "network",
    "nodes",
    "nvlink",
    "probes",
    "releases",
    "secondary",
    "smi",
    "versions",
]
