"""`gpuready rehearse run`: the main job from end to end, with the commands that a user would type."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from gpuready.charts_values.errors import InputError, ToolError
from gpuready.charts_values.inventory import state_folder
from gpuready.validators import cli as gpuready

from . import controlplane, state

REPORT = "accept.json"
INSTALL_SECONDS = 1800
# Machines that SSH reaches, beside the simulated fleet.
MACHINES = 2
# What stops the installer: first as Ctrl-C does, then for good.
_GRACE_SECONDS = 20


def run(args: argparse.Namespace) -> int:
    """Start the cluster, install, accept, print the report; the cluster stays up.

    Returns the exit code of the acceptance. Raises InputError outside a checkout, ToolError where the
    installer fails.
    """
    root = Path.cwd()
    for name in ("inventory", "deploys/gpu.py"):
        if not (root / name).is_file():
            raise InputError(f"{root} holds no {name}; run this in the folder of your checkout")
    folder = state_folder(root, args.state_dir)
    os.environ |= {"GPUREADY_STATE_DIR": str(folder), "CLUSTER": "rehearsal"}
    began = time.monotonic()

    # Real machines too, where this host can have them; a cluster that is up stays as it is.
    ssh_nodes = args.ssh_nodes if args.ssh_nodes is not None or state.load(folder) else MACHINES

    def up() -> int:
        now = controlplane.up(
            folder, nodes=args.nodes, profile=args.profile, dra=args.dra, ssh_nodes=ssh_nodes, say=_detail
        )
        _detail(f"{len(now.nodes)} nodes of profile {now.profile} at {now.server}")
        return 0

    _step("1/3 a Kubernetes control plane and a bare fleet", "gpuready rehearse up", up)
    _step("2/3 install", "pyinfra inventory deploys/gpu.py", lambda: install(root))
    report = folder / REPORT
    code = _step(
        "3/3 accept",
        "gpuready accept",
        lambda: gpuready.main(["accept", "-o", "json", "--output-file", str(report)]),
    )
    _say(f"All three: {time.monotonic() - began:.0f} s.\n")
    if report.is_file():
        gpuready.main(["show", str(report)])
    _say(_next_steps(folder, report))
    return code


def _step(title: str, command: str, work: Callable[[], int]) -> int:
    _say(f"\n== {title}: {command}")
    began = time.monotonic()
    code = work()
    _say(f"== done in {time.monotonic() - began:.1f} s")
    return code


def install(root: Path) -> int:
    """Run the literal installer in the checkout ``root``; raises ToolError where it fails."""
    pyinfra = Path(sys.executable).with_name("pyinfra")
    # Its own session would hide it from Ctrl-C; it stays in ours, and is stopped by its id.
    process = subprocess.Popen(
        [str(pyinfra), "inventory", "deploys/gpu.py"],
        cwd=root,
        env=os.environ | {"PYINFRA_YES": "1"},
        stdout=sys.stderr,
    )
    try:
        code = process.wait(timeout=INSTALL_SECONDS)
    except (subprocess.TimeoutExpired, KeyboardInterrupt) as error:
        _stop(process)
        if isinstance(error, KeyboardInterrupt):
            raise
        raise ToolError(f"the installer did not end within {INSTALL_SECONDS} s") from error
    if code != 0:
        raise ToolError(f"the installer failed (exit {code}); what it says stands above")
    return code


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _next_steps(folder: Path, report: Path) -> str:
    export = "" if folder == state_folder(Path.cwd()) else f"export GPUREADY_STATE_DIR={shlex.quote(str(folder))}\n  "
    return (
        f"\nThe cluster is still up. The report as JSON: {report}\nTry next:\n"
        f"  {export}.venv/bin/gpuready rehearse inject gpu-missing && .venv/bin/gpuready check\n"
        "  .venv/bin/gpuready rehearse heal gpu-missing && .venv/bin/gpuready check\n"
        "  .venv/bin/gpuready rehearse down"
    )


def _detail(text: str) -> None:
    _say(f"   {text}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
