"""What this host must have for machines, and what is left of them on it.

Namespaces, mounts and relays end with the processes that hold them. A network interface and control groups do
not; both carry the state folder's digest in their names.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from gpuready.charts_values.errors import DeadlineError

from . import plan

CGROUPS = Path("/sys/fs/cgroup")
_NET = Path("/sys/class/net")
# The program, and the Debian package that holds it.
_TOOLS = {
    "systemd-nspawn": "systemd-container",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "mount": "mount",
}
_INSTANCES = Path("/proc/sys/fs/inotify/max_user_instances")
# 15 were counted on an idle machine.
_INSTANCES_EACH = 20
_SECONDS = 15.0
_PAUSE = 0.02


def lacking(count: int, *extra: tuple[str, str]) -> str:
    """What keeps this host from running ``count`` machines, on one line with what to do; empty where nothing does.

    ``extra`` are more programs that are needed, with their packages.
    """
    if os.geteuid() != 0:
        return "machines need root; run it with sudo"
    missing = {tool: package for tool, package in (*_TOOLS.items(), *extra) if not shutil.which(tool)}
    if missing:
        are = "is" if len(missing) == 1 else "are"
        packages = " ".join(dict.fromkeys(missing.values()))
        return f"{', '.join(missing)} {are} not on this host; apt install {packages}"
    if not hierarchies():
        return f"no control groups are mounted at {CGROUPS}"
    return _watches(count)


def hierarchies() -> list[Path]:
    """The roots of the control groups: one per controller, or a single one (version 2)."""
    if (CGROUPS / "cgroup.procs").exists():
        return [CGROUPS]
    return [root for root in sorted(CGROUPS.glob("*/")) if (root / "cgroup.procs").exists() and not root.is_symlink()]


def make_group(name: str) -> list[Path]:
    """Make a control group in every hierarchy; its parents' CPUs and memory nodes are handed down."""
    made = []
    for root in hierarchies():
        path = root
        for part in Path(name).parts:
            if root == CGROUPS:
                _hand_down(path)
            path = path / part
            path.mkdir(exist_ok=True)
            for file in ("cpuset.cpus", "cpuset.mems"):
                # Version 1 starts a group with none, and then nothing may enter it.
                if root != CGROUPS and (path / file).exists() and not (path / file).read_text().strip():
                    (path / file).write_text((path.parent / file).read_text())
        made.append(path)
    return made


def enter(groups: list[Path]) -> None:
    """Put this process into control groups."""
    for group in groups:
        (group / "cgroup.procs").write_text(str(os.getpid()))


def pids(name: str) -> set[int]:
    """Every process in a control group and below."""
    found: set[int] = set()
    for root in hierarchies():
        for folder, _, _ in os.walk(root / name):
            with contextlib.suppress(OSError):
                found.update(int(pid) for pid in (Path(folder) / "cgroup.procs").read_text().split())
    return found


def kill_group(name: str) -> None:
    """Kill every process of a control group, and remove it. Raises DeadlineError where one does not end."""
    deadline = time.monotonic() + _SECONDS
    while left := pids(name):
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise DeadlineError(f"process {', '.join(map(str, sorted(left)))} does not end, not even by SIGKILL")
        time.sleep(_PAUSE)
    for root in hierarchies():
        while not _removed(root / name):
            # The kernel needs a moment after the last process has gone.
            if time.monotonic() > deadline:
                raise DeadlineError(f"the control group {root / name} cannot be removed")
            time.sleep(_PAUSE)


def clear(folder: Path) -> bool:
    """End and remove whatever machines of this state folder are left on the host; returns whether any were."""
    name, interface = plan.group(folder), plan.link(folder)
    found = any((root / name).exists() for root in hierarchies()) or (_NET / interface).exists()
    if not found:
        return False
    kill_group(name)
    deadline = time.monotonic() + _SECONDS
    # It ends by itself with the namespace that its other end is in, which may come first.
    while (_NET / interface).exists():
        command = ["ip", "link", "delete", interface]
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False)
        if time.monotonic() > deadline:
            raise DeadlineError(f"the network interface {interface} cannot be removed")
    return True


def _hand_down(group: Path) -> None:
    """Version 2: let the groups below use what this one may control."""
    for controller in (group / "cgroup.controllers").read_text().split():
        with contextlib.suppress(OSError):
            (group / "cgroup.subtree_control").write_text(f"+{controller}")


def _watches(count: int) -> str:
    """The kernel counts the inotify instances of root over all machines, and few are allowed by default."""
    most, used = int(_INSTANCES.read_text()), 0
    for handle in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            used += str(handle.readlink()) == "anon_inode:inotify"
    if most - used >= count * _INSTANCES_EACH:
        return ""
    return (
        f"fs.inotify.max_user_instances is {most}, {used} are in use, and {count} machines need "
        f"{count * _INSTANCES_EACH}; sysctl -w fs.inotify.max_user_instances=1024"
    )


def _removed(group: Path) -> bool:
    for child in _deepest_first(group):
        try:
            child.rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            return False
    return True


def _deepest_first(group: Path) -> Iterator[Path]:
    for folder, _, _ in os.walk(group, topdown=False):
        yield Path(folder)
