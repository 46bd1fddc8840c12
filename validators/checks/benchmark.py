"""What the NCCL benchmark itself says: how fast, and were the sums right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from gpuready.charts_values.inventory import Group

from .. import nccl
from ..acceptance import baseline
from ..evidence import Evidence
from ..expected import Expected
from ..model import Finding, Status, Subject
from ..nccl.bandwidth import FAIL_RATIO, WARN_RATIO
from ..nccl_evidence import LARGEST_BYTES, NcclRun, runs
from ..registry import check
from .nccl import groups_of, nothing_ran, subject_of
from .subjects import passed, skipped


@dataclass(frozen=True)
class Limits:
    """Bus bandwidths in GB/s below which an all-reduce fails, or deserves a look, and where they come from."""

    fail: float
    warn: float
    source: str


def limits(
    expected: Expected, evidence: Evidence, group: Group, kind: str, nodes: int, size: int = LARGEST_BYTES
) -> Limits | None:
    """The higher of what this cluster reached before and what holds for its class; None where neither is known."""
    own = baseline.find(evidence, group, kind, nodes, size)
    found = []
    if own is not None:
        figure, when = own
        source = f"{figure:.1f} GB/s of this cluster, {when}" if when else f"{figure:.1f} GB/s of this cluster"
        found.append(Limits(round(figure * FAIL_RATIO, 1), round(figure * WARN_RATIO, 1), source))
    given = expected.cluster.thresholds.get(kind)
    floor = nccl.expected_floor(group.gpu_product, group.nics, group.nic_gbits_s, nodes, group.rdma != "none")
    if given is not None:
        found.append(Limits(given, given, "inventory"))
    elif floor is not None:
        found.append(Limits(floor.fail_gbytes_s, floor.warn_gbytes_s, floor.source))
    if not found:
        return None
    first = max(found, key=lambda one: one.fail)
    return Limits(first.fail, max(one.warn for one in found), first.source)


def shortfall(expected: Expected, evidence: Evidence, run: NcclRun) -> Status | None:
    """FAIL or WARN where an all-reduce is too slow; None where it is not, or nothing tells."""
    reached = _reached(expected, evidence, run)
    if reached is None or reached[1] is None or reached[0] >= reached[1].warn:
        return None
    return Status.FAIL if reached[0] < reached[1].fail else Status.WARN


def _reached(expected: Expected, evidence: Evidence, run: NcclRun) -> tuple[float, Limits | None] | None:
    """The bus bandwidth of a run at its largest size, and its limits; None where the log holds no table."""
    benchmark = run.report.to_json()["benchmark"]
    seen = benchmark["max_size_busbw_gbytes_s"] if benchmark else None
    if seen is None:
        return None
    group = groups_of(expected, evidence)[run.nodes[0]]
    size = benchmark["rows"][-1]["bytes"]
    return seen, limits(expected, evidence, group, run.kind, len(run.nodes), size)


# What explains a slow all-reduce; a search that could not tell explains nothing.
_SLOW = tuple(f"nccl.slow/{kind}/*" for kind in ("node", "nic", "pair", "object"))
# What a search blames: reason and cause for a node as a whole, and where it names NICs.
_BLAMED = {
    "node": ("NodeSlow", "a node is slower than the others"),
    "rail": ("NicSlow", "a NIC is slower than the others"),
    "flaky": ("NodeFlaky", "a node is slow now and then"),
    "leaf": ("LeafSlow", "what leads out of a leaf is slow"),
    "path": ("PathSlow", "the path between two nodes or leaves is slow"),
}
_NIC_FLAKY = ("NicFlaky", "a NIC is slow now and then")
_INSIDE_FIX = (
    "On that node: nvidia-smi nvlink -s and -e, nvidia-smi topo -m, clocks and power limits, then dcgmi diag -r 3."
)
_INSIDE = ("NodeSlowInside", "a node is slow by itself, without any NIC")


@check(
    "nccl.slow",
    title="no node, NIC or path holds the others back",
    proves="A slow all-reduce has a name: the node, NIC, leaf or path behind it, by runs with different partners.",
    rule="Where an all-reduce misses its floor and no other check names the cause, at most four rounds of short runs "
    "side by side: alone, in pairs, suspects with good partners NIC by NIC, and again with others. Blamed is what was "
    "slow with two partners that are good without it.",
    source="GoogleCloudPlatform/cluster-health-scanner (suspects again with good partners) and "
    "oracle-quickstart/oci-hpc (two different partners must agree)",
    fix="On that node: port state, counters and PCIe link of the NIC named, then cable and switch port; "
    "all NICs of a node: PCIe ACS, IOMMU, power and clocks.",
    avoid="Do not lower thresholds in inventory, and do not train on it meanwhile: every all-reduce waits for it.",
    needs=("pods", "nodes"),
    after=("nccl.run", "nccl.transport", "nccl.rails", "nccl.errors", "rdma.allocatable"),
    phase="accept",
    tier="fabric",
)
def nccl_slow(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """What the search blames, or why it cannot tell."""
    done = runs(evidence)
    if not done:
        yield nothing_ran(expected, evidence)
        return
    cluster = Subject("cluster", expected.cluster.name)
    about = evidence.about.get("nccl_search") or {}
    searches = about.get("searches") or []
    for one in searches:
        yield from _searched(one, cluster)
    if searches:
        return
    short = [run for run in done if shortfall(expected, evidence, run) is not None]
    judged = [reached for run in done if (reached := _reached(expected, evidence, run)) and reached[1]]
    if not judged:
        yield skipped(cluster, "no floor is known that would tell a slow all-reduce")
    elif not short:
        yield passed(cluster, "no all-reduce is too slow, so there was nothing to search for")
    reasons = about.get("not_searched") or {}
    for run in short:
        reason = reasons.get(run.name) or "that takes --nccl all"
        yield skipped(subject_of(run, expected), "no search for what slows an all-reduce", reason)


def _searched(search: dict[str, Any], cluster: Subject) -> Iterator[Finding]:
    """The findings of one search."""
    cost = f"{search['runs']} runs in {search['rounds']} rounds, {search['seconds']:.0f} s"
    blamed = [one for one in search["verdicts"] if one["cause"] in _BLAMED]
    for one in blamed:
        nics = [search["rails"][rail] for rail in one["rails"]] if len(one["nodes"]) == 1 else []
        reason, cause = _BLAMED[one["cause"]] if one["cause"] != "flaky" or not nics else _NIC_FLAKY
        inside = one["cause"] == "node" and _alone(search, one["runs"])
        if inside:
            reason, cause = _INSIDE
        detail = f"{one['reason']}; confidence {one['confidence']:g}; runs {', '.join(one['runs'])} of {cost}"
        for subject, rail in _subjects(one, nics):
            seen, usual = _rates(search, one["runs"], rail)
            yield Finding(
                Status.WARN if search.get("missed") == "warn" else Status.FAIL,
                subject,
                reason,
                cause,
                f"{seen:.1f} of {usual:.1f} GB/s; {detail}" if usual else detail,
                expected=f"about {usual:.1f} GB/s" if usual else None,
                observed=f"{seen:.1f} GB/s" if usual else None,
                nodes=tuple(one["nodes"]),
                evidence=(f"logs/{search['workload']}",),
                fix=_INSIDE_FIX if inside else None,
            )
    if blamed:
        return
    open_ones = [one for one in search["verdicts"] if one["cause"] == "undecided"]
    told = f"{open_ones[0]['subject']}: {open_ones[0]['reason']}" if open_ones else "each is good with others"
    cause, why = "the search names no culprit", f"{told}; {cost}"
    if search.get("stopped"):
        cause, why = "the search for the slow part was cut short", f"{search['stopped']}; {why}"
    elif len(search["nodes"]) == 2:
        cause = "one of two nodes is slow, and without a third it cannot be told which"
        slow = _slow_nics(search)
        why = f"between them {slow}; {cost}" if slow else why
    yield Finding(
        Status.UNPROVEN, cluster, "Undecided", cause, why, required=False,
        nodes=tuple(name for one in open_ones for name in one["nodes"]), evidence=(f"logs/{search['workload']}",),
        fix="Free more nodes of the group and run gpuready accept again; look at the link counters of those named.",
    )  # fmt: skip


def _alone(search: dict[str, Any], ids: Sequence[str]) -> bool:
    """Whether these are runs of one node each."""
    return {len(run[2]) for run in search["state"]["runs"] if run[0] in ids} == {1}


def _subjects(verdict: dict[str, Any], nics: Sequence[str]) -> Iterator[tuple[Subject, int | None]]:
    """Whom a verdict is about, with the rail that it names."""
    nodes = verdict["nodes"]
    if nics:
        for rail, nic in zip(verdict["rails"], nics, strict=True):
            yield Subject("nic", f"{nodes[0]}/{nic}"), rail
    elif verdict["leaves"]:
        yield Subject("object", " - ".join(verdict["leaves"])), None
    else:
        yield Subject("node" if len(nodes) == 1 else "pair", "+".join(nodes)), None


def _rates(search: dict[str, Any], ids: Sequence[str], rail: int | None) -> tuple[float, float]:
    """Bus bandwidth in GB/s of the runs that accuse, and of the others like them; 0 where none tells."""
    outcomes = search["state"]["outcomes"]
    # Runs of one NIC and runs of all compare only among themselves.
    split = any(outcomes.get(one, {}).get("rails") for one in ids)
    accusing = [outcomes[one] for one in ids if one in outcomes and bool(outcomes[one].get("rails")) == split]
    mine = [figure for one in accusing for figure in _figures(one, rail)]
    sizes = {run[0]: len(run[2]) for run in search["state"]["runs"]}
    alike = {name for name, size in sizes.items() if size in {sizes[one] for one in ids}} - set(ids)
    others = [one for name, one in outcomes.items() if name in alike and bool(one.get("rails")) == split]
    usual = [figure for one in others for figure in _figures(one, None)]
    return (median(mine), median(usual)) if mine and usual else (0.0, 0.0)


def _slow_nics(search: dict[str, Any]) -> str:
    """The NICs of the last run by rail that reach less than they should beside the others, with their GB/s."""
    split = [one["rails"] for one in search["state"]["outcomes"].values() if one.get("rails")]
    if not split:
        return ""
    rates = {search["rails"][rail]: median(figures) for rail, *figures in split[-1] if figures}
    usual = median(rates.values())
    slow = {nic: rate for nic, rate in rates.items() if rate < FAIL_RATIO * usual}
    told = ", ".join(f"{nic} is slow: {rate:.1f} of {usual:.1f} GB/s" for nic, rate in slow.items())
    return told or f"all NICs are alike: {usual:.1f} GB/s"


def _figures(outcome: dict[str, Any], rail: int | None) -> list[float]:
    """The figures of one rail, or of all of them where none is named; of the run where it is not split."""
    split = [figure for number, *figures in outcome.get("rails", ()) if rail in (None, number) for figure in figures]
    return split or outcome.get("busbw", [])


@check(
    "nccl.bandwidth",
    title="all-reduce reaches the bandwidth of its fabric",
    proves="The fabric carries what it was bought for.",
    rule="Bus bandwidth at the largest size is at least 80 % (92 %: no warning) of what this cluster reached when it "
    "was accepted, and of the baseline of its class of fabric, or at least the floor under thresholds in inventory.",
    source="inventory's `thresholds`, else ConfigMap gpuready/gpuready-baseline and validators/nccl/bandwidth.py, "
    "with the source of each figure; NVIDIA/nccl-tests, doc/PERFORMANCE.md, on bus bandwidth",
    fix="See nccl.slow: with --nccl all a search names the node or NIC, where enough nodes are idle.",
    needs=("pods", "nodes"),
    after=("nccl.run", "nccl.transport", "nccl.rails", "nccl.errors", *_SLOW, "rdma.allocatable"),
    phase="accept",
    tier="fabric",
)
def nccl_bandwidth(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """Largest size against the floor."""
    done = runs(evidence)
    if not done:
        yield nothing_ran(expected, evidence)
    for run in done:
        reached = _reached(expected, evidence, run)
        subject = subject_of(run, expected)
        where = (f"logs/{run.workload}",)
        if reached is None:
            yield Finding(
                Status.UNPROVEN,
                subject,
                "NoTable",
                "the log holds no benchmark table",
                evidence=where,
                nodes=run.nodes,
            )
            continue
        seen, bar = reached
        if bar is None:
            yield Finding(
                Status.UNPROVEN, subject, "NoBaseline", "no baseline is known for this class of fabric",
                f"{seen:.1f} GB/s", observed=f"{seen:.1f} GB/s", required=False, evidence=where,
                fix="Give a floor in GB/s under `thresholds` of the inventory entry, as pair and all.",
            )  # fmt: skip
            continue
        fail, warn, source = bar.fail, bar.warn, bar.source
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
    source="NVIDIA/nccl-tests 2.19, src/util.cu (Out of bounds values) and the column #wrong",
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
