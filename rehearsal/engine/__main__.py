"""`python -m gpuready.rehearsal.engine`: find or make the engine, and print where each program is."""

from __future__ import annotations

import sys

from gpuready.charts_values.errors import GpureadyError

from . import find
from .parts import PROGRAMS


def main() -> int:
    """Returns the exit code."""
    try:
        found = find(lambda text: print(f"  {text}", file=sys.stderr, flush=True))
    except GpureadyError as error:
        print(f"gpuready: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    for program in PROGRAMS:
        print(f"{program.name:<24} {found[program.name]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
