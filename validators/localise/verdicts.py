"""Puts into words what is at fault: accusations with their runs, what is open, and who is healthy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from statistics import fmean

from .culprits import Guilt, guilty
from .judgement import GROSS, TOGETHER, Finding, together
from .leaves import GUILTY, LeafFault, leaf_faults, slow_rails
from .model import Cause, Verdict
from .record import Record

# So many nodes of one leaf are not bad by chance.
_WHOLE_LEAF = 4
# Nodes are alike where their rates differ by less than this share of the usual one.
_ALIKE = 0.05
# Where so many nodes are bad anyway, a leaf full of them says nothing.
_BAD_ELSEWHERE = 0.1


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
        behind |= dict.fromkeys(whole.nodes, f"slow like all nodes of {whole.subject}")
    behind |= _maybe_shared(record, accused)
    found += [_accusation(record, guilt) for name, guilt in accused.items() if name not in behind]
    paths, between = _node_paths(record, explained)
    explained |= between
    found += paths
    found.sort(key=lambda one: (-one.confidence, one.subject))
    rest = []
    for name in record.nodes:
        if name in behind:
            rest.append(Verdict("undecided", (name,), 0.5, _ids(record.met[name]), behind[name]))
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


def _accusation(record: Record, guilt: Guilt) -> Verdict:
    votes = record.votes[guilt.name]
    if guilt.alone:
        reason = f"slow or failing alone, {len(guilt.findings)} times: no NIC takes part, so NVLink, GPU, PCIe or host"
    else:
        partners = sorted({one.other(guilt.name) for one in guilt.findings})
        often = "now and then" if guilt.cause == "flaky" else "each time"
        reason = f"slow or failing {often} with {', '.join(partners)}, which are good without it"
    unsure = not guilt.alone and record.alone_on_leaf(guilt.name)
    if unsure:
        reason += "; no other node is known on its leaf, so it may be what it hangs on"
    if votes:
        reason += f"; logs name it: {votes[0].reason}"
    less = 0.1 * (guilt.cause == "flaky") + 0.1 * unsure
    confidence = _confidence(len(guilt.findings) + bool(votes), less)
    return Verdict(guilt.cause, (guilt.name,), confidence, _ids(guilt.findings), reason, guilt.rails)


def _whole_leaves(record: Record) -> list[Verdict]:
    """Leaves none of whose nodes was ever good, not even with good nodes elsewhere: they share the switch."""
    members: defaultdict[str, list[str]] = defaultdict(list)
    for name in record.nodes:
        leaf = record.leaf(name)
        if leaf is not None and record.met[name]:
            members[leaf].append(name)
    found = []
    for leaf, names in members.items():
        if len(names) < _WHOLE_LEAF or any(record.passed(name) for name in names):
            continue
        elsewhere = [name for name in record.nodes if name not in names]
        if sum(not record.passed(name) for name in elsewhere) > _BAD_ELSEWHERE * len(elsewhere):
            continue
        out = [one for name in names for one in record.met[name] if record.apart(one.run.nodes)]
        partners = {other for one in out for other in one.run.nodes if other not in names and record.passed(other)}
        if len(partners) >= 3 and len({record.leaf(name) for name in partners}) >= 2:
            reason = f"none of its {len(names)} nodes is ever good, neither inside it nor with others"
            found.append(Verdict("leaf", tuple(names), 0.9, _ids(out), reason, slow_rails(out), (leaf,)))
    return found


def _maybe_shared(record: Record, accused: dict[str, Guilt]) -> dict[str, str]:
    """Where leaves are unknown, nodes that are slow in the same way may share a slow uplink. They do not where
    they are bad with each other, too; who has not met its like is not accused. By name, the reason."""
    unsure = [guilt for name, guilt in accused.items() if not guilt.alone and record.alone_on_leaf(name)]
    doubts = {}
    for guilt in unsure:
        alike = [other.name for other in unsure if other is not guilt and _alike(guilt, other)]
        if alike and not record.partners(guilt.name) & set(alike):
            doubts[guilt.name] = f"slow in the same way as {alike[0]}: they may share a slow uplink; name their leaves"
    return doubts


def _alike(one: Guilt, other: Guilt) -> bool:
    """Whether two nodes are slow on the same rails and by as much."""
    levels = [fmean(finding.level for finding in guilt.findings) for guilt in (one, other)]
    same_rails = bool(set(one.rails) & set(other.rails)) or not (one.rails or other.rails)
    return same_rails and abs(levels[0] - levels[1]) < _ALIKE


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
    open_runs = [one for one in failed if one.run.id not in explained and not record.excused(one, name)]
    alone_bad = [one for one in alone if one.bad]

    def undecided(reason: str) -> Verdict:
        return Verdict("undecided", (name,), 0.5, runs, reason)

    if alone_bad and (len(alone_bad) == len(alone) or any(one.short.weight >= GROSS for one in alone_bad)):
        return undecided("slow or failing alone, not often enough to be sure")
    if open_runs and not passed:
        return undecided("never good with another, and too few good partners were left to blame it")
    if len(open_runs) > 1 or any(one.short.weight >= GROSS for one in open_runs):
        if record.alone_on_leaf(name) and all(one.steady for one in open_runs):
            return undecided(
                "slow or failing with some and good with others: name the leaves to tell a path from a node"
            )
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
