"""Installs the GPU platform on the cluster that $CLUSTER names: `pyinfra inventory deploys/gpu.py`.

Run it again: no changes. Nothing is changed where something is refused: one line, exit 2.
"""

import sys

from gpuready.charts_values.errors import GpureadyError
from gpuready.deploys import installation
from pyinfra.context import host

# Cluster-wide work has one host of its own; pyinfra reads this file once for every host of the inventory.
if "cluster" in host.groups:
    try:
        installation.install(host.data.get("gpuready"))
    except GpureadyError as error:
        # pyinfra shows one clean line and exits 2 in this form alone.
        print(f"gpuready: {error}", file=sys.stderr)
        sys.exit(2)
