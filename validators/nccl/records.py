"""NCCL's records: who printed a line, and where one record ends and the next begins.

Everything left of ``host:pid:tid [device] NCCL LEVEL`` is decoration of a launcher, whatever its shape.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

PREFIX = re.compile(
    rb"([A-Za-z0-9_][\w\-]*):(\d+):(\d+) (?:\[(-?\d+)\] )?"
    rb"(?:[\w./\-]+:\d+ (?:\([^)]*\) )?)?NCCL (INFO|WARN|CALL|TRACE)(?: |$)"
)
# What launchers put before a line: Open MPI and PRRTE tags, kubectl's pod, srun's and torchrun's rank.
DECORATION = re.compile(
    rb"(?:[A-Z][a-z]{2} [A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \d{4})?\[[^\]\s]*\d+,\d+\]<std\w+>:"
    rb"|\[pod/[^\]]*\]|\[default\d+\]:|^\s*\d+: "
)


@dataclass(slots=True)
class Process:
    """One process of the job. ``channels`` maps a channel's text to the number of its transport."""

    host: str
    pid: int
    records: int = 0
    channels: dict[bytes, int] = field(default_factory=dict)
    networks: set[str] = field(default_factory=set)
    devices: set[int] = field(default_factory=set)
    rails: set[tuple[str, int]] = field(default_factory=set)
    in_communicator: bool = False
    nvls: bool = False
    rings: bool = False


class Processes:
    """The processes seen so far, by host and pid."""

    def __init__(self) -> None:
        self._known: dict[tuple[bytes, bytes], Process] = {}
        self._by_pid: dict[bytes, list[tuple[bytes, Process]]] = {}

    def __iter__(self) -> "ProcessIterator":
        return iter(self._known.values())

    def get(self, host: bytes, pid: bytes) -> Process:
        """The process of that name, new where it was not seen."""
        process = self._known.get((host, pid))
        if process is None:
            process = Process(host.decode(), int(pid))
            self._known[host, pid] = process
            self._by_pid.setdefault(pid, []).append((host, process))
        return process
