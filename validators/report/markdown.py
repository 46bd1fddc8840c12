"""Markdown for a hand-over ticket or a wiki page."""

from __future__ import annotations

from ..model import Run
from .groups import group
from .text import answer, counts


def render(run: Run) -> str:
    """Answer, remedy, then a table of what is wrong and one of what was proved."""
    groups = group(run.results)
    bad = [one for one in groups if one.bad]
    good = [one for one in groups if not one.bad]
    out = [f"# {_cell(answer(run))}", ""]
    if run.cluster:
        out.append(f"Cluster `{run.cluster.name}` ({run.cluster.server}, uid `{run.cluster.uid}`), {run.started}.")
    out.append(f"{counts(run)}.")
    out += [f"\n> {_cell(note)}" for note in run.notes]
    if bad:
        out += [
            "",
            "## To look at",
            "",
            "| status | check | cause | where | detail | fix |",
            "|---|---|---|---|---|---|",
        ]
        for one in bad:
            first = one.first
            fix = f"follows from {one.follows}" if one.follows else first.fix
            cells = (
                first.status.value,
                first.check,
                first.finding.cause,
                one.subjects,
                first.finding.detail,
                fix,
            )
            out.append(f"| {' | '.join(map(_cell, cells))} |")
    if good:
        out += ["", "## Settled", "", "| status | check | where | detail | tier |", "|---|---|---|---|---|"]
        for one in good:
            first = one.first
            detail = first.finding.detail or first.finding.cause
            row = (first.status.value, first.check, one.subjects, detail, first.tier)
            out.append(f"| {' | '.join(map(_cell, row))} |")
    return "\n".join(out) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
