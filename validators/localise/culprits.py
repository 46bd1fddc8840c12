"""Blames nodes: who is bad, who only met a bad one, and what stays open.

A node is accused after bad runs with two different partners that are good without it, or after two bad runs
alone; and only where these runs together are beyond what noise does.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .judgement import CLEAR, FAILS_AT, GROSS, Finding, Short
from .leaves import GUILTY, LeafFault, leaf_faults
from .model import Cause, Verdict
from .record import Record

# Shortfalls add up as Stouffer's Z: sum / sqrt(count). A run just at its line weighs 3, so two are not enough.
TOGETHER = 5.5
# From this share of a leaf's nodes on, the leaf is at fault and not all of them.
_WHOLE_LEAF = 0.6


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
    found = {name: guilt for name in record.nodes if (guilt := _guilty_alone(record, name))}
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


def _guilty_alone(record: Record, name: str) -> Guilt | None:
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
    if now_and_then and len({one.other(name) for one in bad if one.short.weight >= GROSS}) < 2:
        return None
    rails = _rails(bad)
    cause: Cause = "flaky" if now_and_then else "rail" if rails else "node"
    return Guilt(name, cause, rails, tuple(bad))


def _good_without(record: Record, finding: Finding, name: str, explained: set[str]) -> bool:
    """Whether the partner of ``name`` in a bad run is good with others.

    What others explain, or a leaf may, does not count. Nor does a shortfall less than half as bad: that does not
    explain this run.
    """
    partner = finding.other(name)
    others = [one for one in record.met[partner] if one.other(partner) != name]
    bad = [one for one in others if one.bad and one.run.id not in explained and not record.leaf_first(one)]
    slight = [one for one in bad if one.short.weight < finding.short.weight / 2]
    good = len(slight) + sum(not one.bad for one in others)
    return good > 0 and len(slight) == len(bad) and not record.fails_alone(partner)


def together(shorts: Sequence[Short]) -> float:
    """What several shortfalls weigh together."""
    return math.fsum(short.weight for short in shorts) / math.sqrt(len(shorts)) if shorts else 0.0


def _rails(bad: Sequence[Finding]) -> tuple[int, ...]:
    """The rails that are slow in every run that is split by rail, beyond noise; empty where most are slow."""
    split = [one.by_rail for one in bad if one.by_rail]
    every = {rail for rails in split for rail in rails}
    low = []
    for rail in sorted(every):
        shorts = [rails[rail] for rails in split if rail in rails]
        if all(short.amount >= FAILS_AT for short in shorts) and together(shorts) >= TOGETHER:
            low.append(rail)
    return tuple(low) if 2 * len(low) <= len(every) else ()


def verdicts(record: Record) -> list[Verdict]:
    """Every accusation, the surest first; then what is undecided; then the healthy nodes. One verdict per node,
    and one per leaf or path that is at fault."""
    faults = leaf_faults(record, GUILTY)
    accused = guilty(record, faults)
    explained = {one.run.id for fault in faults for one in fault.findings}
    explained |= {one.run.id for name in accused for one in record.failed(name)}
    found = [_leaf_verdict(fault) for fault in faults]
    behind: dict[str, str] = {}
    for whole in _whole_leaves(record):
        found.append(whole)
        behind |= dict.fromkeys(whole.nodes, whole.leaves[0])
    labelled = any(node.leaf is not None for node in record.nodes.values())
    found += [_accusation(record, guilt, labelled) for name, guilt in accused.items() if name not in behind]
    paths, between = _node_paths(record, explained)
    explained |= between
    found += paths
    found.sort(key=lambda one: (-one.confidence, one.subject))
    rest = []
    for name in record.nodes:
        if name in behind:
            reason = f"slow like most nodes of leaf {behind[name]}"
            rest.append(Verdict("undecided", (name,), 0.5, _ids(record.met[name]), reason))
        elif name not in accused:
            rest.append(_not_accused(record, name, explained))
    rest.sort(key=lambda one: one.cause != "undecided")
    return found + rest


def _ids(findings: Iterable[Finding]) -> tuple[str, ...]:
    return tuple(one.run.id for one in findings)


def _confidence(runs: int, less: float = 0.0) -> float:
    return round({0: 0.5, 1: 0.7, 2: 0.9, 3: 0.97}.get(runs, 0.99) - less, 2)


def _leaf_verdict(fault: LeafFault) -> Verdict:
    nodes = tuple(sorted({name for one in fault.findings for name in one.run.nodes}))
    cause: Cause = "leaf" if len(fault.leaves) == 1 else "path"
    what = "runs that leave the leaf" if cause == "leaf" else "runs between the two leaves"
    reason = f"{len(fault.findings)} {what} are slow, of nodes that are good inside their leaf"
    confidence = _confidence(len(fault.findings))
    return Verdict(cause, nodes, confidence, _ids(fault.findings), reason, fault.rails, fault.leaves)


def _accusation(record: Record, guilt: Guilt, labelled: bool) -> Verdict:
    votes = record.votes[guilt.name]
    if guilt.alone:
        reason = f"slow or failing alone, {len(guilt.findings)} times"
    else:
        partners = sorted({one.other(guilt.name) for one in guilt.findings})
        often = "now and then" if guilt.cause == "flaky" else "each time"
        reason = f"slow or failing {often} with {', '.join(partners)}, which are good without it"
    if votes:
        reason += f"; logs name it: {votes[0].reason}"
    # Without leaves the way to a node cannot be told from the node.
    less = (0.1 if guilt.cause == "flaky" else 0.0) + (0.0 if labelled or guilt.alone else 0.05)
    confidence = _confidence(len(guilt.findings) + bool(votes), less)
    return Verdict(guilt.cause, (guilt.name,), confidence, _ids(guilt.findings), reason, guilt.rails)


def _whole_leaves(record: Record) -> list[Verdict]:
    """Leaves most of whose nodes were never good, not even with good nodes elsewhere: they share the switch."""
    members: defaultdict[str, list[str]] = defaultdict(list)
    for node in record.nodes.values():
        if node.leaf is not None:
            members[node.leaf].append(node.name)
    found = []
    for leaf, names in members.items():
        never = [name for name in names if record.met[name] and not record.passed(name)]
        if len(never) < max(3, _WHOLE_LEAF * len(names)):
            continue
        out = [one for name in never for one in record.met[name] if record.crosses(one.run)]
        partners = {other for one in out for other in one.run.nodes if other not in names and record.passed(other)}
        if len(partners) >= 3 and len({record.leaf(name) for name in partners}) >= 2:
            reason = f"{len(never)} of its {len(names)} nodes are never good, neither inside it nor with others"
            found.append(Verdict("leaf", tuple(never), 0.9, _ids(out), reason, _rails(out), (leaf,)))
    return found


def _node_paths(record: Record, explained: set[str]) -> tuple[list[Verdict], set[str]]:
    """Two nodes that are bad together, twice, and good with others: it is what lies between them."""
    pairs: defaultdict[tuple[str, ...], list[Finding]] = defaultdict(list)
    for one in record.meetings:
        if one.bad and one.steady and one.run.id not in explained:
            pairs[tuple(sorted(one.run.nodes))].append(one)
    found = []
    for nodes, bad in pairs.items():
        met = [one for one in record.met[nodes[0]] if set(one.run.nodes) == set(nodes)]
        good_elsewhere = all(
            record.passed(name) and all(set(one.run.nodes) == set(nodes) for one in record.failed(name))
            for name in nodes
        )
        if (
            len(bad) >= 2
            and len(bad) == len(met)
            and good_elsewhere
            and together([one.short for one in bad]) >= TOGETHER
        ):
            reason = f"slow together {len(bad)} times, and each good with others"
            found.append(Verdict("path", nodes, _confidence(len(bad)), _ids(bad), reason))
    return found, {run for one in found for run in one.runs}


def _not_accused(record: Record, name: str, explained: set[str]) -> Verdict:
    passed, failed, alone = record.passed(name), record.failed(name), record.alone[name]
    runs = _ids((*alone, *record.met[name]))
    open_runs = [one for one in failed if one.run.id not in explained]
    alone_bad = [one for one in alone if one.bad]

    def undecided(reason: str) -> Verdict:
        return Verdict("undecided", (name,), 0.5, runs, reason)

    if alone_bad and (len(alone_bad) == len(alone) or any(one.short.weight >= GROSS for one in alone_bad)):
        return undecided("slow or failing alone, not often enough to be sure")
    if open_runs and not passed:
        return undecided("never good with another, and too few good partners were left to blame it")
    if len(open_runs) > 1 or any(one.short.weight >= GROSS for one in open_runs):
        return undecided("slow or failing in some runs and good in others; look at its link counters")
    if not passed:
        if len(record.nodes) == 1 and alone:
            return Verdict("healthy", (name,), 0.7, runs, "good alone; there is no other node to run with")
        return undecided("met bad nodes only" if failed else "never measured with another node")
    doubts = len(open_runs) + len(alone_bad)
    reason = "every run is good" if not failed else "its bad runs are explained by others"
    if doubts:
        reason = "one run just below the line, good in the others"
    if record.votes[name]:
        reason += f"; not confirmed: {record.votes[name][0].reason}"
    return Verdict("healthy", (name,), _confidence(len(passed) + 1, 0.1 * doubts), runs, reason)
