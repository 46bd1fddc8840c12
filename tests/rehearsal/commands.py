"""Runs the commands that a user types, and waits for what follows from them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from gpuready.rehearsal.state import State

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
T = TypeVar("T")


def environment(state_dir: Path, **more: str) -> dict[str, str]:
    """The caller's environment, pointed at one rehearsal."""
    kept = {key: value for key, value in os.environ.items() if key not in ("CLUSTER", "KUBECONFIG")}
    return kept | {"GPUREADY_STATE_DIR": str(state_dir), "PYINFRA_YES": "1", "PYINFRA_PROGRESS": "off"} | more


def run(
    *command: str, state_dir: Path, seconds: float = 120, cwd: Path = ROOT, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run a program of the virtual environment, without a terminal; fails the test past its deadline."""
    return subprocess.run(
        [str(BIN / command[0]), *command[1:]],
        cwd=cwd,
        env=environment(state_dir, **env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def gpuready(now: State, *args: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """`gpuready ARGS` against a rehearsal."""
    return run("gpuready", *args, state_dir=now.folder, **more)


def report(now: State, *args: str, **more: Any) -> dict[str, Any]:
    """`gpuready ARGS -o json`, parsed."""
    done = gpuready(now, *args, "-o", "json", **more)
    assert done.stdout, done.stderr
    data: dict[str, Any] = json.loads(done.stdout)
    assert data["exit_code"] == done.returncode
    return data


def until(look: Callable[[], T], good: Callable[[T], bool], seconds: float = 30) -> T:
    """Look until it is good; fails the test with what was last seen."""
    deadline = time.monotonic() + seconds
    while True:
        seen = look()
        if good(seen):
            return seen
        assert time.monotonic() < deadline, f"after {seconds} s it is still {seen}"
        time.sleep(0.2)
