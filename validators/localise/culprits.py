"""Blames nodes: who is bad, and who only met a bad one.

A node is accused after bad runs with two different partners that are good without it, or after two bad runs
alone; and only where these runs together are beyond what noise does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .judgement import CLEAR, FAILS_AT, GROSS, TOGETHER, Finding, together
from .leaves import LeafFault
from .model import Cause
from .record import Record


@dataclass(frozen=True)
class Guilt:
    """Why a node is accused."""

    name: str
    cause: Cause
    rails: tuple[int, ...]
    findings: tuple[Finding, ...]
    alone: bool = False


def guilty(record: Record, faults: Iterable[LeafFault]) -> dict[str, Guilt]:
    """The nodes that are at fault, given the faults between leaves."""
    found = {name: guilt for name in record.nodes if (guilt := guilty_alone(record, name))}
    explained = {one.run.id for fault in faults for one in fault.findings}
    explained |= {one.run.id for name in found for one in record.failed(name)}
    suspects = {name: bad for name in record.nodes if name not in found and (bad := record.failed(name))}
    while True:
        new = [guilt for name in suspects if (guilt := _guilty(record, name, explained))]
        if not new:
            return found
        for guilt in new:
            found[guilt.name] = guilt
            explained |= {one.run.id for one in suspects.pop(guilt.name)}


def guilty_alone(record: Record, name: str) -> Guilt | None:
    """The accusation of a node that is bad without any other."""
    runs = record.alone[name]
    if len(runs) >= 2 and record.fails_alone(name) and together([one.short for one in runs]) >= TOGETHER:
        return Guilt(name, "node", (), tuple(runs), alone=True)
    return None


def _guilty(record: Record, name: str, explained: set[str]) -> Guilt | None:
    bad = [
        one
        for one in record.failed(name)
        if one.run.id not in explained and record.way_open(one) and _good_without(record, one, name, explained)
    ]
    if len({one.other(name) for one in bad}) < 2 or together([one.short for one in bad]) < TOGETHER:
        return None
    split = {bool(one.by_rail) for one in bad}
    now_and_then = any(not one.steady for one in bad) or any(
        one.short.amount < CLEAR and bool(one.by_rail) in split for one in record.passed(name)
    )
    # Good with some and bad with others is flaky only where the way to them is known not to matter.
    if now_and_then and record.alone_on_leaf(name) and all(one.steady for one in bad):
        return None
    if now_and_then and len({one.other(name) for one in bad if one.short.weight >= GROSS}) < 2:
        return None
    rails = _rails(bad)
    cause: Cause = "flaky" if now_and_then else "rail" if rails else "node"
    return Guilt(name, cause, rails, tuple(bad))


def _good_without(record: Record, finding: Finding, name: str, explained: set[str]) -> bool:
    """Whether the partner of ``name`` in a bad run is good with others.

    What others explain, or a leaf may, does not count. Nor does a run with a node that is never good, or a
    shortfall less than half as bad: that does not explain this run.
    """
    partner = finding.other(name)
    others = [one for one in record.met[partner] if one.other(partner) != name]
    bad = [
        one
        for one in others
        if one.bad and one.run.id not in explained and not record.leaf_first(one) and not record.excused(one, partner)
    ]
    slight = [one for one in bad if one.short.weight < finding.short.weight / 2]
    good = len(slight) + sum(not one.bad for one in others)
    return good > 0 and len(slight) == len(bad) and not record.fails_alone(partner)


def _rails(bad: Sequence[Finding]) -> tuple[int, ...]:
    """The rails that are slow in every run that is split by rail; empty where most are, or no run is split.

    The worst one, and those beyond noise that are at least half as bad.
    """
    split = [one.by_rail for one in bad if one.by_rail]
    every = {rail for rails in split for rail in rails}
    low: dict[int, float] = {}
    for rail in sorted(every):
        shorts = [rails[rail] for rails in split if rail in rails]
        if all(short.amount >= FAILS_AT for short in shorts):
            low[rail] = together(shorts)
    if not low:
        return ()
    worst = max(low.values())
    named = tuple(rail for rail, weight in low.items() if weight >= min(worst, max(TOGETHER, worst / 2)))
    return named if 2 * len(named) <= len(every) else ()
