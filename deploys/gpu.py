"""Makes the cluster that $CLUSTER names a GPU platform: `pyinfra inventory deploys/gpu.py`.

First the nodes that inventory reaches over SSH, then the releases. Run it again: no changes. Nothing is changed where
something is refused: one line, exit 2.
"""

import sys

from gpuready.charts_values.errors import GpureadyError
from gpuready.deploys import installation
from gpuready.deploys.nodes import operations, preparation
from pyinfra.context import host

_cluster = host.data.get("gpuready")
# pyinfra reads this file once for every host of the inventory; cluster-wide work has one host of its own.
try:
    if "gpu_nodes" in host.groups:
        preparation.prepare(_cluster)
    if getattr(_cluster, "ssh_nodes", None):
        operations.prepared(name="Nodes: prepared")
    if "cluster" in host.groups:
        installation.install(_cluster)
        if _cluster.ssh_nodes:
            operations.accounted(names=tuple(_cluster.ssh_nodes), name="Nodes: accounted for")
except GpureadyError as error:
    # pyinfra shows one clean line and exits 2 in this form alone.
    print(f"gpuready: {error}", file=sys.stderr)
    sys.exit(2)
