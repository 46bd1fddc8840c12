"""Checks x evidence -> ranked results. Nothing here reads the cluster, and nothing prints."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from . import workloads
from .evidence import Evidence, Object, simulated
from .expected import Expected
from .model import Finding, Result, Status, Subject
from .registry import Check, selected

_DAEMONSETS = "daemonsets.apps"


def judge(
    expected: Expected,
    evidence: Evidence,
    checks: Iterable[Check],
    *,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    node: str | None = None,
    saved: bool = False,
) -> tuple[Result, ...]:
    """Run the checks and rank what they found, root causes first.

    ``node`` keeps only what concerns one node. ``saved`` says that the evidence comes from a bundle, where
    a part that was never collected is a skip and not required.
    """
    order = tuple(checks)
    evidence = _without_gone(expected, evidence)
    real = {one["metadata"]["name"] for one in evidence.objects("nodes") if not simulated(one)}
    results: list[Result] = []
    for one in order:
        if not selected(one.id, only, skip):
            continue
        for finding in _once(_findings(one, expected, evidence, saved)):
            if node is None or _concerns(finding, node):
                results.append(
                    Result(
                        check=one.id,
                        finding=finding,
                        fix=_fix(one, finding),
                        avoid=_avoid(one, finding),
                        tier=_tier(one, finding, expected, real),
                    )
                )
    return _rank(_link(results, order), order)


def _tier(one: Check, finding: Finding, expected: Expected, real: set[str]) -> str:
    """What stands behind a result: in a rehearsal nothing but a simulation, unless a real machine told of itself."""
    if expected.cluster.rehearsal and not (one.tier == "node" and finding.subject.name in real):
        return "simulated"
    return one.tier


def _without_gone(expected: Expected, evidence: Evidence) -> Evidence:
    """The same evidence, in which DaemonSets do not want pods where none can be: on spot nodes that have been taken
    away, and on nodes that exist no longer, which Kubernetes counts for about a minute.
    """
    nodes = evidence.objects("nodes")
    names = {one["metadata"]["name"] for one in nodes}
    gone = {one["metadata"]["name"] for one, group in expected.away(nodes) if group.gone(one)}
    fewer = [_excused(one, workloads.pods_of(evidence, one), names - gone, gone) for one in _daemonsets(evidence)]
    if fewer == _daemonsets(evidence):
        return evidence
    return dataclasses.replace(evidence, cluster={**evidence.cluster, _DAEMONSETS: fewer})


def _excused(one: Object, pods: list[Object], alive: set[str], gone: set[str]) -> Object:
    status = one.get("status", {})
    ready, wanted = workloads.counts(one)
    # Without its pods, the nodes that are known to be gone are all that can be said.
    lost = sum(pod["spec"].get("nodeName", "") not in ("", *alive) for pod in pods) if pods else len(gone)
    excused = min(lost, max(0, wanted - ready))
    return {**one, "status": {**status, "desiredNumberScheduled": wanted - excused}} if excused else one


def _daemonsets(evidence: Evidence) -> list[Object]:
    return evidence.objects(_DAEMONSETS)


def _findings(one: Check, expected: Expected, evidence: Evidence, saved: bool) -> list[Finding]:
    subject = Subject("cluster", expected.cluster.name)
    blocked = _blocked(one, evidence, saved, subject)
    if blocked is not None:
        return [blocked]
    try:
        found = list(one.judge(expected, evidence))
    except Exception as error:  # a broken check must not take the others with it
        text = f"{type(error).__name__}: {error}"
        return [Finding(Status.ERROR, subject, "CheckBroke", "the check itself broke", text)]
    if not found:
        nodes = evidence.objects("nodes")
        if nodes and not expected.cluster.groups:
            cause = "nothing tells what is expected of the nodes"
            return [Finding(Status.SKIP, subject, "NothingExpected", cause, required=False)]
        if nodes and not expected.gpu_nodes(nodes):
            absent = tuple(name for name, _ in expected.missing(nodes))
            if all(group.capacity == "spot" for group in expected.cluster.groups):
                cause = "every spot node is away, which inventory allows"
                return [Finding(Status.SKIP, subject, "SpotNodeAbsent", cause, required=False)]
            return [
                Finding(
                    Status.UNPROVEN, subject, "NoGpuNodes", "no node belongs to a group of inventory", nodes=absent,
                    fix="Compare the groups of inventory with kubectl get nodes --show-labels.",
                )
            ]  # fmt: skip
        return [Finding(Status.ERROR, subject, "SaidNothing", "the check found nothing to judge")]
    return found


def _once(found: Iterable[Finding]) -> list[Finding]:
    """One finding per subject, since ids must differ: the worst one, which tells of the others in its detail."""
    by_subject: dict[Subject, list[Finding]] = {}
    for finding in found:
        by_subject.setdefault(finding.subject, []).append(finding)
    return [_merged(some) for some in by_subject.values()]


def _merged(some: list[Finding]) -> Finding:
    worst = max(some, key=lambda finding: (finding.status.rank, finding.required))
    others = [one for one in some if one is not worst and one.status.rank >= Status.WARN.rank]
    told = (worst.detail, *(f"{one.cause}: {one.detail}".removesuffix(": ") for one in others))
    return dataclasses.replace(worst, detail="; ".join(filter(None, told))) if others else worst


def _blocked(one: Check, evidence: Evidence, saved: bool, subject: Subject) -> Finding | None:
    """The finding of a check whose evidence could not be had, else None."""
    for key in one.needs:
        failure = evidence.failures.get(key)
        if failure is not None and failure.kind == "forbidden":
            return Finding(
                Status.UNPROVEN,
                subject,
                "PermissionMissing",
                f"the identity may not read {key}",
                failure.message,
                fix="Grant the role that `gpuready rbac check` prints.",
                avoid="",
            )
        if failure is not None and failure.kind == "unreachable":
            cause = f"the API did not answer for {key}"
            return Finding(Status.ERROR, subject, "Unreachable", cause, failure.message, fix="Run it again.")
        if failure is not None and failure.kind == "interrupted":
            cause = "the run was interrupted before this was read"
            return Finding(Status.UNPROVEN, subject, "Interrupted", cause, key, fix="Run it again.", avoid="")
        if saved and key not in evidence.cluster and failure is None:
            cause = "the bundle does not hold what this check needs"
            return Finding(Status.SKIP, subject, "NotInBundle", cause, key, required=False)
    return None


def _concerns(finding: Finding, node: str) -> bool:
    subject = finding.subject
    return subject.kind == "cluster" or node in (subject.name, *finding.nodes)


def _fix(one: Check, finding: Finding) -> str:
    if finding.status in (Status.PASS, Status.SKIP):
        return ""
    if finding.fix is not None:
        return finding.fix
    # An error says nothing about the cluster, so the check's own remedy would mislead.
    return "" if finding.status is Status.ERROR else one.fix


def _avoid(one: Check, finding: Finding) -> str:
    if finding.status in (Status.PASS, Status.SKIP, Status.ERROR):
        return ""
    return one.avoid if finding.avoid is None else finding.avoid


def _link(results: list[Result], order: Sequence[Check]) -> list[Result]:
    """Name the result that each bad result follows from."""
    bad: dict[str, list[tuple[int, Result]]] = defaultdict(list)
    for place, result in enumerate(results):
        if result.status.rank >= Status.WARN.rank:
            bad[result.check].append((place, result))
    checks = {one.id: one for one in order}
    return [
        dataclasses.replace(result, caused_by=_cause(place, result, checks[result.check], bad))
        if result.status.rank >= Status.WARN.rank
        else result
        for place, result in enumerate(results)
    ]


def _cause(place: int, result: Result, one: Check, bad: dict[str, list[tuple[int, Result]]]) -> str | None:
    """The id of the result that explains this one: one about all, about the same thing, or about its nodes.

    A finding about several nodes is explained when each of them is, lest a second fault hide behind the first.
    """
    upstream = _upstream(place, result, one, bad)
    for candidate in upstream:
        if _general(candidate) or _same_thing(candidate.finding.subject, result.finding.subject):
            return candidate.id
    mine = _nodes(result)
    # The nodes of a fabric work together, so that one of them spoils a run for all.
    collective = result.finding.collective or one.tier == "fabric"
    if collective and not mine:
        return next((candidate.id for candidate in upstream), None)
    theirs = [(candidate, _nodes(candidate) & mine) for candidate in upstream]
    explained = set().union(*(shared for _, shared in theirs))
    if not explained or (not collective and explained < mine):
        return None
    return next(candidate.id for candidate, shared in theirs if shared)


def _upstream(place: int, result: Result, one: Check, bad: dict[str, list[tuple[int, Result]]]) -> list[Result]:
    """The bad results that may explain this one, in the order of the check's ``after``."""
    # What is merely unproven explains no failure.
    least = Status.ERROR.rank if result.status.rank >= Status.ERROR.rank else Status.WARN.rank
    found = []
    for pattern in one.after:
        check_id, _, rest = pattern.partition("/")
        for other, candidate in bad.get(check_id, ()):
            rank = candidate.status.rank
            # Within one check the worse explains the better, and among equals the first; so nothing goes in circles.
            earlier = check_id != one.id or (-rank, other) < (-result.status.rank, place)
            if earlier and rank >= least and _meant(pattern, rest, candidate, result):
                found.append(candidate)
    return found


def _meant(pattern: str, rest: str, candidate: Result, result: Result) -> bool:
    """Whether an entry of ``after`` means this candidate."""
    if rest == "same":
        return candidate.finding.subject == result.finding.subject
    return not rest or fnmatchcase(candidate.id, pattern)


def _same_thing(one: Subject, other: Subject) -> bool:
    return one == other and one.kind != "cluster"


def _general(result: Result) -> bool:
    """Whether a result is about everything, and not about some nodes."""
    return result.finding.subject.kind in ("cluster", "object") and not result.finding.nodes


def _nodes(result: Result) -> set[str]:
    subject = result.finding.subject
    return {*result.finding.nodes, *((subject.name,) if subject.kind == "node" else ())}


def _rank(results: list[Result], order: Sequence[Check]) -> tuple[Result, ...]:
    """Bad before good, roots before what follows, then in the order in which a platform comes up.

    Within a check the order in which it found things stays.
    """
    place = {one.id: index for index, one in enumerate(order)}

    def key(result: Result) -> tuple[int, int, int]:
        return (int(result.caused_by is not None), -result.status.rank, place[result.check])

    bad = [result for result in results if result.status.rank >= Status.WARN.rank]
    good = [result for result in results if result.status.rank < Status.WARN.rank]
    good.sort(key=lambda result: (place[result.check], result.id))
    return tuple(sorted(bad, key=key) + good)
