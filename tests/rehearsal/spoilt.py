"""`gpuready` by way of a network in trouble, and what its tests share."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from .commands import run
from .trouble import Proxy

Done = subprocess.CompletedProcess[str]
PLUGIN = {"apiVersion": "client.authentication.k8s.io/v1", "interactiveMode": "Never"}


def command(network: Proxy, name: str, *args: str, kubeconfig: Path | None = None, **more: Any) -> Done:
    """`gpuready NAME` on the rehearsal, by way of the proxy."""
    file = kubeconfig or network.kubeconfig()
    where = ("--cluster", "rehearsal", "--kubeconfig", str(file))
    done = run("gpuready", name, *where, *args, state_dir=network.now.folder, **more)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def check(network: Proxy, *args: str, **more: Any) -> Done:
    """`gpuready check`."""
    return command(network, "check", *args, **more)


def document(done: Done) -> dict[str, Any]:
    """The JSON report, which says the same as the exit code."""
    data: dict[str, Any] = json.loads(done.stdout)
    assert data["exit_code"] == done.returncode
    return data


def hanging_plugin(network: Proxy, folder: Path) -> tuple[Path, Path]:
    """A kubeconfig whose exec plugin never ends, and the file that then holds the plugin's pid."""
    pid = folder / "pid"
    script = f"echo $$ > {pid}.part; mv {pid}.part {pid}; exec sleep 1000"
    return network.kubeconfig("hanging", exec={**PLUGIN, "command": "sh", "args": ["-c", script]}), pid


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and is not yet waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
