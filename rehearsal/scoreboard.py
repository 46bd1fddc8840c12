"""The scoreboard: what the checks make of every fault, and of healthy fleets that differ.

python -m gpuready.rehearsal.scoreboard docs/reference/faults.md

Each fault is injected alone, judged by the command that must see it, and healed. Each healthy fleet is judged
by both commands. Nothing here knows how a check works: it reads the JSON that a user gets.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpuready.charts_values.errors import GpureadyError, ToolError
from gpuready.validators import cli
from gpuready.validators.model import Run
from gpuready.validators.report import text

from . import controlplane, faults, healthy, rehearse
from .faults import Fault
from .state import State

Result = Mapping[str, Any]

PROFILE = "h100-ib"
NODES = 4
# Healthy fleets: so many of each profile, each different.
VARIATIONS = 4
BAD = ("warn", "unproven", "error", "fail")


@dataclass(frozen=True)
class Score:
    """What a report made of one fault.

    ``found``: the check that must find it does. ``first``: that is the first result, and it names the node
    that was hit. ``explained``: every other bad result follows from it, and is one that may. ``healed``:
    afterwards nothing is bad. ``answer`` is the first line of the report, ``wrong`` what was not as it must be.
    """

    fault: Fault
    found: bool
    first: bool
    explained: bool
    healed: bool
    answer: str
    wrong: str = ""

    @property
    def full(self) -> bool:
        """All four."""
        return self.found and self.first and self.explained and self.healed


def score(now: State, fault: Fault, look: Callable[[], None] = lambda: None) -> Score:
    """Inject, judge, heal, judge again. The cluster must be installed and healthy.

    ``look`` is called while the fault is in.
    """
    node = faults.inject(now.folder, fault.name)
    try:
        faults.settle(now.folder)
        look()
        report = judged(fault.phase)
    finally:
        faults.heal(now.folder, fault.name)
        faults.settle(now.folder)
    after = alarms(judged("check"))
    results = report["results"]
    bad = [one for one in results if one["status"] in BAD]
    roots = {one["id"] for one in bad if one["check"] == fault.finding}
    first = bool(bad) and bad[0]["id"] in roots and (not node or _names(bad[0], node))
    stray = [one["id"] for one in bad if one["id"] not in roots and not _follows(one, roots, results, fault)]
    problems = [
        *([] if roots else [f"{fault.finding} finds nothing"]),
        *([f"first is {bad[0]['id']}: {bad[0]['detail']}"] if bad and not first else []),
        *([f"not explained: {', '.join(stray)}"] if stray else []),
        *([f"after healing: {', '.join(after)}"] if after else []),
    ]
    return Score(fault, bool(roots), first, not stray, not after, _answer(report), "; ".join(problems))


def fleets(now: State, profile: str, seed: int) -> Iterator[tuple[str, list[str]]]:
    """Vary an installed healthy fleet; yields what it was like, and the alarms that it raised, each a false one."""
    chance = random.Random(f"{profile}/{seed}")
    for number in range(VARIATIONS):
        with healthy.varied(now, chance) as fleet:
            faults.settle(now.folder)
            phases = ("check", "accept") if fleet.idle else ("check",)
            found = [f"{phase}: {one}" for phase in phases for one in alarms(judged(phase, fleet.inventory))]
        yield f"{profile} {number + 1}: {fleet.title}", found


def judged(phase: str, inventory: Path | None = None) -> dict[str, Any]:
    """The JSON report of `gpuready check` or `gpuready accept` on the rehearsal of $GPUREADY_STATE_DIR."""
    more = ["--inventory", str(inventory)] if inventory else []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.json"
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            cli.main([phase, "--cluster", "rehearsal", *more, "-o", "json", "--output-file", str(file)])
        if not file.is_file():
            raise ToolError(f"gpuready {phase} left no report: {' '.join(said.getvalue().split())}")
        report: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return report


def alarms(report: Mapping[str, Any]) -> list[str]:
    """The bad results of a report in a few words; what is not required and merely unproven alarms nobody."""
    return [
        f"{one['id']} {one['status']}: {one['cause']} ({one['detail']})"
        for one in report["results"]
        if one["status"] in BAD and (one["required"] or one["status"] != "unproven")
    ]


def markdown(scores: Sequence[Score], healthy_fleets: int, false_alarms: int) -> str:
    """docs/reference/faults.md."""
    total = len(scores)
    lines = [
        "# Faults and scoreboard",
        "",
        "<!-- Written by `make scoreboard`; the tests measure it again. -->",
        "",
        "What `gpuready rehearse inject NAME` can break, and what the checks make of it. *Found*: the check that must",
        "find it does. *First*: it is the first line of the report and names the node. *Causes*: everything else that",
        "is bad names it as its cause. *Healed*: after `gpuready rehearse heal NAME` nothing is bad.",
        "",
        f"{sum(one.found for one in scores)} of {total} found, {sum(one.first for one in scores)} of {total} first, "
        f"causes right in {sum(one.explained for one in scores)} of {total}; "
        f"{false_alarms} false alarms over {healthy_fleets} randomised healthy fleets.",
        "",
        "| fault | what breaks | command | found by | found | first | causes | healed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    table, answers = zip(*map(rows, scores), strict=True)
    lines += [*table, "", "The first line of each report:", "", "```text", *answers, "```", ""]
    return "\n".join(lines)


def rows(score: Score) -> tuple[str, str]:
    """The lines of the page about one fault: its row of the table, and the report's first line."""
    fault = score.fault
    marks = " | ".join("yes" if good else "no" for good in (score.found, score.first, score.explained, score.healed))
    row = f"| `{fault.name}` | {fault.title} | {fault.phase} | `{fault.finding}` | {marks} |"
    return row, f"{fault.name}: {score.answer}"


def _follows(one: Result, roots: set[str], results: Sequence[Result], fault: Fault) -> bool:
    """Whether a bad result may follow from the fault, and its chain of causes ends there."""
    if one["check"] not in fault.follows:
        return False
    by_id = {result["id"]: result for result in results}
    seen: set[str] = set()
    cause = one["caused_by"]
    while cause is not None and cause not in seen:
        if cause in roots:
            return True
        seen.add(cause)
        cause = by_id[cause]["caused_by"] if cause in by_id else None
    return False


def _names(result: Result, node: str) -> bool:
    return node in (result["subject"]["name"], *result.get("nodes", ())) or node in result["detail"]


def _answer(report: Mapping[str, Any]) -> str:
    """The first line of the text report."""
    return text.answer(Run.from_json(report))


@contextlib.contextmanager
def installed(profile: str, nodes: int) -> Iterator[State]:
    """A rehearsal cluster with the platform on it, in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="scoreboard-") as folder:
        state = Path(folder) / "state"
        before = dict(os.environ)
        os.environ |= {"GPUREADY_STATE_DIR": str(state), "CLUSTER": "rehearsal"}
        try:
            now = controlplane.up(state, nodes=nodes, profile=profile, leash=os.getpid())
            rehearse.install(Path.cwd())
            yield now
        finally:
            controlplane.down(state)
            os.environ.clear()
            os.environ.update(before)


def main(file: Path) -> int:
    """Measure everything and write the page; returns 1 where a score is not full."""
    scores, alarmed, count = [], 0, 0
    with installed(PROFILE, NODES) as now:
        for fault in faults.catalogue():
            scores.append(score(now, fault))
            print(f"{fault.name:<24} {scores[-1].wrong or 'ok'}", file=sys.stderr, flush=True)
    for profile in healthy.PROFILES:
        with installed(profile, healthy.nodes(profile)) as now:
            for title, found in fleets(now, profile, seed=0):
                count, alarmed = count + 1, alarmed + len(found)
                print(f"{title}: {'; '.join(found) or 'ok'}", file=sys.stderr, flush=True)
    file.write_text(markdown(scores, count, alarmed), encoding="utf-8")
    return 0 if alarmed == 0 and all(one.full for one in scores) else 1


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1])))
    except GpureadyError as error:
        sys.exit(f"gpuready: {error}")
