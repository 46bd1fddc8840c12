"""NCCL's records: who printed a line, and where one record ends and the next begins.

Everything left of ``host:pid:tid [device] NCCL LEVEL`` is a launcher's decoration, whatever its shape.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

PREFIX = re.compile(
    rb"([A-Za-z0-9_][\w\-]{0,252}):(\d{1,10}):(\d{1,10}) (?:\[(-?\d+)\] )?"
    rb"(?:[\w./\-]+:\d+ (?:\([^)]*\) )?)?NCCL (INFO|WARN|CALL|TRACE)(?: |$)"
)
# What launchers put before a line: Open MPI and PRRTE tags, kubectl's pod, torchrun's and srun's rank.
_DECORATION = re.compile(
    rb"(?:[A-Z][a-z]{2} [A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \d{4})?\[[^\]\s]{0,200}\d+,\d+\]<std\w+>:"
    rb"|\[pod/[^\]]{0,600}\]|\[(?:default|rank)\d+\]:|^\s*\d+: "
)
# The cheap question whether there is any.
_DECORATED = re.compile(rb"\[(?:[^\]\s]{0,200},\d+\]<|pod/|default\d|rank\d)")
_LABEL = re.compile(rb"\s*\d+: ")
# A process with fewer records than this share of another's may be the other with a damaged name.
_ALIAS_SHARE = 0.1
_STRAY_RECORDS = 2


def undecorated(line: bytes) -> bytes:
    """A line without what launchers put into it, at its beginning and wherever they cut it."""
    if _DECORATED.search(line) or _LABEL.match(line):
        return _DECORATION.sub(b" ", line)
    return line


@dataclass(slots=True, eq=False)
class Process:
    """One process of the job. ``channels`` maps the text of a channel to the number of its transport."""

    host: str
    pid: int
    records: int = 0
    channels: dict[bytes, int] = field(default_factory=dict)
    networks: set[str] = field(default_factory=set)
    more_transports: set[int] = field(default_factory=set)
    in_communicator: bool = False
    nvls: bool = False
    nvswitch: bool = False

    def absorb(self, other: Process) -> None:
        """Take over what was seen of this process under a damaged name."""
        other.host = self.host
        self.records += other.records
        for channel, transport in other.channels.items():
            self.channels.setdefault(channel, transport)
        self.networks |= other.networks
        self.more_transports |= other.more_transports
        self.in_communicator |= other.in_communicator
        self.nvls |= other.nvls
        self.nvswitch |= other.nvswitch


class Processes:
    """The processes seen, by host and pid."""

    def __init__(self) -> None:
        self._known: dict[tuple[bytes, bytes], Process] = {}

    def __iter__(self) -> Iterator[Process]:
        return iter(self._known.values())

    def __contains__(self, key: tuple[bytes, bytes]) -> bool:
        return key in self._known

    def get(self, host: bytes, pid: bytes) -> Process:
        """The process of that name; a new one where it was not seen before."""
        process = self._known.get((host, pid))
        if process is None:
            process = self._known[host, pid] = Process(host.decode(), int(pid))
        return process

    def run_in(self, host: bytes, pid: bytes) -> bytes:
        """What ran into a host name from the left: the ``0`` of ``0gpu-a`` where ``gpu-a`` is known."""
        for cut in range(1, len(host)):
            if (host[cut:], pid) in self._known:
                return host[:cut]
        return b""

    def repair(self) -> list[Process]:
        """Join processes whose names were damaged by torn lines with the ones they are.

        Returns the strays: names of a record or two that could not be assigned.
        """
        by_pid: dict[int, list[Process]] = {}
        for process in self:
            by_pid.setdefault(process.pid, []).append(process)
        most = max((process.records for process in self), default=0)
        for process in [one for one in self if one.records <= most * _ALIAS_SHARE]:
            for other in by_pid[process.pid]:
                related = other.host.endswith(process.host) or process.host.endswith(other.host)
                if other is not process and related and process.records <= other.records * _ALIAS_SHARE:
                    by_pid[process.pid].remove(process)
                    self._forget(process)
                    other.absorb(process)
                    break
        strays: list[Process] = []
        if any(process.in_communicator for process in self):
            strays = [one for one in self if not one.in_communicator and one.records <= _STRAY_RECORDS]
            for process in strays:
                self._forget(process)
        return strays

    def _forget(self, process: Process) -> None:
        self._known = {name: one for name, one in self._known.items() if one is not process}
