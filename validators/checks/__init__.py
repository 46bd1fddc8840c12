"""The checks. The order of imports is the order in which a platform comes up, and so the order of causes."""

# isort: off
from . import cluster, releases, network, gpu, versions, dra, smi, nccl

# isort: on

__all__ = ["cluster", "dra", "gpu", "nccl", "network", "releases", "smi", "versions"]
