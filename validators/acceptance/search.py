"""Finds what holds an all-reduce back: runs the rounds of a search as Jobs on the cluster.

What is pure comes first: whether to search, among whom and by which floors, and what pods measured.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any

from gpuready.charts_values.errors import DeadlineError, InputError

from .. import localise, nccl
from ..checks import benchmark
from ..checks import nccl as nccl_checks
from ..evidence import Evidence, Object
from ..expected import Expected
from ..model import Status
from ..nccl.bandwidth import FAIL_RATIO, WARN_RATIO
from ..nccl_evidence import NcclRun, runs
from . import manifests
from .plan import Plan, Target
from .run import Acceptance, Part
from .verdicts import not_started, verdict_of

# 24 GB/s per 200 Gb/s is what NCCL gets out of a NIC (its maintainers, nccl-tests issue 119).
RAIL_GBYTES_PER_GBIT = 0.12
_BOARD_GPUS = 8
# A ConfigMap holds a MiB at most.
_MOST_STATE = 900_000
# What must be alike for a search to go on from another's runs, and how old these may be.
_QUESTION = ("schema", "seed", "repeats", "floors", "nodes")
_RESUME_SECONDS = 3600.0
_LONGEST_HINT = 100
_OTHER_CAUSES = (
    nccl_checks.nccl_run,
    nccl_checks.nccl_transport,
    nccl_checks.nccl_rails,
    nccl_checks.nccl_errors,
    benchmark.nccl_correct,
)


@dataclass(frozen=True)
class Slow:
    """An all-reduce that fell short, and the nodes of its group among which the cause is."""

    run: NcclRun
    targets: tuple[Target, ...]
    ratio: float


def slow_runs(expected: Expected, evidence: Evidence, plan: Plan) -> tuple[list[Slow], dict[str, str]]:
    """The all-reduces to search for, the largest of each group; and by run why others are not searched."""
    found: dict[str, Slow] = {}
    refused: dict[str, str] = {}
    for run in runs(evidence):
        shortfall = benchmark.shortfall(expected, evidence, run)
        if shortfall is None:
            continue
        targets = plan.nccl.runs[run.workload]
        reason = _another_cause(expected, evidence, run)
        if run.nvlink_domain:
            reason = "it ran over NVLink between nodes, and a search measures NICs"
        if reason:
            refused[run.name] = reason
            continue
        ratio = FAIL_RATIO if shortfall is Status.FAIL else WARN_RATIO
        group = targets[0].group.name
        if group not in found or len(targets) >= len(found[group].targets):
            found[group] = Slow(run, targets, ratio)
    # A pair may be slow because of one who is slow in the run of all, where more partners are.
    everyone = {t[0].group.name: t for name, t in plan.nccl.runs.items() if name.startswith("nccl-all")}
    return [Slow(one.run, everyone.get(group, one.targets), one.ratio) for group, one in found.items()], refused


def _another_cause(expected: Expected, evidence: Evidence, run: NcclRun) -> str:
    """What a log has shown already to be wrong with one of the nodes; empty where nothing is."""
    for judge in _OTHER_CAUSES:
        for one in judge(expected, evidence):
            who = {one.subject.name, *one.nodes}
            if one.status is Status.FAIL and who & {run.name, *run.nodes}:
                return f"{one.cause} ({one.subject.name})"
    return ""


def rails_of(run: NcclRun) -> tuple[str, ...]:
    """The NICs that every host of a run lists under the same names, in NCCL's order; none where they differ."""
    devices = run.report.devices
    lists = {tuple(nic.name for nic in sorted(nics, key=lambda nic: nic.index)) for nics in devices.nics.values()}
    return lists.pop() if len(lists) == 1 and not devices.merged else ()


def floors(expected: Expected, evidence: Evidence, slow: Slow) -> dict[localise.Kind, float]:
    """The least bus bandwidths in GB/s of the runs of a search, by the bar that the all-reduce missed."""
    group = slow.targets[0].group
    found: dict[localise.Kind, float] = {}
    limits = benchmark.limits(expected, evidence, group, "net" if slow.run.kind == "net" else "pair", 2)
    if limits is not None:
        found["pair"] = limits.fail if slow.ratio == FAIL_RATIO else limits.warn
    alone = nccl.expected_floor(group.gpu_product, group.nics, group.nic_gbits_s, 1, group.rdma != "none")
    if alone is not None and group.gpus == _BOARD_GPUS:
        found["single"] = alone.fail_gbytes_s
    if group.rdma != "none" and group.nic_gbits_s:
        found["rail"] = found["path"] = round(slow.ratio * RAIL_GBYTES_PER_GBIT * group.nic_gbits_s, 1)
    return found


def start(expected: Expected, evidence: Evidence, slow: Slow) -> localise.Search:
    """A search among the nodes of a slow all-reduce."""
    rails = len(rails_of(slow.run)) if slow.targets[0].group.rdma != "none" else 0
    nodes = [localise.Node(one.node, one.leaf or None, rails) for one in slow.targets]
    return localise.start(nodes, floors=floors(expected, evidence, slow), votes=votes(slow))


def votes(slow: Slow) -> list[localise.Vote]:
    """Nodes that stand out in the log of the slow all-reduce: hints, by which pairs are put together.

    What most nodes have in common singles out none.
    """
    report = slow.run.report
    hints = [(host, "its order of NICs differs from its peers'") for host in sorted(report.devices.rails_mismatched)]
    hints += [(one.host, f"NCCL warned there: {one.text[:_LONGEST_HINT]}") for one in report.warnings if one.host]
    searched = {one.node for one in slow.targets}
    found = [localise.Vote(slow.run.node(host), why) for host, why in hints if slow.run.node(host) in searched]
    return found if 2 * len({vote.node for vote in found}) < len(searched) else []


def outcome(pods: Sequence[Object], count: int, rails: Sequence[str], *, in_full: bool) -> localise.Outcome:
    """What the pods of one run measured. Pods that never ran say nothing; those that never ended hang.

    ``in_full`` False says that they were not given the time to end.
    """
    seen = [verdict_of(pod) for pod in pods]
    if (absent := not_started(seen)) and not {one.index for one in seen if one.phase != "Pending"} & {*absent}:
        # One waited for another that was never placed: that says nothing of the fabric.
        return localise.Outcome()
    if any(one.exit_code not in (0, None) or one.message.get("wrong") for one in seen):
        return localise.Outcome(failed=True)
    if len(seen) < count or any(one.exit_code is None for one in seen):
        hangs = in_full and len(seen) == count and all(one.phase in ("Running", "Succeeded") for one in seen)
        return localise.Outcome(failed=hangs)
    first = next((one.message for one in seen if one.message.get("index") == 0), {})
    by_rail = {rails.index(name): _figures(series) for name, series in first.get("rails", {}).items() if name in rails}
    return localise.Outcome(busbw_gbytes_s=_figures(first.get("series", ())), per_rail=by_rail)


def _figures(series: Iterable[Any]) -> tuple[float, ...]:
    """Bandwidths; a lone GPU, which has nobody to reduce with, has none."""
    return tuple(float(figure) for figure in series if figure)


def resumed(fresh: localise.Search, rails: Sequence[str], time: str, left: str) -> tuple[localise.Search, str] | None:
    """The search of a killed run and when it began, where it is the same question: nodes, leaves, NICs and floors.

    ``left`` is the state that it kept, ``rails`` and ``time`` are those of this run. None where it is another
    question, or so old that the fabric may be another.
    """
    try:
        entries = json.loads(left or "{}").get("searches") or ()
        asked = fresh.to_json()
        for entry in entries:
            state = entry["state"]
            same = all(state[part] == asked[part] for part in _QUESTION) and entry["rails"] == list(rails)
            if same and _seconds(entry["time"], time) <= _RESUME_SECONDS:
                return localise.Search.from_json(state), entry["time"]
    except (AttributeError, KeyError, TypeError, ValueError, InputError):
        # Written by another version, or by somebody else.
        return None
    return None


def _seconds(earlier: str, later: str) -> float:
    return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()


def find(acceptance: Acceptance, expected: Expected, evidence: Evidence, plan: Plan, left: str = "") -> None:
    """Search for what holds slow all-reduces back; everything goes into the evidence, wave by wave.

    Where all are fast enough it does nothing. It ends where the time of the run is up. ``left`` is what the search
    of a killed run knew; it goes on from there where it asked the same.
    """
    slow, refused = slow_runs(expected, evidence, plan)
    if not slow and not refused:
        return
    about: dict[str, Any] = {"not_searched": refused, "searches": []}
    evidence.about["nccl_search"] = about
    if slow:
        acceptance.open_search()
    for number, one in enumerate(slow):
        # One at a time: a later group's state stands beside those that are done.
        entry: dict[str, Any] = {
            "workload": one.run.workload,
            "missed": "fail" if one.ratio == FAIL_RATIO else "warn",
            "nodes": [target.node for target in one.targets],
            "time": evidence.about["time"],
        }
        about["searches"].append(entry)
        search = start(expected, evidence, one)
        earlier = resumed(search, rails_of(one.run), entry["time"], left)
        if earlier is not None:
            search, entry["time"] = earlier
            entry["resumed"] = len(search.outcomes)
        try:
            _search(acceptance, search, one, number, entry, evidence)
        except DeadlineError as error:
            entry["stopped"] = str(error)
            return


def _search(
    acceptance: Acceptance, search: localise.Search, slow: Slow, number: int, entry: dict[str, Any], evidence: Evidence
) -> None:
    names = rails_of(slow.run)
    by_name = {target.node: target for target in slow.targets}
    began = time.monotonic()
    _note(acceptance, search, names, began, entry, evidence)
    while planned := search.next_round():
        told = False
        for wave, members in groupby(sorted(planned, key=lambda run: run.wave), key=lambda run: run.wave):
            runs_at_once = list(members)
            parts = [
                Part(
                    f"search{number}-{run.id}",
                    tuple(by_name[name] for name in run.nodes),
                    tuple(names[rail] for rail in run.rails),
                    run.repeats,
                )
                for run in runs_at_once
            ]
            what = f"search for the slow part, round {search.rounds} of at most 4: {len(parts)} runs at once"
            workload = f"{manifests.SEARCH}-{number}-r{search.rounds}w{wave}"
            done = acceptance.wave(workload, parts, what, evidence)
            for run, pods in zip(runs_at_once, done.pods, strict=True):
                measured = outcome(pods, len(run.nodes), names, in_full=done.in_full)
                told = told or measured != localise.Outcome()
                search.record(run.id, measured)
            _note(acceptance, search, names, began, entry, evidence)
        if not told:
            entry["stopped"] = f"no run of round {search.rounds} could take place"
            return


def _note(
    acceptance: Acceptance,
    search: localise.Search,
    rails: Sequence[str],
    began: float,
    entry: dict[str, Any],
    evidence: Evidence,
) -> None:
    """Put what is known into the evidence and onto the cluster."""
    entry |= {
        "rounds": search.rounds,
        "runs": len(search.runs),
        "waves": len({(run.round, run.wave) for run in search.runs}),
        "seconds": round(time.monotonic() - began, 1),
        "rails": list(rails),
        "verdicts": [one.to_json() for one in search.verdicts()],
        "state": search.to_json(),
    }
    text = json.dumps(evidence.about["nccl_search"])
    if len(text) < _MOST_STATE:
        acceptance.keep_search({manifests.SEARCH_FILE: text})
