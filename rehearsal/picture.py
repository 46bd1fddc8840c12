"""Makes docs/report.svg: the report of a real acceptance on a rehearsal cluster with one fault injected.

python -m gpuready.rehearsal.picture docs/report.svg
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

from gpuready.charts_values.errors import GpureadyError, ToolError
from gpuready.validators import cli
from gpuready.validators.model import Run
from gpuready.validators.report import html

from . import controlplane, faults, rehearse

FAULT = "tcp-fallback"


def make(file: Path) -> None:
    """Rehearse in a folder of its own, break one node's RDMA, accept, and draw what was printed."""
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "state"
        report = Path(folder) / "run.json"
        os.environ |= {"GPUREADY_STATE_DIR": str(state), "CLUSTER": "rehearsal"}
        try:
            controlplane.up(state, nodes=8, profile="h100-ib", leash=os.getpid())
            rehearse.install(Path.cwd())
            faults.inject(state, FAULT)
            faults.settle(state)
            cli.main(["accept", "-o", "json", "--output-file", str(report)])
            if not report.is_file():
                raise ToolError("the acceptance left no report; why stands above")
            run = Run.from_json(json.loads(report.read_text(encoding="utf-8")))
        finally:
            controlplane.down(state)
    file.write_text(html.picture(run, f"gpuready accept, after: gpuready rehearse inject {FAULT}"), encoding="utf-8")


if __name__ == "__main__":
    try:
        make(Path(sys.argv[1]))
    except GpureadyError as error:
        sys.exit(f"gpuready: {error}")
