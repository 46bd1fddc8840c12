"""What the NCCL benchmark itself says: how fast, and were the sums right."""

from __future__ import annotations

from collections.abc import Iterator

from .. import nccl
from ..evidence import Evidence
from ..expected import Expected
from ..model import Finding, Status
from ..nccl_evidence import runs
from ..registry import check
from .nccl import groups_of, nothing_ran, subject_of
from .subjects import passed


@check(
    "nccl.bandwidth",
    title="all-reduce reaches the bandwidth of its fabric",
    proves="The fabric carries what it was bought for.",
    rule="Bus bandwidth at the largest size is at least 80 % of the baseline of this class of fabric (92 %: "
    "no warning), or of the floor that inventory gives under thresholds.",
    source="health facts C.3; inventory's `thresholds` comes first",
    fix="Find the slow node or rail: compare gpuready accept --nccl pair on other pairs.",
    needs=("pods", "nodes"),
    after=("nccl.run", "nccl.transport", "nccl.rails", "nccl.errors", "rdma.allocatable"),
    phase="accept",
    tier="fabric",
)
def nccl_bandwidth(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """Largest size against the floor."""
    done = runs(evidence)
    if not done:
        yield nothing_ran(expected, evidence)
    groups = groups_of(expected, evidence)
    for run in done:
        benchmark = run.report.to_json()["benchmark"]
        seen = benchmark["max_size_busbw_gbytes_s"] if benchmark else None
        subject = subject_of(run, expected)
        where = (f"logs/{run.workload}",)
        if seen is None:
            yield Finding(
                Status.UNPROVEN,
                subject,
                "NoTable",
                "the log holds no benchmark table",
                evidence=where,
                nodes=run.nodes,
            )
            continue
        group = groups[run.nodes[0]]
        given = expected.cluster.thresholds.get(run.kind)
        floor = nccl.expected_floor(
            group.gpu_product, group.nics, group.nic_gbits_s, len(run.nodes), group.rdma != "none"
        )
        if given is not None:
            fail, warn, source = given, given, "inventory"
        elif floor is not None:
            fail, warn, source = floor.fail_gbytes_s, floor.warn_gbytes_s, floor.source
        else:
            yield Finding(
                Status.UNPROVEN, subject, "NoBaseline", "no baseline is known for this class of fabric",
                f"{seen:.1f} GB/s", observed=f"{seen:.1f} GB/s", required=False, evidence=where,
                fix="Give a floor in GB/s under `thresholds` of the inventory entry, as pair and all.",
            )  # fmt: skip
            continue
        detail = f"{seen:.1f} GB/s, floor {fail:.1f} GB/s ({source})"
        if seen >= warn:
            yield passed(subject, detail, evidence=where)
            continue
        slow = seen < fail
        yield Finding(
            Status.FAIL if slow else Status.WARN,
            subject,
            "BelowFloor" if slow else "BelowBaseline",
            "all-reduce is slower than its fabric should be" if slow else "all-reduce is a little slow",
            detail,
            expected=f">= {fail:.1f} GB/s",
            observed=f"{seen:.1f} GB/s",
            evidence=where,
            nodes=run.nodes,
        )


@check(
    "nccl.correct",
    title="the sums were right",
    proves="No silent data corruption on the way.",
    rule="The benchmark's own validation counts no wrong element.",
    source="health facts E108",
    fix="Take the nodes out and run dcgmi diag -r 3 on each; wrong sums are hardware until shown otherwise.",
    avoid="Do not train on these nodes.",
    needs=("pods",),
    after=("nccl.run",),
    phase="accept",
    tier="fabric",
)
def nccl_correct(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """#wrong and out of bounds."""
    done = runs(evidence)
    if not done:
        yield nothing_ran(expected, evidence)
    for run in done:
        benchmark = run.report.to_json()["benchmark"]
        wrong = benchmark["out_of_bounds"] if benchmark else None
        subject = subject_of(run, expected)
        if wrong is None:
            yield Finding(Status.UNPROVEN, subject, "NotValidated", "the benchmark validated nothing", nodes=run.nodes)
        elif wrong:
            yield Finding(
                Status.FAIL, subject, "WrongResults", "all-reduce returned wrong sums", f"{wrong} out of bounds",
                expected="0", observed=str(wrong), nodes=run.nodes, evidence=(f"logs/{run.workload}",),
            )  # fmt: skip
        else:
            yield passed(subject)
