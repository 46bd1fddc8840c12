"""What shall be made of a node: files and steps, worked out from facts alone and shown before anything is done."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

HEADER = "# Written by gpuready from inventory; a change here is undone by its next run."


@dataclass(frozen=True)
class File:
    """A file as it shall be. ``content`` None: it shall not be there."""

    path: str
    content: str | None
    mode: str = "644"


@dataclass(frozen=True)
class Step:
    """A command that makes a change, with what it is for. It runs only where ``needed``, and may run twice."""

    title: str
    command: str
    needed: bool = True


@dataclass(frozen=True)
class Disruption:
    """What takes something from running pods: made on a drained node, or on one that has joined no cluster.

    ``unit`` is the kubelet's; it is stopped, ``removals`` (state files) go, ``files`` are written, ``commands`` and the
    restart of ``services`` follow, then it starts again. ``expected`` are fields that the kubelet must then show, and
    ``proofs`` commands that must succeed. Where anything fails, the files come back and ``undo`` runs, or ``commands``
    again where there is none.
    """

    unit: str = "kubelet"
    reasons: tuple[str, ...] = ()
    files: tuple[File, ...] = ()
    removals: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    undo: tuple[str, ...] = ()
    services: tuple[str, ...] = ()
    restart: bool = True
    reboot: bool = False
    proofs: tuple[str, ...] = ()
    expected: Mapping[str, Any] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.reasons)

    def __add__(self, other: Disruption) -> Disruption:
        """Both at once: the node is drained, and restarts, once."""
        return Disruption(
            unit=self.unit,
            reasons=self.reasons + other.reasons,
            files=self.files + other.files,
            removals=tuple(dict.fromkeys(self.removals + other.removals)),
            commands=self.commands + other.commands,
            undo=(self.undo or self.commands) + (other.undo or other.commands),
            services=tuple(dict.fromkeys(self.services + other.services)),
            restart=self.restart or other.restart,
            reboot=self.reboot or other.reboot,
            proofs=self.proofs + other.proofs,
            expected={**self.expected, **other.expected},
        )


@dataclass(frozen=True)
class NodePlan:
    """All of it for one node. ``files`` and ``steps`` disturb nothing; ``printed`` is for the user to put elsewhere."""

    node: str
    files: tuple[File, ...] = ()
    steps: tuple[Step, ...] = ()
    disruption: Disruption = field(default_factory=Disruption)
    notes: tuple[str, ...] = ()
    printed: str = ""

    def commands(self) -> list[str]:
        """Every command that the plan would run, for the guards."""
        change = self.disruption
        return [one.command for one in self.steps] + [*change.commands, *change.undo, *change.proofs]


def differs(file: File, now: Mapping[str, str | None]) -> bool:
    """Whether a file is not yet as it shall be. ``now`` is the text of each file, None where it is not there."""
    return now.get(file.path) != file.content


def diff(files: Iterable[File], now: Mapping[str, str | None]) -> str:
    """What would change in the files, as a unified diff; empty where nothing would."""
    lines: list[str] = []
    for file in files:
        before, after = now.get(file.path), file.content
        if before != after:
            old = "/dev/null" if before is None else file.path
            new = "/dev/null" if after is None else file.path
            lines += difflib.unified_diff(
                (before or "").splitlines(), (after or "").splitlines(), old, new, lineterm="", n=2
            )
    return "\n".join(lines)
