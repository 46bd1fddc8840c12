"""The report for people: the answer first, then what to run, what not to do, counts, then the groups."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from ..model import Result, Run, Status
from .groups import ResultGroup, group

STYLES = {
    Status.PASS: "green",
    Status.SKIP: "dim",
    Status.WARN: "yellow",
    Status.UNPROVEN: "magenta",
    Status.ERROR: "magenta",
    Status.FAIL: "bold red",
}
_WORDS = {"pass": "PASS", "fail": "FAIL", "incomplete": "INCOMPLETE"}
_INDENT = " " * 10
# More groups than this hide the answer; the JSON has them all.
_SHOWN_BAD_GROUPS = 20
_SHOWN_DETAILS = 8
# So many skips of one group for one cause are one line.
_FOLDED = 4


def lines(run: Run) -> list[Text]:
    """The report as styled lines."""
    groups = group(run.results)
    bad = [one for one in groups if one.bad]
    out = [_answer(run, bad)]
    if bad and run.verdict != "pass":
        first = bad[0].first
        if first.fix:
            out.append(_field("fix", first.fix, indent=""))
        if first.avoid:
            out.append(_field("avoid", first.avoid, indent=""))
    out.append(Text(counts(run), "dim"))
    out += [Text(note, "dim") for note in run.notes]
    for one in bad[:_SHOWN_BAD_GROUPS]:
        out += [Text(), *_entry(one)]
    if len(bad) > _SHOWN_BAD_GROUPS:
        out += [Text(), Text(f"and {len(bad) - _SHOWN_BAD_GROUPS} more groups; -o json lists them", "dim")]
    good = [one for one in groups if not one.bad]
    if good:
        out += [
            Text(),
            *(line for some in _alike(good) for line in (_short(some[0]) if len(some) == 1 else _fold(some))),
        ]
    return out


def answer(run: Run) -> str:
    """The first line, unstyled."""
    return _answer(run, [one for one in group(run.results) if one.bad]).plain


def write(run: Run, console: Console) -> None:
    """Print the report; long lines are left to the terminal, so that they can be searched."""
    for line in lines(run):
        console.print(line, soft_wrap=True, highlight=False)


def counts(run: Run) -> str:
    """How many of each status, over how many checks, in what time."""
    some = [f"{number} {status}" for status, number in reversed(run.counts.items()) if number]
    checks = len({result.check for result in run.results})
    text = f"{', '.join(some) or 'no results'}; {checks} checks, {run.seconds:.1f} s"
    return text + (f", {run.api_calls} API calls" if run.cluster else "")


def _answer(run: Run, bad: list[ResultGroup]) -> Text:
    out = Text()
    if run.cluster and run.cluster.rehearsal:
        out.append("REHEARSAL ", "bold cyan")
    style = {"pass": "bold green", "fail": "bold red", "incomplete": "bold magenta"}[run.verdict]
    out.append(_WORDS[run.verdict], style)
    if bad and run.verdict != "pass":
        one = bad[0]
        out.append(f" {one.first.check}: {one.first.finding.cause} ({one.subjects})")
    elif run.verdict == "incomplete":
        out.append(" nothing was judged")
    else:
        out.append(f" {run.kind}: {_good(run, bad)}")
    return out


def _good(run: Run, bad: list[ResultGroup]) -> str:
    nodes = {r.finding.subject.name for r in run.results if r.finding.subject.kind == "node"}
    text = f"{len({r.check for r in run.results})} checks on {len(nodes)} nodes"
    warned = run.counts["warn"]
    if not warned:
        return text
    first = next(one for one in bad if one.first.status is Status.WARN)
    return f"{text}, {warned} warning{'s' if warned > 1 else ''}: {first.first.check} ({first.subjects})"


def _entry(one: ResultGroup) -> list[Text]:
    first = one.first
    head = Text()
    head.append(f"{first.status.value.upper():<10}", STYLES[first.status])
    head.append(f"{first.check}  {first.finding.cause}  ({one.count})")
    out = [head, _field("where", one.subjects)]
    if first.finding.detail:
        label = "e.g." if len(one.results) > 1 else "seen"
        out.append(_field(label, f"{first.finding.subject.name}: {first.finding.detail}"))
    if one.follows:
        out.append(_field("after", f"follows from {one.follows}"))
    elif first.fix:
        out.append(_field("fix", first.fix))
    if first.finding.evidence:
        out.append(_field("see", " ".join(first.finding.evidence)))
    out.append(_field("tier", first.tier))
    return out


def _field(label: str, text: str, indent: str = _INDENT) -> Text:
    out = Text(indent)
    out.append(f"{label:<7}", "dim")
    out.append(text)
    return out


def _alike(groups: list[ResultGroup]) -> list[list[ResultGroup]]:
    """Skips for one cause, of one group of checks and behind each other, are told together where they are many."""
    runs: list[list[ResultGroup]] = []
    for one in groups:
        last = runs[-1][0].first if runs else None
        family, cause = one.first.check.partition(".")[0], one.first.finding.cause
        skips = one.first.status is Status.SKIP and last is not None and last.status is Status.SKIP
        if skips and last and (family, cause) == (last.check.partition(".")[0], last.finding.cause):
            runs[-1].append(one)
        else:
            runs.append([one])
    return [some for run in runs for some in ([run] if len(run) >= _FOLDED else [[one] for one in run])]


def _fold(some: list[ResultGroup]) -> list[Text]:
    first = some[0].first
    head = Text()
    head.append(f"{first.status.value:<10}", STYLES[first.status])
    head.append(f"{first.check.partition('.')[0] + '.*':<20}")
    head.append(f" {len(some)} checks: {first.finding.cause}", "dim")
    return [head]


def _short(one: ResultGroup) -> list[Text]:
    """A settled group: one line, and where its subjects differ a line for each of the first few."""
    first = one.first
    head = Text()
    head.append(f"{first.status.value:<10}", STYLES[first.status])
    head.append(f"{first.check:<20}")
    details = {result.finding.detail for result in one.results}
    if first.status is Status.SKIP:
        head.append(f" {first.finding.cause}", "dim")
    elif len(one.results) == 1:
        head.append(f" {_about(first)}")
    elif len(details) == 1:
        head.append(f" {one.count}" + (f", each {first.finding.detail}" if first.finding.detail else ""))
    else:
        head.append(f" {one.count}")
        shown = one.results[:_SHOWN_DETAILS]
        rest = len(one.results) - len(shown)
        more = [Text(f"{'':<31}and {rest} more", "dim")] if rest else []
        return [head, *(Text(f"{'':<31}{_about(result)}") for result in shown), *more]
    return [head]


def _about(result: Result) -> str:
    return f"{result.finding.subject.name}: {result.finding.detail or 'as expected'}"
