"""Judges single runs: against an absolute floor, and against the other runs of their kind.

A run fails below the floor, or, where its kind was measured on eight nodes or more, below
median - max(3 x 1.4826 x MAD, 5 %). Shortfalls are counted in thirds of that margin, so that a run fails at 3
and several runs can be weighed together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Literal, NamedTuple

from .model import Kind, Outcome, Run

MANY_NODES = 8
FAILS_AT = 3.0
# Twice the margin: no noise that the margin was made from reaches it.
GROSS = 6.0
# Below this a shortfall is no hint of trouble at all.
CLEAR = 2.0
# What a failed run weighs; more would let one run stand for several.
WORST = 10.0
# What a floor missed by nothing weighs: two such runs suffice together.
_FLOOR = 4.0
# What runs must weigh together to accuse. A run just at its line weighs 3 at most, so two of those do not.
TOGETHER = 5.5
_MARGIN = 0.05

State = Literal["pass", "fail", "unsteady", "void"]


class Short(NamedTuple):
    """A shortfall. ``amount`` is in thirds of the margin; ``weight`` is what it is worth against a node, less where
    the margin comes from few figures and may be too narrow by chance."""

    amount: float
    weight: float


_BROKEN = Short(WORST, WORST)
_NONE = Short(0.0, 0.0)


def together(shorts: Sequence[Short]) -> float:
    """What several shortfalls weigh together: Stouffer's sum / sqrt(count)."""
    return math.fsum(short.weight for short in shorts) / math.sqrt(len(shorts)) if shorts else 0.0


@dataclass(frozen=True)
class Reference:
    """What a figure is held against; ``margin`` is None while too few nodes were measured."""

    median: float
    margin: float | None
    floor: float | None
    figures: int

    def short(self, value: float) -> Short:
        """By how much a figure falls short: 3 and more fails, 10 at most, below 0 is faster than most."""
        amount = weight = 0.0
        if self.margin:
            amount = FAILS_AT * (self.median - value) / self.margin
            # The spread of n figures is known to about 1/sqrt(n); twice that is on the safe side.
            weight = amount / (1 + 2 / math.sqrt(self.figures))
        if self.floor is not None and value < self.floor:
            missed = _FLOOR + WORST * (self.floor - value) / self.floor
            amount, weight = max(amount, missed), max(weight, missed)
        return Short(max(-WORST, min(amount, WORST)), max(-WORST, min(weight, WORST)))


@dataclass(frozen=True)
class Finding:
    """A judged run. ``short`` is its worst shortfall, ``by_rail`` that of each rail, ``level`` what is left of the
    usual rate, at its worst.

    ``steady`` is False where some repetitions were clearly good and others grossly low.
    """

    run: Run
    state: State
    short: Short = _NONE
    by_rail: Mapping[int, Short] = field(default_factory=dict)
    steady: bool = True
    level: float = 0.0

    @property
    def bad(self) -> bool:
        """Whether something in it was slow or broken."""
        return self.state in ("fail", "unsteady")

    def other(self, name: str) -> str:
        """The partner of a node in a run of two."""
        first, second = self.run.nodes
        return second if first == name else first


def judge(runs: Iterable[Run], outcomes: Mapping[str, Outcome], floors: Mapping[Kind, float]) -> list[Finding]:
    """Every run that has an outcome, in the order of ``runs``."""
    done = [(run, outcomes[run.id]) for run in runs if run.id in outcomes]
    references = _references(done, {str(kind): floor for kind, floor in floors.items()})
    return [_judged(run, outcome, references) for run, outcome in done]


def _population(run: Run, outcome: Outcome) -> str:
    """The runs whose figures compare: by kind, and those that are not split by rail apart from those that are."""
    if outcome.per_rail or run.kind in ("single", "pair"):
        return run.kind
    return "pair" if run.kind == "rail" else "pair across leaves"


def _references(done: Sequence[tuple[Run, Outcome]], limits: Mapping[str, float]) -> dict[str, Reference]:
    """What to hold each population against."""
    values: dict[str, list[float]] = {}
    nodes: dict[str, set[str]] = {}
    for run, outcome in done:
        key = _population(run, outcome)
        figures = [median(series) for series in _series(outcome).values() if series]
        if figures:
            values.setdefault(key, []).extend(figures)
            nodes.setdefault(key, set()).update(run.nodes)
    found = {}
    for key, figures in values.items():
        middle = median(figures)
        spread = 1.4826 * median([abs(figure - middle) for figure in figures])
        margin = max(3 * spread, _MARGIN * middle) if len(nodes[key]) >= MANY_NODES else None
        found[key] = Reference(middle, margin, limits.get(key.removesuffix(" across leaves")), len(figures))
    return found


def _series(outcome: Outcome) -> dict[int, tuple[float, ...]]:
    """The figures by rail; under -1 where the run is not split."""
    return dict(outcome.per_rail) if outcome.per_rail else {-1: outcome.busbw_gbytes_s}


def _judged(run: Run, outcome: Outcome, references: Mapping[str, Reference]) -> Finding:
    if outcome.failed or outcome.gdr is False:
        return Finding(run, "fail", _BROKEN)
    series = _series(outcome)
    if not any(series.values()):
        return Finding(run, "void")
    reference = references[_population(run, outcome)]
    state: State = "pass"
    steady = True
    shorts: dict[int, Short] = {}
    # A rail that was asked for and is missing did not work.
    for rail in sorted({*series, *(run.rails if outcome.per_rail else ())}):
        figures = series.get(rail, ())
        short = low = high = _BROKEN
        if figures:
            short, low, high = (reference.short(pick) for pick in (median(figures), min(figures), max(figures)))
        if short.amount >= FAILS_AT:
            state = "fail"
            steady = steady and not (high.amount < CLEAR and low.amount >= GROSS)
        elif low.amount >= GROSS:
            state = "fail" if state == "fail" else "unsteady"
            steady = False
            short = low
        shorts[rail] = short
    level = min(median(figures) if figures else 0.0 for figures in series.values()) / reference.median
    return Finding(run, state, max(shorts.values()), shorts if outcome.per_rail else {}, steady, level)
