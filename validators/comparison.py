"""What changed between two runs, as a run of kind diff: worse is fail, better is pass."""

from __future__ import annotations

import dataclasses

from .model import Result, Run, Status


def compare(old: Run, new: Run, *, strict: bool = False) -> Run:
    """Results whose status or cause changed; a result that vanished is unproven, since silence is no health."""
    before = {result.id: result for result in old.results}
    after = {result.id: result for result in new.results}
    changed = [
        _changed(before.get(id), after.get(id))
        for id in dict.fromkeys([*after, *before])
        if _state(before.get(id)) != _state(after.get(id))
    ]
    same = len(before.keys() & after.keys()) - sum(id in before and id in after for id in _ids(changed))
    notes = (f"Old {old.started}, new {new.started}; {same} results are the same.",)
    if not changed:
        changed = [
            dataclasses.replace(
                result,
                finding=dataclasses.replace(
                    result.finding, status=Status.PASS, cause="nothing changed", detail="", reason="Unchanged"
                ),
                fix="", avoid="", caused_by=None,
            )
            for result in new.results[:1]
        ]  # fmt: skip
    ranked = sorted(changed, key=lambda result: -result.status.rank)
    return Run("diff", new.cluster, new.started, new.seconds, 0, tuple(ranked), strict, notes)


def _ids(results: list[Result]) -> list[str]:
    return [result.id for result in results]


def _state(result: Result | None) -> tuple[Status, str] | None:
    return (result.status, result.finding.cause) if result else None


def _changed(old: Result | None, new: Result | None) -> Result:
    base = new or old
    assert base is not None  # an id stands in at least one of the two runs
    was = f"was {old.status.value}: {old.finding.cause}" if old else "was not there"
    if new is None:
        status, cause = Status.UNPROVEN, "no longer judged"
    else:
        status, cause = new.status, new.finding.cause
    finding = dataclasses.replace(base.finding, status=status, cause=cause, detail=was)
    return dataclasses.replace(base, finding=finding, caused_by=None)
