"""Judging: exit codes, ranking, causes, missing evidence, broken checks."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

import pytest
from gpuready.charts_values.errors import InputError
from gpuready.charts_values.inventory import Cluster
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


def test_a_run_of_many_nodes_follows_from_one_of_them(expected: Expected, evidence: Evidence) -> None:
    root = make("a.root", finding(Status.FAIL))
    run = make("b.run", finding(Status.FAIL, Subject("pair", "x"), nodes=("gpu-1", "gpu-0")), after=("a.root",))
    fabric = dataclasses.replace(run, tier="fabric")
    assert judge(expected, evidence, [root, fabric])[1].caused_by == "a.root/node/gpu-0"


def test_a_second_fault_does_not_hide_behind_the_first(expected: Expected, evidence: Evidence) -> None:
    """An operand that is not ready on two nodes is explained when both are."""
    thing = finding(Status.FAIL, Subject("object", "operand"), nodes=("gpu-0", "gpu-1"))
    late = make("b.late", thing, after=("a.root",))
    one = make("a.root", finding(Status.FAIL))
    both = make("a.root", finding(Status.FAIL), finding(Status.FAIL, Subject("node", "gpu-1")))
    assert judge(expected, evidence, [one, late])[1].caused_by is None
    assert judge(expected, evidence, [both, late])[2].caused_by == "a.root/node/gpu-0"


def test_what_is_said_of_all_follows_from_any_and_explains_none(expected: Expected, evidence: Evidence) -> None:
    word = make("b.word", finding(Status.FAIL, Subject("object", "policy"), collective=True), after=("a.root",))
    node = make("c.node", finding(Status.FAIL, Subject("node", "gpu-1")), after=("a.root",))
    results = judge(expected, evidence, [make("a.root", finding(Status.FAIL)), word, node])
    assert {one.check: one.caused_by for one in results} == {
        "a.root": None, "b.word": "a.root/node/gpu-0", "c.node": None,
    }  # fmt: skip


def test_a_finding_about_an_object_on_a_node_explains_that_node_alone(expected: Expected, evidence: Evidence) -> None:
    root = make("a.root", finding(Status.FAIL, Subject("object", "plugin"), nodes=("gpu-1",)))
    late = make("b.late", finding(Status.FAIL), finding(Status.FAIL, Subject("node", "gpu-1")), after=("a.root",))
    results = judge(expected, evidence, [root, late])
    assert {one.id: one.caused_by for one in results} == {
        "a.root/object/plugin": None, "b.late/node/gpu-0": None, "b.late/node/gpu-1": "a.root/object/plugin",
    }  # fmt: skip


def test_within_a_check_the_first_explains_the_rest(expected: Expected, evidence: Evidence) -> None:
    things = [finding(Status.FAIL, Subject("object", name), nodes=("gpu-0",)) for name in ("z-first", "a-second")]
    first, second = judge(expected, evidence, [make("a.b", *things, after=("a.b",))])
    assert (first.finding.subject.name, first.caused_by) == ("z-first", None)
    assert (second.finding.subject.name, second.caused_by) == ("a-second", first.id)


@pytest.mark.parametrize(
    ("entry", "follows"), [("a.root/same", "one"), ("a.root/*/two", "one two"), ("a.root", "one two")]
)
def test_after_may_mean_single_results(expected: Expected, evidence: Evidence, entry: str, follows: str) -> None:
    names = ["one"] if entry.endswith("same") else ["two"]
    root = make("a.root", *(finding(Status.FAIL, Subject("object", name)) for name in names))
    late = make("b.late", *(finding(Status.FAIL, Subject("object", n)) for n in ("one", "two")), after=(entry,))
    results = judge(expected, evidence, [root, late])
    explained = [one.finding.subject.name for one in results if one.check == "b.late" and one.caused_by]
    assert " ".join(explained) == follows


def test_a_warning_explains_what_is_unproven_and_no_failure(expected: Expected, evidence: Evidence) -> None:
    root = make("a.root", finding(Status.WARN))
    late = make("b.late", finding(Status.UNPROVEN), after=("a.root",))
    worse = make("c.worse", finding(Status.FAIL), after=("a.root",))
    results = judge(expected, evidence, [root, late, worse])
    assert [(one.check, one.caused_by) for one in results] == [
        ("c.worse", None), ("a.root", None), ("b.late", "a.root/node/gpu-0"),
    ]  # fmt: skip


def test_without_a_gpu_node_checks_are_unproven_and_follow(expected: Expected, evidence: Evidence) -> None:
    evidence.cluster["nodes"] = [{"metadata": {"name": "cp-0"}}]
    gone = [finding(Status.FAIL, Subject("node", name)) for name in ("gpu-0", "gpu-1")]
    results = judge(expected, evidence, [make("a.gone", *gone), make("b.mute", after=("a.gone",))])
    last = results[-1]
    assert (last.status, last.finding.reason, last.caused_by) == (Status.UNPROVEN, "NoGpuNodes", "a.gone/node/gpu-0")


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
            assert order.index(upstream.partition("/")[0]) <= order.index(one.id), f"{one.id} after {upstream}"


def test_every_source_can_be_opened_by_a_stranger() -> None:
    private = re.compile(r"\b(install|health|platform) facts\b|\bdesign:|\bsection \d|#\d")
    for one in registry.all_checks():
        told = " ".join((one.title, one.proves, one.rule, one.source, one.fix, one.avoid))
        assert not private.search(told), one.id


def test_a_rehearsal_is_told_by_every_tier(expected: Expected, evidence: Evidence) -> None:
    twin = dataclasses.replace(expected, cluster=dataclasses.replace(expected.cluster, rehearsal=True))
    assert judge(twin, evidence, [make("a.b", finding(Status.PASS))])[0].tier == "simulated"


def test_two_findings_about_one_subject_become_one_result(expected: Expected, evidence: Evidence) -> None:
    """Of results with one id, reports and `diff` would keep only one; the worst one stays, and tells of the rest."""
    check = make(
        "a.b",
        finding(Status.PASS, detail="fine"),
        finding(Status.WARN, detail="slow"),
        finding(Status.FAIL, detail="gone"),
        finding(Status.PASS, Subject("node", "gpu-1")),
    )
    found = {one.id: (one.status, one.finding.detail) for one in judge(expected, evidence, [check])}
    assert found == {
        "a.b/node/gpu-0": (Status.FAIL, "gone; cause: slow"),
        "a.b/node/gpu-1": (Status.PASS, ""),
    }


def test_without_expectations_nothing_is_excused_as_spot(healthy: Evidence) -> None:
    """A bundle without expected.json promises no group, and so no spot group."""
    nobody = Expected(Cluster(name="bundle", entry={}, groups=()), ())
    status = healthy.cluster["clusterpolicies.nvidia.com"][0]["status"]
    status["conditions"] = [{"type": "Ready", "status": "True", "reason": "NoGPUNodes"}]
    found = {one.check: one.finding for one in judge(nobody, healthy, list(registry.of_phase("check")))}
    assert not [one.cause for one in found.values() if "spot" in one.cause]
    assert (found["gpu.allocatable"].status, found["gpu.allocatable"].reason) == (Status.SKIP, "NothingExpected")
    assert (found["gpu.policy"].status, found["gpu.policy"].reason) == (Status.FAIL, "FalselyReady")
