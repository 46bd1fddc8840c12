"""Checks x evidence -> ranked results. Nothing here reads the cluster, and nothing prints."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Sequence

from .evidence import Evidence
from .expected import Expected
from .model import Finding, Result, Status, Subject
from .registry import Check, matches


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
    results: list[Result] = []
    for one in order:
        if (only and not matches(one.id, only)) or matches(one.id, skip):
            continue
        tier = "simulated" if expected.cluster.rehearsal else one.tier
        for finding in _findings(one, expected, evidence, saved):
            if node is None or _concerns(finding, node):
                results.append(
                    Result(
                        check=one.id,
                        finding=finding,
                        fix=_fix(one, finding),
                        avoid=_avoid(one, finding),
                        tier=tier,
                    )
                )
    return _rank(_link(results, order), order)


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
        return [Finding(Status.ERROR, subject, "SaidNothing", "the check found nothing to judge")]
    return found


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
    bad: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        if result.status.rank >= Status.UNPROVEN.rank:
            bad[result.check].append(result)
    after = {one.id: one.after for one in order}
    return [
        dataclasses.replace(result, caused_by=_cause(result, after[result.check], bad))
        if result.status.rank >= Status.WARN.rank
        else result
        for result in results
    ]


def _cause(result: Result, upstream: Sequence[str], bad: dict[str, list[Result]]) -> str | None:
    mine = {result.finding.subject.name, *result.finding.nodes}
    for check_id in upstream:
        for candidate in bad.get(check_id, ()):
            theirs = {candidate.finding.subject.name, *candidate.finding.nodes}
            general = candidate.finding.subject.kind in ("cluster", "object") and not candidate.finding.nodes
            # What is merely unproven explains no failure.
            strong = candidate.status.rank >= min(result.status.rank, Status.ERROR.rank)
            if candidate.id != result.id and strong and (general or mine & theirs):
                return candidate.id
    return None


def _rank(results: list[Result], order: Sequence[Check]) -> tuple[Result, ...]:
    """Bad before good, roots before what follows, then in the order in which a platform comes up."""
    place = {one.id: index for index, one in enumerate(order)}

    def key(result: Result) -> tuple[int, int, int, str, str]:
        subject = result.finding.subject
        follows = int(result.caused_by is not None)
        return (follows, -result.status.rank, place[result.check], subject.kind, subject.name)

    bad = [result for result in results if result.status.rank >= Status.WARN.rank]
    good = [result for result in results if result.status.rank < Status.WARN.rank]
    good.sort(key=lambda result: (place[result.check], result.id))
    return tuple(sorted(bad, key=key) + good)
