"""``python -m gpuready.rehearsal.actors --state-dir D``: one process, in the foreground, until SIGTERM."""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import threading
import time
from pathlib import Path

from gpuready.charts_values.errors import DeadlineError, GpureadyError, InputError
from gpuready.charts_values.inventory import STATE_FILE
from gpuready.charts_values.kube import Api

from ..profile import load_profile
from .cache import Cache
from .informers import KINDS, Informers
from .stage import Stage
from .writes import THREADS

# Seconds until every kind must have been listed once.
_PATIENCE = 120.0


def play(state_dir: Path, stop: threading.Event, patience: float = _PATIENCE) -> None:
    """Play until ``stop`` is set.

    Raises InputError where the state folder does not say what to play, DeadlineError where the API server has not
    listed every kind within ``patience`` seconds.
    """
    file = state_dir / STATE_FILE
    try:
        state = json.loads(file.read_text())
        profile, kubeconfig = load_profile(state["profile"]), Path(state["kubeconfig"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} does not describe a rehearsal cluster: {error}") from error
    own = state_dir / "components" / "actors.kubeconfig"
    api = Api.connect(own if own.is_file() else kubeconfig, connections=len(KINDS) + 2 * THREADS)
    cache = Cache()
    informers = Informers(api, cache)
    informers.start()
    end = time.monotonic() + patience
    try:
        while not informers.synced.wait(0.2):
            if stop.is_set():
                return
            if time.monotonic() > end:
                raise DeadlineError(f"{api.server} did not list every kind within {patience:g} s; is it up?")
        stage = Stage(state_dir, profile, api, cache)
        stage.run(stop)
    finally:
        informers.stop()
    stage.close()


def main() -> int:
    """Returns the exit code: 0 after SIGTERM or Ctrl-C, 2 where it could not start."""
    parser = argparse.ArgumentParser(prog="gpuready-actors", description=__doc__)
    parser.add_argument("--state-dir", type=Path, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        play(arguments.state_dir.resolve(), stop)
    except GpureadyError as error:
        print(f"gpuready: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
