"""Localisation on small fabrics whose faults are exact: every figure is either full rate or what the fault leaves."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pytest
from gpuready.charts_values.errors import InputError
from gpuready.validators import localise
from gpuready.validators.localise import Node, Outcome, Run, Search, Verdict, Vote
from gpuready.validators.localise.judgement import judge

RAILS = 8
FULL = {"single": 460.0, "pair": 440.0, "rail": 48.0, "path": 48.0}
FLOORS: dict[localise.Kind, float] = {"single": 400.0, "pair": 380.0, "rail": 42.0, "path": 42.0}


@dataclass
class Truth:
    """What is wrong. ``rails`` is the share left of each (node, rail), ``leaves`` that of a leaf's uplinks on some
    rails, ``alone`` that of a node by itself; ``dead`` nodes fail with others, ``switches`` are slow inside too."""

    nodes: Sequence[Node]
    rails: Mapping[tuple[str, int], float] = field(default_factory=dict)
    leaves: Mapping[str, tuple[float, Sequence[int]]] = field(default_factory=dict)
    alone: Mapping[str, float] = field(default_factory=dict)
    dead: frozenset[str] = frozenset()
    flaky: frozenset[str] = frozenset()
    switches: frozenset[str] = frozenset()

    def share(self, run: Run, rail: int) -> float:
        leaf = {node.name: node.leaf for node in self.nodes}
        left = [self.rails.get((name, rail), 1.0) for name in run.nodes]
        places = {leaf[name] for name in run.nodes}
        for place in places:
            share, rails = self.leaves.get(place or "", (1.0, ()))
            if (len(places) > 1 or place in self.switches) and rail in rails:
                left.append(share)
        return min(left)

    def measure(self, run: Run) -> Outcome:
        if run.kind == "single":
            return Outcome((FULL["single"] * self.alone.get(run.nodes[0], 1.0),) * run.repeats)
        if self.dead & set(run.nodes):
            return Outcome(failed=True)
        # Every other repetition of a flaky node is fine.
        shares = {
            rail: [1.0 if turn % 2 and self.flaky & set(run.nodes) else self.share(run, rail) for turn in range(5)]
            for rail in range(RAILS)
        }
        if run.rails:
            return Outcome(per_rail={rail: tuple(FULL["rail"] * one for one in shares[rail]) for rail in run.rails})
        return Outcome(tuple(FULL["pair"] * min(shares[rail][turn] for rail in shares) for turn in range(5)))


def fabric(nodes: int, leaf: int | None = 4, rails: int = RAILS) -> list[Node]:
    """Nodes n00, n01... in leaves of ``leaf``."""
    return [Node(f"n{one:02d}", f"leaf-{one // leaf}" if leaf else None, rails) for one in range(nodes)]


def search(truth: Truth, **options: object) -> Search:
    """A search to its end."""
    found = localise.start(truth.nodes, **{"floors": FLOORS, **options})  # type: ignore[arg-type]
    while runs := found.next_round():
        for run in runs:
            found.record(run.id, truth.measure(run))
    return found


def accused(found: Search) -> list[Verdict]:
    return [one for one in found.verdicts() if one.accuses]


def test_a_healthy_fabric_needs_three_rounds_and_nobody_is_accused() -> None:
    found = search(Truth(fabric(16)))
    assert found.rounds == 3
    assert {one.cause for one in found.verdicts()} == {"healthy"}
    assert len(found.verdicts()) == 16


@pytest.mark.parametrize("seed", range(5))
def test_a_slow_nic_is_named_with_its_node_and_rail(seed: int) -> None:
    found = search(Truth(fabric(16), rails={("n05", 3): 0.6}), seed=seed)
    verdict, *others = found.verdicts()
    assert (verdict.cause, verdict.subject, verdict.nodes, verdict.rails) == ("rail", "n05 rail 3", ("n05",), (3,))
    assert {one.cause for one in others} == {"healthy"}
    planned = {run.id: run for run in found.runs}
    partners = {name for run in verdict.runs for name in planned[run].nodes} - {"n05"}
    assert len(partners) >= 2
    assert found.rounds == 4


def test_two_slow_nics_of_one_node_are_both_named_and_all_of_them_are_the_node() -> None:
    two = search(Truth(fabric(16), rails={("n05", 3): 0.6, ("n05", 6): 0.5}))
    assert [(one.cause, one.rails) for one in accused(two)] == [("rail", (3, 6))]
    every = search(Truth(fabric(16), rails={("n05", rail): 0.5 for rail in range(RAILS)}))
    assert [(one.cause, one.subject, one.rails) for one in accused(every)] == [("node", "n05", ())]


def test_a_node_that_is_slow_alone_is_accused_after_two_runs_and_meets_nobody() -> None:
    found = search(Truth(fabric(16), alone={"n02": 0.7}))
    (verdict,) = accused(found)
    assert (verdict.cause, verdict.nodes, verdict.runs) == ("node", ("n02",), ("r1-0002", "r2-0000"))
    assert {run.kind for run in found.runs if "n02" in run.nodes} == {"single"}


def test_nodes_whose_runs_fail_are_accused_even_where_they_met_each_other_first() -> None:
    # A leaf of two, both dead: their pair says nothing of either.
    nodes = [*fabric(12), Node("x0", "leaf-x", RAILS), Node("x1", "leaf-x", RAILS)]
    found = search(Truth(nodes, dead=frozenset({"x0", "x1"})))
    assert {one.nodes for one in accused(found)} <= {("x0",), ("x1",)}
    # Nothing tells these two from the way out of their leaf, so they stay open, and named.
    rest = [one for one in found.verdicts() if one.cause == "undecided"]
    assert {one.nodes[0] for one in (*accused(found), *rest)} == {"x0", "x1"}
    inside = search(Truth(fabric(16), dead=frozenset({"n04", "n05"})))
    assert sorted(one.nodes for one in accused(inside)) == [("n04",), ("n05",)]


def test_a_slow_uplink_is_the_leaf_and_no_node() -> None:
    found = search(Truth(fabric(32), leaves={"leaf-2": (0.5, (4,))}))
    assert [(one.cause, one.subject) for one in accused(found)] == [("leaf", "leaf-2 rail 4")]
    assert not [one for one in found.verdicts() if one.cause == "undecided"]
    every = search(Truth(fabric(32), leaves={"leaf-2": (0.5, range(RAILS))}))
    assert [(one.cause, one.subject) for one in accused(every)] == [("leaf", "leaf-2")]


def test_a_slow_uplink_and_a_slow_nic_behind_it_are_told_apart() -> None:
    truth = Truth(fabric(32), leaves={"leaf-2": (0.5, (4,))}, rails={("n09", 1): 0.4, ("n30", 4): 0.4})
    found = {one.subject for one in accused(search(truth))}
    assert found == {"leaf-2 rail 4", "n09 rail 1", "n30 rail 4"}


def test_between_two_leaves_it_is_the_path() -> None:
    found = search(Truth(fabric(16, leaf=8), leaves={"leaf-0": (0.5, (4,))}))
    assert [(one.cause, one.leaves) for one in accused(found)] == [("path", ("leaf-0", "leaf-1"))]


def test_a_leaf_that_is_never_good_is_accused_instead_of_its_nodes() -> None:
    slow = {"leaf-2": (0.5, tuple(range(RAILS)))}
    found = search(Truth(fabric(32), leaves=slow, switches=frozenset({"leaf-2"})))
    assert [(one.cause, one.subject) for one in accused(found)] == [("leaf", "leaf-2")]
    behind = [one.nodes[0] for one in found.verdicts() if one.cause == "undecided"]
    assert behind == ["n08", "n09", "n10", "n11"]


def test_a_node_that_is_slow_now_and_then_is_flaky() -> None:
    found = search(Truth(fabric(16), rails={("n06", 2): 0.5}, flaky=frozenset({"n06"})))
    assert [(one.cause, one.subject) for one in accused(found)] == [("flaky", "n06 rail 2")]


def test_nodes_without_rails_are_compared_by_whole_runs() -> None:
    found = search(Truth(fabric(16, rails=1), rails={("n05", 3): 0.6}))
    assert [(one.cause, one.subject) for one in accused(found)] == [("node", "n05")]
    assert not any(run.rails for run in found.runs)


def test_of_two_nodes_nobody_can_be_accused() -> None:
    found = search(Truth(fabric(2), rails={("n01", 3): 0.6}))
    assert {one.cause for one in found.verdicts()} == {"undecided"}


def test_of_three_nodes_the_bad_one_is_found() -> None:
    found = search(Truth(fabric(3), rails={("n01", 3): 0.6}))
    assert [one.subject for one in accused(found)] == ["n01 rail 3"]


def test_one_node_is_healthy_alone_or_accused_after_two_runs() -> None:
    assert [one.cause for one in search(Truth(fabric(1))).verdicts()] == ["healthy"]
    assert [one.cause for one in search(Truth(fabric(1), alone={"n00": 0.5})).verdicts()] == ["node"]


def test_a_fleet_below_its_floor_accuses_nobody() -> None:
    found = search(Truth(fabric(16)), floors={"pair": 500.0, "rail": 60.0, "path": 60.0})
    assert {one.cause for one in found.verdicts()} == {"undecided"}


def test_two_nodes_that_are_bad_only_together_are_a_path() -> None:
    nodes = fabric(16, leaf=None)
    found = localise.start(nodes, floors=FLOORS)
    truth = Truth(nodes)
    pair: tuple[str, ...] = ()
    while runs := found.next_round():
        if runs[0].round == 2:
            pair = runs[0].nodes
        for run in runs:
            together = set(run.nodes) == set(pair)
            found.record(run.id, Outcome((200.0,) * 5) if together else truth.measure(run))
    assert [(one.cause, set(one.nodes)) for one in accused(found)] == [("path", set(pair))]


def test_without_leaves_nodes_that_are_slow_alike_are_accused_once_they_were_bad_together() -> None:
    slow = {(name, 3): 0.6 for name in ("n05", "n21")}
    found = search(Truth(fabric(64, leaf=None), rails=slow))
    assert sorted(one.subject for one in accused(found)) == ["n05 rail 3", "n21 rail 3"]
    assert any(set(run.nodes) == {"n05", "n21"} for run in found.runs)


def test_gpudirect_that_is_promised_and_not_used_fails_a_run_at_any_rate() -> None:
    truth = Truth(fabric(16))
    found = localise.start(truth.nodes, floors=FLOORS)
    while runs := found.next_round():
        for run in runs:
            alone = len(run.nodes) == 1
            found.record(run.id, Outcome((450.0,), gdr=None if alone else "n03" not in run.nodes))
    assert [(one.cause, one.subject) for one in accused(found)] == [("node", "n03")]


def test_runs_that_did_not_take_place_say_nothing() -> None:
    truth = Truth(fabric(16))
    found = localise.start(truth.nodes, floors=FLOORS)
    while runs := found.next_round():
        for run in runs:
            found.record(run.id, Outcome() if "n03" in run.nodes else truth.measure(run))
    by_cause = {one.cause: one for one in found.verdicts()}
    assert set(by_cause) == {"healthy", "undecided"}
    assert by_cause["undecided"].nodes == ("n03",)
    assert by_cause["undecided"].reason == "never measured with another node"


def test_nodes_that_logs_name_are_kept_apart_and_looked_at_twice() -> None:
    votes = [Vote("n00", "missing rank"), Vote("n01", "no GPUDirect"), Vote("n05", "IB error", 2)]
    found = search(Truth(fabric(16), rails={("n05", 2): 0.5}), votes=votes)
    named = {vote.node for vote in votes}
    assert all(len(named & set(run.nodes)) < 2 for run in found.runs)
    assert all(sum(len(run.nodes) == 2 and name in run.nodes for run in found.runs) >= 2 for name in named)
    assert [one.subject for one in accused(found)] == ["n05 rail 2"]
    assert "IB error" in accused(found)[0].reason
    kept = next(one for one in found.verdicts() if one.nodes == ("n00",))
    assert kept.cause == "healthy"
    assert "not confirmed: missing rank" in kept.reason


def test_a_vote_alone_never_accuses() -> None:
    found = search(Truth(fabric(16)), votes=[Vote("n00", "missing rank")] * 20)
    assert not accused(found)


def test_suspects_get_partners_of_their_own_and_waves_where_these_are_few() -> None:
    # Half of the nodes are bad: more suspects than good nodes.
    found = search(Truth(fabric(8, leaf=None), dead=frozenset({"n00", "n01", "n02", "n03"})))
    for run in found.runs:
        assert len(set(run.nodes)) == len(run.nodes)
    uses = Counter((run.round, run.wave, name) for run in found.runs for name in run.nodes)
    assert max(uses.values()) == 1
    assert {one.nodes[0] for one in accused(found)} <= {"n00", "n01", "n02", "n03"}


# -- judging one run --------------------------------------------------------------------------------------


def _judged(figures: Sequence[float], floor: float | None = None) -> list[bool]:
    """Which of these single runs are bad."""
    runs = [Run(f"r1-{one}", "single", (f"n{one}",), (), 1, 0, 1) for one in range(len(figures))]
    outcomes = {run.id: Outcome((figure,)) for run, figure in zip(runs, figures, strict=True)}
    return [one.bad for one in judge(runs, outcomes, {"single": floor} if floor else {})]


def test_the_margin_is_at_least_five_percent_of_the_median() -> None:
    assert _judged([100.0] * 9 + [95.1]) == [False] * 10
    assert _judged([100.0] * 9 + [94.9]) == [False] * 9 + [True]


def test_the_margin_is_three_scaled_deviations_where_figures_scatter() -> None:
    # Median 100, MAD 4: the line is at 100 - 3 x 1.4826 x 4 = 82.2.
    scattered = [92.0, 96.0, 96.0, 100.0, 100.0, 104.0, 104.0, 108.0]
    assert _judged([*scattered, 82.3])[-1] is False
    assert _judged([*scattered, 82.1])[-1] is True


def test_fewer_than_eight_nodes_are_held_against_the_floor_alone() -> None:
    assert _judged([100.0] * 6 + [50.0]) == [False] * 7
    assert _judged([100.0] * 6 + [50.0], floor=60.0) == [False] * 6 + [True]
    assert _judged([100.0] * 7 + [50.0]) == [False] * 7 + [True]


def test_below_the_floor_fails_though_all_are_alike() -> None:
    assert all(_judged([100.0] * 10, floor=101.0))


# -- state ------------------------------------------------------------------------------------------------


def test_an_interrupted_search_ends_like_one_that_was_not() -> None:
    truth = Truth(fabric(16), rails={("n05", 3): 0.6}, dead=frozenset({"n12"}), alone={"n09": 0.7})
    whole = search(truth, votes=[Vote("n05", "IB error", 3)])
    for stop in range(0, len(whole.runs), 3):
        part = localise.start(truth.nodes, floors=FLOORS, votes=[Vote("n05", "IB error", 3)])
        count = 0
        while runs := part.next_round():
            # Backwards: the order of outcomes must not matter.
            for run in reversed(runs):
                if count == stop:
                    break
                part.record(run.id, truth.measure(run))
                count += 1
            if count == stop:
                break
        part = Search.from_json(json.loads(json.dumps(part.to_json())))
        while runs := part.next_round():
            for run in runs:
                part.record(run.id, truth.measure(run))
        assert part.runs == whole.runs
        assert part.verdicts() == whole.verdicts()


def test_the_state_keeps_every_kind_of_outcome() -> None:
    found = localise.start(fabric(4), floors=FLOORS)
    runs = found.next_round() or []
    outcomes = [
        Outcome((1.5, 2.5)),
        Outcome(per_rail={0: (3.0,), 1: (4.0,)}, gdr=True),
        Outcome(failed=True, votes=(Vote("n00", "missing rank", 1),)),
        Outcome(gdr=False),
    ]
    for run, outcome in zip(runs, outcomes, strict=True):
        found.record(run.id, outcome)
    again = Search.from_json(json.loads(json.dumps(found.to_json())))
    assert list(again.outcomes.values()) == outcomes
    assert again.to_json() == found.to_json()


def test_verdicts_can_be_written_as_json() -> None:
    first, *_ = search(Truth(fabric(16), rails={("n05", 3): 0.6})).verdicts()
    written = json.loads(json.dumps(first.to_json()))
    assert written["subject"] == "n05 rail 3"
    assert written["cause"] == "rail"
    assert set(written["runs"]) == set(first.runs)


def test_a_round_is_handed_out_until_every_run_has_its_outcome() -> None:
    found = localise.start(fabric(4), floors=FLOORS)
    first = found.next_round() or []
    found.record(first[0].id, Outcome((460.0,)))
    assert found.next_round() == first[1:]


def test_what_cannot_be_is_refused() -> None:
    found = localise.start(fabric(4))
    run = (found.next_round() or [])[0]
    found.record(run.id, Outcome((460.0,)))
    with pytest.raises(InputError, match="has its outcome already"):
        found.record(run.id, Outcome((460.0,)))
    with pytest.raises(InputError, match="there is no run r9-0000"):
        found.record("r9-0000", Outcome())
    with pytest.raises(InputError, match="outside the search: stranger"):
        found.record("r1-0001", Outcome(votes=(Vote("stranger", "x"),)))
    with pytest.raises(InputError, match="named twice: a"):
        localise.start([Node("a"), Node("a")])
    with pytest.raises(InputError, match="no nodes"):
        localise.start([])
    with pytest.raises(InputError, match="outside the search: b"):
        localise.start([Node("a")], votes=[Vote("b", "x")])
    with pytest.raises(InputError, match="no kind of run triple"):
        localise.start([Node("a")], floors={"triple": 1.0})  # type: ignore[dict-item]
    with pytest.raises(InputError, match="at least once"):
        localise.start([Node("a")], repeats=0)
    with pytest.raises(InputError, match="schema 0"):
        Search.from_json({**found.to_json(), "schema": 0})
