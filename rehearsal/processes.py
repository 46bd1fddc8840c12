"""The processes of a rehearsal cluster: started detached, known by pid and start time, always stopped.

Linux only: /proc says who is alive and whose a process is. Every process carries its state folder in its
environment, so that what a killed `gpuready rehearse up` left behind is still found.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpuready.charts_values.errors import DeadlineError, ToolError

MARK = "GPUREADY_REHEARSAL"
_PROC = Path("/proc")
_PAUSE = 0.02
_TAIL_BYTES = 16384


@dataclass(frozen=True)
class Process:
    """A process we started. ``started`` is its start time in clock ticks since boot: a pid alone is reused."""

    pid: int
    started: int

    @property
    def alive(self) -> bool:
        """Whether this very process runs; one that only waits to be reaped does not."""
        return _start_time(self.pid) == self.started

    @property
    def session(self) -> int:
        """The pid that leads its session, which its children share; 0 once it is gone."""
        fields = _stat(self.pid)
        return int(fields[3]) if fields else 0

    @property
    def rss_bytes(self) -> int:
        """Resident memory; 0 once it is gone."""
        try:
            pages = int((_PROC / str(self.pid) / "statm").read_text().split()[1])
        except (OSError, IndexError):
            return 0
        return pages * os.sysconf("SC_PAGE_SIZE")


def of(pid: int) -> Process | None:
    """The process that has this pid now."""
    started = _start_time(pid)
    return None if started is None else Process(pid, started)


def start(argv: Sequence[str], *, state_dir: Path, log: Path, environ: Mapping[str, str]) -> Process:
    """Start a program in a session of its own, output appended to ``log``, marked as of ``state_dir``.

    Raises ToolError where it cannot be run.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    try:
        pid = os.posix_spawn(
            argv[0],
            list(argv),
            {**environ, MARK: str(state_dir)},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
        )
    except OSError as error:
        raise ToolError(f"cannot run {argv[0]}: {error.strerror}") from error
    # A child of ours keeps its entry in /proc until it is reaped, so this finds it even if it died at once.
    started = _start_time(pid, dead_too=True)
    return Process(pid, started or 0)


def marked(state_dir: Path) -> list[Process]:
    """Every living process that carries the mark of this state folder, the caller excepted."""
    wanted = f"{MARK}={state_dir}".encode()
    found = []
    for folder in _PROC.iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            environ = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if wanted in environ and (process := of(int(folder.name))):
            found.append(process)
    return found


def stop_all(these: Sequence[Process], *, grace: float = 5.0) -> None:
    """Ask processes to end, kill those that have not after ``grace`` seconds, and wait until all are gone.

    Raises DeadlineError where even that does not end one.
    """
    for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, 10.0)):
        for process in these:
            if process.alive:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, number)
        if _wait_until(lambda: not any(process.alive for process in these), patience):
            break
    else:
        left = ", ".join(str(process.pid) for process in these if process.alive)
        raise DeadlineError(f"process {left} does not end, not even by SIGKILL")
    for process in these:
        _reap(process.pid)


def last_words(log: Path) -> str:
    """The last errors that a component logged, on one line; its last line where it logged none."""
    try:
        text = log.read_bytes()[-_TAIL_BYTES:].decode("utf-8", errors="replace")
    except OSError:
        return "none"
    lines = [_readable(line) for line in text.splitlines() if line.strip()]
    errors = [words for severe, words in lines if severe]
    chosen = errors[-2:] or [words for _, words in lines[-1:]]
    words = " | ".join(dict.fromkeys(chosen))
    if not words and shutil.disk_usage(log.parent).free < _TAIL_BYTES:
        return "none, as there is no space left on device for its log"
    return words or "none"


def _readable(line: str) -> tuple[bool, str]:
    """Whether a log line, of Kubernetes' text form or JSON, reports an error; and what it says."""
    if line.startswith("{"):
        try:
            record = json.loads(line)
        except ValueError:
            return False, line.strip()
        words = [str(record[key]) for key in ("msg", "error", "err") if record.get(key)]
        return str(record.get("level", "")).lower() in ("error", "fatal", "panic"), ": ".join(words)
    klog = re.match(r"([IWEF])\d{4} \S+ +\d+ (\S+)\] (.*)", line)
    if klog:
        return klog[1] in "EF", klog[3].strip()
    return line.startswith(("error", "Error", "panic", "fatal")), line.strip()


def _wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_PAUSE)
    return True


def _start_time(pid: int, *, dead_too: bool = False) -> int | None:
    """When the process started; None where it is gone or a zombie."""
    fields = _stat(pid)
    # The first thread may be a zombie while others still run, and hold the ports.
    if not fields or (not dead_too and fields[0] in "ZX" and int(fields[17]) <= 1):
        return None
    return int(fields[19])


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third, the state, on; none where the process is gone."""
    try:
        # The second, the program's name in parentheses, may hold spaces and parentheses itself.
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _reap(pid: int) -> None:
    """Collect the exit status where the process was a child of ours."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def claimed(name: str) -> bool:
    """Claim a name on this host for as long as this process lives; whether nobody had."""
    claim = socket.socket(socket.AF_UNIX)
    try:
        # A name in no folder, held by a descriptor that only the end of the process closes.
        claim.bind(f"\0gpuready-{name}")
    except OSError:
        claim.close()
        return False
    claim.detach()
    return True
