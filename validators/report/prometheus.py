"""A text file for node_exporter: one gauge per cluster, check and subject, no free text in labels."""

from __future__ import annotations

from ..model import Run


def render(run: Run) -> str:
    """0 pass, 1 skip, 2 warn, 3 unproven, 4 error, 5 fail.

    The label ``cluster`` keeps the files of several clusters in one folder apart; a run without a cluster has none.
    """
    cluster = f'cluster="{_escape(run.cluster.name)}",' if run.cluster and run.cluster.name else ""
    out = [
        "# HELP gpuready_result Status of a check: 0 pass, 1 skip, 2 warn, 3 unproven, 4 error, 5 fail.",
        "# TYPE gpuready_result gauge",
    ]
    for result in sorted(run.results, key=lambda result: result.id):
        subject = result.finding.subject
        labels = f'{cluster}check="{result.check}",kind="{subject.kind}",subject="{_escape(subject.name)}"'
        out.append(f"gpuready_result{{{labels}}} {result.status.rank}")
    out += [
        "# HELP gpuready_exit_code Exit code of the run: 0 pass, 1 fail, 2 incomplete.",
        "# TYPE gpuready_exit_code gauge",
        f'gpuready_exit_code{{{cluster}kind="{run.kind}"}} {run.exit_code}',
    ]
    return "\n".join(out) + "\n"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")
