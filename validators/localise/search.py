"""The search for the culprit: give it what runs measured, and it says what to run next. It touches no cluster.

search = start(nodes, floors={"pair": 390.0})
while runs := search.next_round():
    for run in runs:
        search.record(run.id, measure(run))
        save(search.to_json())
for verdict in search.verdicts(): ...
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast, get_args

from gpuready.charts_values.errors import InputError

from .judgement import judge
from .model import Kind, Node, Outcome, Run, Verdict, Vote
from .plan import ROUNDS, next_runs
from .record import Record
from .verdicts import verdicts

SCHEMA = 1
_REPEATS = 5


class Search:
    """One search. All that it knows is in ``to_json``; the same state always plans the same runs."""

    def __init__(
        self,
        nodes: Sequence[Node],
        floors: Mapping[Kind, float],
        votes: Sequence[Vote],
        seed: int,
        repeats: int,
    ) -> None:
        self.nodes = tuple(nodes)
        self._names = frozenset(node.name for node in nodes)
        self._runs: dict[str, Run] = {}
        self.outcomes: dict[str, Outcome] = {}
        self._floors = dict(floors)
        self._votes = list(votes)
        self._seed = seed
        self._repeats = repeats
        self._done = False

    @property
    def runs(self) -> list[Run]:
        """Every run that was planned so far."""
        return list(self._runs.values())

    @property
    def rounds(self) -> int:
        """How many rounds were planned so far."""
        return max((run.round for run in self._runs.values()), default=0)

    def next_round(self) -> list[Run] | None:
        """The runs of this round that have no outcome yet, else those of the next; None at the end."""
        left = [run for run in self._runs.values() if run.id not in self.outcomes]
        if left:
            return left
        number = self.rounds + 1
        if self._done or number > ROUNDS:
            return None
        planned = next_runs(self._record(), number, self._seed, self._repeats)
        self._runs |= {run.id: run for run in planned}
        self._done = not planned
        return planned or None

    def record(self, run_id: str, outcome: Outcome) -> None:
        """What a run measured. Raises InputError for a run that was not planned, or that has its outcome."""
        if run_id not in self._runs:
            raise InputError(f"localise: there is no run {run_id}")
        if run_id in self.outcomes:
            raise InputError(f"localise: run {run_id} has its outcome already")
        strangers = {vote.node for vote in outcome.votes} - self._names
        if strangers:
            raise InputError(f"localise: run {run_id} names nodes outside the search: {', '.join(sorted(strangers))}")
        # Four digits are more than a measurement holds, and keep the state of large fabrics small.
        self.outcomes[run_id] = replace(
            outcome,
            busbw_gbytes_s=_rounded(outcome.busbw_gbytes_s),
            per_rail={rail: _rounded(figures) for rail, figures in outcome.per_rail.items()},
        )

    def verdicts(self) -> list[Verdict]:
        """What follows so far: accusations first, the surest of them first."""
        return verdicts(self._record())

    def _record(self) -> Record:
        # In the order of the runs: an interrupted search may record them in another.
        done = [self.outcomes[run_id] for run_id in self._runs if run_id in self.outcomes]
        votes = [*self._votes, *(vote for outcome in done for vote in outcome.votes)]
        return Record(self.nodes, judge(self.runs, self.outcomes, self._floors), votes)

    # -- state --------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON values. Nodes stand in runs as numbers: the state of large fabrics stays small."""
        numbers = {node.name: number for number, node in enumerate(self.nodes)}
        return {
            "schema": SCHEMA,
            "seed": self._seed,
            "repeats": self._repeats,
            "done": self._done,
            "floors": dict(self._floors),
            "nodes": [[node.name, node.leaf, node.rails] for node in self.nodes],
            "votes": [_vote_json(vote) for vote in self._votes],
            "runs": [
                [run.id, run.kind, [numbers[name] for name in run.nodes], list(run.rails), run.wave]
                for run in self.runs
            ],
            "outcomes": {run_id: _outcome_json(outcome) for run_id, outcome in self.outcomes.items()},
        }

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> Search:
        """A search from its state. Raises InputError where it is of another version."""
        if state.get("schema") != SCHEMA:
            raise InputError(
                f"localise: the saved search has schema {state.get('schema')}, this is {SCHEMA}: start anew"
            )
        nodes = [Node(name, leaf, rails) for name, leaf, rails in state["nodes"]]
        votes = [Vote(*vote) for vote in state["votes"]]
        search = cls(nodes, state["floors"], votes, state["seed"], state["repeats"])
        search._done = state["done"]
        for run_id, kind, numbers, rails, wave in state["runs"]:
            names = tuple(nodes[number].name for number in numbers)
            run = Run(run_id, kind, names, tuple(rails), int(run_id[1]), wave, state["repeats"])
            search._runs[run_id] = run
        search.outcomes = {run_id: _outcome(value) for run_id, value in state["outcomes"].items()}
        return search


def start(
    nodes: Sequence[Node],
    *,
    floors: Mapping[Kind, float] | None = None,
    votes: Iterable[Vote] = (),
    seed: int = 0,
    repeats: int = _REPEATS,
) -> Search:
    """Begin a search among ``nodes``.

    ``floors`` are the least bus bandwidths in GB/s that are acceptable: of one node (single), of two nodes
    (pair), of two GPUs over one rail (rail; path across leaves). Without them only what is slower than the rest
    is found, and nothing among fewer than eight nodes. Raises InputError where names are twice or unknown.
    """
    names = [node.name for node in nodes]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise InputError(f"localise: nodes named twice: {', '.join(twice)}")
    if not names:
        raise InputError("localise: no nodes to search")
    votes = list(votes)
    strangers = {vote.node for vote in votes} - set(names)
    if strangers:
        raise InputError(f"localise: votes name nodes outside the search: {', '.join(sorted(strangers))}")
    unknown = set(floors or {}) - set(get_args(Kind))
    if unknown:
        raise InputError(f"localise: there is no kind of run {', '.join(sorted(unknown))}")
    if repeats < 1:
        raise InputError("localise: a run is measured at least once")
    return Search(nodes, floors or {}, votes, seed, repeats)


def _rounded(figures: Iterable[float]) -> tuple[float, ...]:
    return tuple(float(f"{figure:.4g}") for figure in figures)


def _vote_json(vote: Vote) -> list[Any]:
    return [vote.node, vote.reason, vote.rail]


def _outcome_json(outcome: Outcome) -> dict[str, Any]:
    """Only what is set."""
    found: dict[str, Any] = {}
    if outcome.busbw_gbytes_s:
        found["busbw"] = list(outcome.busbw_gbytes_s)
    if outcome.per_rail:
        # JSON keys are text, so the rails stand in pairs.
        found["rails"] = [[rail, *figures] for rail, figures in outcome.per_rail.items()]
    if outcome.failed:
        found["failed"] = True
    if outcome.gdr is not None:
        found["gdr"] = outcome.gdr
    if outcome.votes:
        found["votes"] = [_vote_json(vote) for vote in outcome.votes]
    return found


def _outcome(value: Mapping[str, Any]) -> Outcome:
    return Outcome(
        busbw_gbytes_s=tuple(value.get("busbw", ())),
        per_rail={rail: tuple(figures) for rail, *figures in value.get("rails", ())},
        failed=value.get("failed", False),
        gdr=cast("bool | None", value.get("gdr")),
        votes=tuple(Vote(*vote) for vote in value.get("votes", ())),
    )
