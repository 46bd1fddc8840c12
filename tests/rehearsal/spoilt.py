"""`gpuready` by way of a network in trouble, and what its tests share."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from .commands import BIN, ROOT, environment, run
from .trouble import Proxy

Done = subprocess.CompletedProcess[str]
PAGE = ROOT / "docs" / "reference" / "trouble.md"
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


def messages() -> list[str]:
    """The lines that the reference page lists, `…` for what differs."""
    return re.findall(r"^\| `(.+?)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


def listed(line: str) -> str:
    """A line of stderr without its head; fails where the reference page does not list it."""
    text = line.removeprefix("gpuready: ")
    forms = [".+".join(map(re.escape, message.split("…"))) for message in messages()]
    assert any(re.fullmatch(form, text) for form in forms), f"{PAGE.name} does not list: {text}"
    return text


def complaint(done: Done) -> str:
    """What a command that could not do its work says: one line on stderr, listed, and exit code 2."""
    assert (done.returncode, done.stdout) == (2, ""), done.stdout + done.stderr
    lines = done.stderr.splitlines()
    assert lines and lines[-1].startswith("gpuready: "), done.stderr
    # Progress, which is indented, may come before it.
    assert all(line.startswith("  ") for line in lines[:-1]), done.stderr
    return listed(lines[-1])


def confined(script: str, state_dir: Path, *, seconds: float = 120, **env: str) -> Done:
    """A bash script as a user without power over other users' files, in mounts of its own; `gpuready` is ours.

    It may mount: what it does to the machine ends with it.
    """
    inside = ["setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner", "bash", "-euc", script]
    command = ["unshare", "--mount", "--propagation=private", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    if subprocess.run([*command, "true"], capture_output=True, timeout=10, check=False).returncode:
        pytest.skip("this machine lets nobody mount anything")
    env = environment(state_dir, PATH=f"{BIN}:{os.environ['PATH']}", **env)
    done = subprocess.run(
        [*command, *inside], cwd=ROOT, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=seconds, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done
