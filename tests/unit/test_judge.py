"""Judging: exit codes, ranking, causes, missing evidence, broken checks."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from gpuready.charts_values.errors import InputError
from gpuready.validators import registry
from gpuready.validators.evidence import Evidence, ReadFailure
from gpuready.validators.expected import Expected
from gpuready.validators.judge import judge
from gpuready.validators.model import Finding, Result, Status, Subject, exit_code
from gpuready.validators.registry import Check

NODE = Subject("node", "gpu-0")


def make(id: str, *findings: Finding, needs: tuple[str, ...] = (), after: tuple[str, ...] = ()) -> Check:
    def give(expected: Expected, evidence: Evidence) -> Iterable[Finding]:
        return findings

    return Check(id, give, "t", "p", "r", "s", "do this", "not that", needs, after, "check", "api")


def finding(status: Status, subject: Subject = NODE, **more: object) -> Finding:
    return Finding(status, subject, "R", "cause", **more)  # type: ignore[arg-type]


def result(status: Status, *, required: bool = True) -> Result:
    return Result("a.b", Finding(status, NODE, "R", "c", required=required), "", "", "api")


@pytest.mark.parametrize(
    ("statuses", "strict", "code"),
    [
        (["pass", "skip"], False, 0),
        (["pass", "warn"], False, 0),
        (["pass", "warn"], True, 1),
        (["pass", "unproven"], False, 2),
        (["pass", "error"], False, 2),
        (["unproven", "fail"], False, 1),
        (["skip"], False, 2),
        ([], False, 2),
    ],
)
def test_exit_code(statuses: list[str], strict: bool, code: int) -> None:
    assert exit_code([result(Status(one)) for one in statuses], strict=strict) == code


def test_what_is_not_required_leaves_the_verdict_alone() -> None:
    assert exit_code([result(Status.PASS), result(Status.UNPROVEN, required=False)], strict=False) == 0


def test_consequences_come_after_their_cause_and_name_it(expected: Expected, evidence: Evidence) -> None:
    late = make("z.late", finding(Status.FAIL), after=("a.root",))
    root = make("a.root", finding(Status.FAIL))
    other = make("b.other", finding(Status.FAIL, Subject("node", "gpu-1")), after=("a.root",))
    ranked = judge(expected, evidence, [late, root, other])
    assert [one.check for one in ranked] == ["a.root", "b.other", "z.late"]
    assert [one.caused_by for one in ranked] == [None, None, "a.root/node/gpu-0"]


def test_a_finding_about_many_nodes_follows_from_one_of_them(expected: Expected, evidence: Evidence) -> None:
    root = make("a.root", finding(Status.FAIL))
    run = make("b.run", finding(Status.FAIL, Subject("pair", "x"), nodes=("gpu-1", "gpu-0")), after=("a.root",))
    assert judge(expected, evidence, [root, run])[1].caused_by == "a.root/node/gpu-0"


def test_a_broken_check_is_an_error_and_the_others_go_on(expected: Expected, evidence: Evidence) -> None:
    def broken(expected: Expected, evidence: Evidence) -> Iterable[Finding]:
        raise KeyError("status")

    bad = Check("a.bad", broken, "t", "p", "r", "s", "fix", "", (), (), "check", "api")
    first, second = judge(expected, evidence, [bad, make("b.good", finding(Status.PASS))])
    assert (first.status, first.finding.reason, first.fix) == (Status.ERROR, "CheckBroke", "")
    assert "KeyError" in first.finding.detail
    assert second.status is Status.PASS


def test_a_check_that_says_nothing_is_an_error(expected: Expected, evidence: Evidence) -> None:
    assert judge(expected, evidence, [make("a.mute")])[0].finding.reason == "SaidNothing"


@pytest.mark.parametrize(
    ("kind", "status"), [("forbidden", Status.UNPROVEN), ("unreachable", Status.ERROR), ("absent", Status.PASS)]
)
def test_evidence_that_could_not_be_read(expected: Expected, evidence: Evidence, kind: str, status: Status) -> None:
    evidence.failures["widgets"] = ReadFailure(kind, "said so")
    one = make("a.b", finding(Status.PASS), needs=("widgets",))
    assert judge(expected, evidence, [one])[0].status is status


def test_a_bundle_without_the_evidence_is_a_skip(expected: Expected, evidence: Evidence) -> None:
    one = make("a.b", finding(Status.FAIL), needs=("widgets",))
    only = judge(expected, evidence, [one], saved=True)[0]
    assert (only.status, only.finding.required) == (Status.SKIP, False)


def test_node_keeps_what_concerns_the_node_and_the_cluster(expected: Expected, evidence: Evidence) -> None:
    many = make(
        "a.b",
        finding(Status.PASS),
        finding(Status.PASS, Subject("node", "gpu-1")),
        finding(Status.PASS, Subject("cluster", "lab")),
    )
    names = {one.finding.subject.name for one in judge(expected, evidence, [many], node="gpu-1")}
    assert names == {"gpu-1", "lab"}


def test_only_and_skip(expected: Expected, evidence: Evidence) -> None:
    checks = [make("a.one", finding(Status.PASS)), make("a.two", finding(Status.PASS))]
    kept = judge(expected, evidence, checks, only=["a.*"], skip=["*.two"])
    assert [one.check for one in kept] == ["a.one"]


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(InputError, match=r"--only 'gpu.alocatable' matches no check"):
        registry.require_matches(["gpu.alocatable"], "--only")


def test_every_check_is_written_up_and_names_real_upstreams() -> None:
    known = registry.all_checks()
    order = [one.id for one in known]
    for one in known:
        assert one.title and one.proves and one.rule and one.source and one.fix, one.id
        assert one.phase in ("check", "accept"), one.id
        assert one.tier in ("api", "node", "gpu", "fabric"), one.id
        for upstream in one.after:
            assert order.index(upstream) <= order.index(one.id), f"{one.id} after {upstream}"


def test_a_rehearsal_is_told_by_every_tier(expected: Expected, evidence: Evidence) -> None:
    import dataclasses

    twin = dataclasses.replace(expected, cluster=dataclasses.replace(expected.cluster, rehearsal=True))
    assert judge(twin, evidence, [make("a.b", finding(Status.PASS))])[0].tier == "simulated"
