"""Blames what lies between leaves: runs across leaves fail although their nodes are sound inside their own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

from .judgement import FAILS_AT, Finding
from .record import Record

_SHARED = 0.6


class Bar(NamedTuple):
    """How many runs across must be bad, as which share of all, and to how many leaves that are good with others."""

    bad: int
    share: float
    witnesses: int


SUSPECT = Bar(2, 0.5, 0)
GUILTY = Bar(2, 0.75, 2)


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
        if record.crosses(finding.run) and all(record.sound_in_leaf(name) for name in finding.run.nodes)
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
        rate = len(bad) / len(crossed)
        if len(bad) < bar.bad or rate < bar.share or len(partners) < 2 or witnesses < bar.witnesses:
            continue
        if _own(record, bad, leaf):
            worst = max(worst or (0.0, 0, ""), (rate, len(bad), leaf))
    if worst is None:
        return None
    bad = [one for one in runs[worst[2]] if one.bad]
    return LeafFault((worst[2],), tuple(bad), _rails(bad))


def _own(record: Record, bad: Sequence[Finding], leaf: str) -> bool:
    """Whether at least two nodes of the leaf were slow: one alone may be the fault itself."""
    return len({name for one in bad for name in one.run.nodes if record.leaf(name) == leaf}) >= 2


def _paths(record: Record, left: Sequence[Finding], bar: Bar) -> list[LeafFault]:
    between: defaultdict[tuple[str, str], list[Finding]] = defaultdict(list)
    for finding in left:
        between[_ends(record, finding)].append(finding)
    # Two leaves meet in few runs, so two bad ones must do.
    least = min(bar.bad, 2)
    found = []
    for ends, runs in sorted(between.items()):
        bad = [one for one in runs if one.bad]
        enough = len(bad) >= least and len(bad) / len(runs) >= bar.share
        if enough and all(_own(record, bad, leaf) for leaf in ends):
            found.append(LeafFault(ends, tuple(bad), _rails(bad)))
    return found


def _rails(bad: Sequence[Finding]) -> tuple[int, ...]:
    """The rails that are slow in most of the runs; empty where all are, or runs are not split."""
    split = [one for one in bad if one.by_rail]
    every = set(chain.from_iterable(one.by_rail for one in split))
    low = [
        r
        for r in sorted(every)
        if sum(r in one.by_rail and one.by_rail[r].amount >= FAILS_AT for one in split) >= _SHARED * len(split)
    ]
    return () if len(low) == len(every) else tuple(low)
