"""A process that ends a rehearsal cluster when its owner ends, however that ends.

Run as ``python -m gpuready.rehearsal.leash --state-dir D --pid P --started T``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from . import controlplane
from .processes import Process

_INTERVAL = 0.5


def main() -> None:
    """Wait for the owner's end, then stop and remove everything of the state folder."""
    parser = argparse.ArgumentParser(prog="gpuready.rehearsal.leash")
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--pid", type=int, required=True)
    parser.add_argument("--started", type=int, required=True, help="field 22 of /proc/PID/stat")
    args = parser.parse_args()
    owner = Process(args.pid, args.started)
    while owner.alive:
        time.sleep(_INTERVAL)
    controlplane.down(args.state_dir)


if __name__ == "__main__":
    main()
