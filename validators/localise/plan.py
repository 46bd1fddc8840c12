"""Which runs come next, from what is known. Four rounds: alone, in pairs, suspects with good partners while the
others look across leaves, and the same again to confirm.

A round is one set of disjoint runs, so that it costs one start of pods. Where good partners are too few it has
several such sets, its waves.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence

from .culprits import guilty_alone
from .judgement import FAILS_AT, GROSS, Finding
from .leaves import SUSPECT, LeafFault, leaf_faults
from .model import Kind, Run
from .record import Record

ROUNDS = 4
_WAVES = 4
# Good pairs that are run by rail only to show what is normal.
_CONTROLS = 4
_CONFIRM_LEAF = 3
_TRIES = 20


class _Round:
    """The runs of a round while it is put together; knows who is busy in which wave."""

    def __init__(self, record: Record, number: int, seed: int, repeats: int) -> None:
        self.record = record
        self.number = number
        self.random = random.Random(f"{seed}/{number}")
        self.repeats = repeats
        self.runs: list[Run] = []
        self._busy: defaultdict[int, set[str]] = defaultdict(set)

    def add(self, kind: Kind, nodes: tuple[str, ...], wave: int = 0) -> None:
        """Plan a run; its nodes are then busy in that wave."""
        rails: tuple[int, ...] = ()
        if kind in ("rail", "path"):
            count = min(self.record.nodes[name].rails for name in nodes)
            rails = tuple(range(count)) if count > 1 else ()
        run_id = f"r{self.number}-{len(self.runs):04d}"
        self.runs.append(Run(run_id, kind, nodes, rails, self.number, wave, self.repeats))
        self._busy[wave].update(nodes)

    def meet(self, first: str, second: str, wave: int = 0) -> None:
        """Plan a run of two nodes, split by rail."""
        self.add("path" if self.record.apart((first, second)) else "rail", (first, second), wave)

    def busy(self, name: str, wave: int = 0) -> bool:
        """Whether a node has a run in that wave."""
        return name in self._busy[wave]

    def free(self, names: Iterable[str], wave: int = 0) -> list[str]:
        """Those that are not busy, in random order."""
        left = [name for name in names if not self.busy(name, wave)]
        self.random.shuffle(left)
        return left

    def by_leaf(self, names: Iterable[str]) -> dict[str | None, list[str]]:
        """Nodes by leaf, leaves in the order in which they come up."""
        leaves: dict[str | None, list[str]] = {}
        for name in names:
            leaves.setdefault(self.record.leaf(name), []).append(name)
        return leaves


def next_runs(record: Record, number: int, seed: int, repeats: int) -> list[Run]:
    """The runs of round ``number``, 1 to 4; none where there is nothing left to learn."""
    plan = _Round(record, number, seed, repeats)
    if number == 1:
        for name in record.nodes:
            plan.add("single", (name,))
        return plan.runs
    # Who is bad alone needs no partner to be accused; the others are confirmed as long as there are rounds.
    able = [name for name in record.nodes if not guilty_alone(record, name)]
    if number == 2:
        _alone_again(plan, able)
        _pairs(plan, [name for name in able if not plan.busy(name)])
    elif number == 3:
        _partners(plan, _untold(record, able))
        _look_again(plan)
        _two_again(plan, able)
    else:
        _alone_again(plan, [name for name in able if not record.failed(name)])
        able = [name for name in able if not plan.busy(name)]
        faults = leaf_faults(record, SUSPECT)
        suspects = _still_suspect(record, able, faults)
        _partners(plan, suspects)
        _confirm_leaves(plan, faults)
        _repeat(plan, suspects)
        _among_suspects(plan, suspects)
        _controls(plan)
    return plan.runs


def _alone_again(plan: _Round, names: Iterable[str]) -> None:
    """Who was bad alone, each time, has another run alone: two such runs accuse it.

    Where it was but a little below the line, which noise does, too, that run has a wave of its own, so that the
    node is not missed as a partner.
    """
    for name in names:
        if plan.record.fails_alone(name):
            slight = all(one.short.weight < GROSS for one in plan.record.alone[name])
            plan.add("single", (name,), 1 if slight else 0)


def _pairs(plan: _Round, able: Sequence[str]) -> None:
    """Everyone in one pair, inside a leaf where it can be; never two that logs name. One may be left over."""
    left: list[str] = []
    for members in plan.by_leaf(plan.free(able)).values():
        left += _matched(plan, members)
    _matched(plan, left)


def _matched(plan: _Round, members: Sequence[str]) -> list[str]:
    """Pair them up, named ones with others; returns those that are left over."""
    named = [name for name in members if plan.record.votes[name]]
    others = [name for name in members if not plan.record.votes[name]]
    pairs = list(zip(named, others, strict=False))
    rest = others[len(pairs) :]
    pairs += list(zip(rest[::2], rest[1::2], strict=False))
    for pair in pairs:
        plan.add("path" if plan.record.apart(pair) else "pair", pair)
    return named[len(others) :] + (rest[-1:] if len(rest) % 2 else [])


def _untold(record: Record, able: Sequence[str]) -> list[str]:
    """Who failed, or has not been measured with another, or is named by logs; the worst first."""
    found = [name for name in able if not record.known_good(name) or record.votes[name]]
    return sorted(found, key=lambda name: -_suspicion(record, name)[0])


def _suspicion(record: Record, name: str) -> tuple[int, int]:
    """More is worse: bad runs, and the lack of good ones."""
    return len(record.failed(name)), -len(record.passed(name))


def _partners(plan: _Round, suspects: Sequence[str]) -> None:
    """Give each suspect a good partner of its own: one that it has not met, of its leaf where there is one."""
    record = plan.record
    named = set(suspects)
    good = [name for name in record.nodes if record.known_good(name) and name not in named]
    waiting = list(suspects)
    for wave in range(_WAVES):
        # First those that never failed: who met a suspect before can witness against that one alone.
        pool = plan.by_leaf(sorted(plan.free(good, wave), key=lambda name: len(record.failed(name))))
        still = []
        for name in waiting:
            partner = None if plan.busy(name, wave) else _partner(record, name, pool)
            if partner is None:
                still.append(name)
            else:
                plan.meet(name, partner, wave)
        waiting = still
        if not waiting:
            return
    # No good partner at all: a new mix of those that are open may show one.
    while waiting:
        name = waiting.pop(0)
        met = record.partners(name)
        partner = next((other for other in waiting if other not in met), None)
        if partner is not None and not plan.busy(name) and not plan.busy(partner):
            waiting.remove(partner)
            plan.meet(name, partner)


def _partner(record: Record, name: str, pool: dict[str | None, list[str]]) -> str | None:
    """Take a partner out of the pool: of the same leaf, else of the leaf that has most left."""
    met = record.partners(name)
    leaf = record.leaf(name)
    for place in (leaf, *sorted(pool, key=lambda other: -len(pool[other]))[:3]):
        for partner in pool.get(place, ()):
            if partner not in met:
                pool[place].remove(partner)
                return partner
    return None


def _two_again(plan: _Round, able: Sequence[str]) -> None:
    """Of two nodes alone none can be blamed; by rail, at least the rail is known."""
    if len(plan.record.nodes) == len(able) == 2 and any(one.bad for one in plan.record.meetings):
        plan.meet(able[0], able[1])


def _look_again(plan: _Round) -> None:
    """Everyone else meets somebody new: across leaves where leaves are known, else by rail."""
    record = plan.record
    _controls(plan)
    good = [name for name in record.nodes if record.known_good(name)]
    left = _across(plan, [name for name in plan.free(good) if record.leaf(name) is not None])
    rest = [name for name in plan.free(good) if record.leaf(name) is None or name in left]
    for members in plan.by_leaf(rest).values():
        _inside(plan, members, len(members))


def _across(plan: _Round, names: Sequence[str]) -> list[str]:
    """Pair nodes of different leaves at random; returns those that found no partner."""
    leaf = plan.record.leaf
    order = list(names)
    plan.random.shuffle(order)
    pairs = [[first, second] for first, second in zip(order[::2], order[1::2], strict=False)]
    for pair in pairs:
        for _ in range(_TRIES):
            if leaf(pair[0]) != leaf(pair[1]):
                break
            other = plan.random.choice(pairs)
            if leaf(other[0]) != leaf(pair[0]) != leaf(other[1]):
                pair[1], other[1] = other[1], pair[1]
    left = order[len(pairs) * 2 :]
    for first, second in pairs:
        if leaf(first) == leaf(second):
            left += [first, second]
        else:
            plan.meet(first, second)
    return left


def _controls(plan: _Round) -> None:
    """Good pairs that show what a rail does inside a leaf: as many as suspects are judged by, spread over leaves."""
    record = plan.record
    judged = sum(run.kind == "rail" for run in plan.runs)
    if plan.number == ROUNDS and not judged:
        return
    shown = sum(not one.bad and one.run.kind == "rail" for one in record.meetings)
    wanted = max(_CONTROLS, judged) - shown
    groups = list(plan.by_leaf(plan.free(name for name in record.nodes if record.known_good(name))).values())
    for place, group in enumerate(sorted(groups, key=len)):
        if wanted > 0:
            wanted -= _inside(plan, group, math.ceil(wanted / (len(groups) - place)))


def _inside(plan: _Round, members: Sequence[str], most: int) -> int:
    """Pair nodes of one leaf with partners that they have not met, by rail; returns how many pairs."""
    waiting = list(members)
    made = 0
    while len(waiting) > 1 and made < most:
        name = waiting.pop()
        met = plan.record.partners(name)
        partner = next((other for other in waiting if other not in met), None)
        if partner is not None:
            waiting.remove(partner)
            plan.meet(name, partner)
            made += 1
    return made


def _confirm_leaves(plan: _Round, faults: Sequence[LeafFault]) -> None:
    """Other nodes of a suspected leaf or path go the same way again, to leaves that are good. So does every leaf
    that no run has left at full rate yet, be it that its nodes were needed elsewhere."""
    record = plan.record
    sound = plan.by_leaf(name for name in record.nodes if record.sound_in_leaf(name) and record.leaf(name))
    asked = [fault.leaves for fault in faults]
    doubtful = {leaf for leaves in asked for leaf in leaves}
    if len(sound) > 1:
        asked += [(leaf,) for leaf in sound if leaf and leaf not in record.open_leaves | doubtful]
    for leaves in asked:
        # A second wave where suspects and their partners leave nobody.
        wave = 0 if len(plan.free(sound.get(leaves[0], ()))) > 1 else 1
        own = plan.free(sound.get(leaves[0], ()), wave)
        if len(leaves) == 2:
            targets = plan.free(sound.get(leaves[1], ()), wave)
        else:
            # One of each leaf in turn, so that no two runs share the far end.
            others = [plan.free(members, wave) for leaf, members in sound.items() if leaf not in {*doubtful, *leaves}]
            plan.random.shuffle(others)
            targets = [members[turn] for turn in range(_CONFIRM_LEAF) for members in others if turn < len(members)]
        # Those whose run across was good are the better witnesses.
        own.sort(key=lambda name: len(record.failed(name)))
        for first in own[:_CONFIRM_LEAF]:
            second = next((name for name in targets if name not in record.partners(first)), None)
            if second is not None:
                targets.remove(second)
                plan.meet(first, second, wave)


def _still_suspect(record: Record, able: Sequence[str], faults: Sequence[LeafFault]) -> list[str]:
    """Of each bad run that no leaf explains the node that looks worse, both where they look alike."""
    explained = {one.run.id for fault in faults for one in fault.findings}
    explained |= {one.run.id for one in record.meetings if one.bad and record.leaf_first(one)}
    allowed = set(able)
    found: dict[str, None] = {}
    for one in record.meetings:
        if one.bad and one.run.id not in explained:
            found |= dict.fromkeys(name for name in _worse(record, one) if name in allowed)
    found |= dict.fromkeys(name for name in able if not record.met[name])
    return sorted(found, key=lambda name: _suspicion(record, name), reverse=True)


def _worse(record: Record, finding: Finding) -> tuple[str, ...]:
    first, second = finding.run.nodes
    ahead, behind = _suspicion(record, first), _suspicion(record, second)
    return (first, second) if ahead == behind else (first,) if ahead > behind else (second,)


def _repeat(plan: _Round, suspects: Sequence[str]) -> None:
    """Two that failed together once, each good with others, meet again: is it what lies between them? Inside one
    leaf that is but the switch, and never the question."""
    named = set(suspects)
    record = plan.record
    for one in record.meetings:
        both = all(name in named and record.passed(name) for name in one.run.nodes)
        free = not any(plan.busy(name, 1) for name in one.run.nodes)
        unknown = any(record.leaf(name) is None for name in one.run.nodes)
        if one.bad and one.run.kind == "pair" and both and unknown and free:
            plan.add("pair", one.run.nodes, 1)


def _among_suspects(plan: _Round, suspects: Sequence[str]) -> None:
    """Where leaves are unknown, suspects that look alike meet each other: bad nodes stay bad, nodes behind one
    slow uplink are good together."""
    record = plan.record
    order = [name for name in suspects if record.alone_on_leaf(name) and record.failed(name)]
    order.sort(key=lambda name: _likeness(record, name))
    # Two waves, so that each meets the next on both sides.
    for wave in (1, 2):
        for pair in zip(order[wave - 1 :: 2], order[wave::2], strict=False):
            if pair[1] not in record.partners(pair[0]) and not any(plan.busy(name, wave) for name in pair):
                plan.meet(*pair, wave)


def _likeness(record: Record, name: str) -> tuple[list[int], float]:
    """The slow rails of a node's last bad run, and how slow they are."""
    last = record.failed(name)[-1]
    return sorted(rail for rail, short in last.by_rail.items() if short.amount >= FAILS_AT), last.level
