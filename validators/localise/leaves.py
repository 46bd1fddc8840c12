"""Blames what lies between leaves: runs across leaves fail although their nodes are sound inside their own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .judgement import FAILS_AT, TOGETHER, Finding, together
from .record import Record

# A rail is at fault where it is slow in this share of the runs.
_SHARED = 0.6


class Bar(NamedTuple):
    """How many runs across must be bad, as which share of all, to how many leaves that are good with others, and
    how much they must weigh together."""

    bad: int
    share: float
    witnesses: int
    weight: float


SUSPECT = Bar(2, 0.5, 0, 0.0)
GUILTY = Bar(2, 0.75, 2, TOGETHER)


@dataclass(frozen=True)
class LeafFault:
    """One leaf whose way out is slow, or two between which the path is; ``rails`` where not all are slow."""

    leaves: tuple[str, ...]
    findings: tuple[Finding, ...]
    rails: tuple[int, ...]


def leaf_faults(record: Record, bar: Bar) -> list[LeafFault]:
    """Leaves and paths that reach the bar, worst first.

    A run that one fault explains counts for no other. A leaf is blamed only where runs with two other leaves
    are bad; with one other leaf it is the path between them.
    """
    left = [
        finding
        for finding in record.meetings
        if record.apart(finding.run.nodes) and all(record.sound_in_leaf(name) for name in finding.run.nodes)
    ]
    found = []
    while True:
        fault = _worst_leaf(record, left, bar)
        if fault is None:
            break
        found.append(fault)
        left = [one for one in left if fault.leaves[0] not in _ends(record, one)]
    return found + _paths(record, left, bar)


def _ends(record: Record, finding: Finding) -> tuple[str, str]:
    first, second = sorted(record.leaf(name) or "" for name in finding.run.nodes)
    return first, second


def _worst_leaf(record: Record, left: Sequence[Finding], bar: Bar) -> LeafFault | None:
    runs: defaultdict[str, list[Finding]] = defaultdict(list)
    for finding in left:
        for leaf in _ends(record, finding):
            runs[leaf].append(finding)
    worst: tuple[float, int, str] | None = None
    for leaf, crossed in sorted(runs.items()):
        bad = [one for one in crossed if one.bad]
        partners = {end for one in bad for end in _ends(record, one)} - {leaf}
        witnesses = sum(any(not one.bad for one in runs[other]) for other in partners)
        if len(partners) >= 2 and witnesses >= bar.witnesses and _reached(record, bad, crossed, (leaf,), bar):
            worst = max(worst or (0.0, 0, ""), (len(bad) / len(crossed), len(bad), leaf))
    if worst is None:
        return None
    bad = [one for one in runs[worst[2]] if one.bad]
    return LeafFault((worst[2],), tuple(bad), slow_rails(bad))


def _paths(record: Record, left: Sequence[Finding], bar: Bar) -> list[LeafFault]:
    between: defaultdict[tuple[str, str], list[Finding]] = defaultdict(list)
    for finding in left:
        between[_ends(record, finding)].append(finding)
    found = []
    for ends, runs in sorted(between.items()):
        bad = [one for one in runs if one.bad]
        if _reached(record, bad, runs, ends, bar):
            found.append(LeafFault(ends, tuple(bad), slow_rails(bad)))
    return found


def _reached(
    record: Record, bad: Sequence[Finding], runs: Sequence[Finding], leaves: tuple[str, ...], bar: Bar
) -> bool:
    if len(bad) < bar.bad or len(bad) < bar.share * len(runs):
        return False
    # One node alone of a leaf may be the fault itself.
    names = {name for one in bad for name in one.run.nodes}
    if any(sum(record.leaf(name) == leaf for name in names) < 2 for leaf in leaves):
        return False
    # To accuse, the runs must look like one cause: beyond noise, and on the same rails.
    alike = bool(_low(bad)) or not any(one.by_rail for one in bad)
    return not bar.weight or (alike and together([one.short for one in bad]) >= bar.weight)


def slow_rails(bad: Sequence[Finding]) -> tuple[int, ...]:
    """The rails that are slow in most of the runs; empty where all of them are, or no run is split by rail."""
    low = _low(bad)
    return () if all(set(one.by_rail) <= set(low) for one in bad) else low


def _low(bad: Sequence[Finding]) -> tuple[int, ...]:
    split = [one.by_rail for one in bad if one.by_rail]
    every = sorted({rail for rails in split for rail in rails})
    slow = {rail: sum(rail in rails and rails[rail].amount >= FAILS_AT for rails in split) for rail in every}
    return tuple(rail for rail in every if slow[rail] >= _SHARED * len(split))
