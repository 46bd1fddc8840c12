"""NCCL all-reduce: did it run, over which transport, how fast, and were the sums right."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .. import nccl
from ..acceptance.verdicts import cut_short
from ..evidence import Evidence
from ..expected import Expected
from ..model import Finding, Status, Subject
from ..nccl_evidence import NcclRun, runs
from ..registry import check
from .subjects import name_of, node, passed, skipped

_UPSTREAM = ("probes.run", "nodes.present", "nodes.ready", "gpu.allocatable", "smi.pod", "smi.gpus")


@check(
    "nccl.run",
    title="NCCL all-reduce runs on two nodes and on all",
    proves="Every node takes part in a collective over the fabric.",
    rule="Every pod of the run ended with exit code 0, and the log shows every rank initialised.",
    source="health facts B.6 and E102",
    fix="Read the first error in logs/nccl-* of the bundle: gpuready nccl BUNDLE/logs/nccl-pair/*.log",
    needs=("pods", "nodes"),
    after=_UPSTREAM,
    phase="accept",
    tier="fabric",
)
def nccl_run(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """Exit codes, completeness, and the nodes that were left out."""
    done = runs(evidence)
    off = str(evidence.about.get("nccl_off") or "")
    cluster = Subject("cluster", expected.cluster.name)
    for name, reason in sorted(evidence.about.get("nccl_excluded", {}).items()):
        yield Finding(
            Status.UNPROVEN, node(name), "LeftOut", "node took no part in the NCCL runs", reason,
            fix="Mend or free the node, then run gpuready accept again.", required=not off.startswith("deselected"),
        )  # fmt: skip
    if not done:
        if off.startswith("deselected") or expected.node_count < 2:
            yield skipped(cluster, off or "one node has no fabric to test")
        else:
            why = off or cut_short(evidence)
            fix = "Free two nodes." if off else "Run gpuready accept again."
            yield Finding(Status.UNPROVEN, cluster, "NotRun", "NCCL did not run", why, fix=fix)
    for run in done:
        bad = [pod for pod in run.pods if pod.exit_code != 0]
        facts = run.report.to_json()
        subject = _subject(run, expected)
        where = tuple(f"logs/{run.workload}/{pod.pod}.log" for pod in (bad or list(run.pods))[:1])
        unfinished = len(run.pods) < len(run.nodes) or any(pod.exit_code is None for pod in run.pods)
        if unfinished and cut_short(evidence) and all(pod.exit_code in (0, None) for pod in run.pods):
            yield Finding(
                Status.UNPROVEN, subject, "CutShort", "the NCCL run did not end in time", cut_short(evidence),
                nodes=run.nodes, fix="Run gpuready accept again.",
            )  # fmt: skip
        elif bad or len(run.pods) < len(run.nodes):
            first = bad[0] if bad else None
            said = "a pod is missing"
            if first is not None:
                code = "no exit code" if first.exit_code is None else f"exit {first.exit_code}"
                said = f"{first.node or first.pod}: {first.waiting or code}"
            yield Finding(
                Status.FAIL, subject, "RunFailed", "the NCCL run failed", said, expected="exit 0 in every pod",
                nodes=tuple(sorted({pod.node for pod in bad if pod.node})), evidence=where,
            )  # fmt: skip
        elif not facts["complete"]:
            detail = "; ".join(facts["incomplete_because"])
            yield Finding(
                Status.UNPROVEN, subject, "LogIncomplete", "the NCCL log is not complete", detail, evidence=where,
                nodes=run.nodes,
            )  # fmt: skip
        else:
            version = ", ".join(facts["versions"]) or "unknown version"
            yield passed(subject, f"{facts['ranks']} ranks, NCCL {version}", evidence=where)


@check(
    "nccl.transport",
    title="every channel between nodes uses GPUDirect RDMA",
    proves="GPU memory goes to the NIC without a copy through the host, on every rail.",
    rule="Each NET channel of a node, send and receive, carries /GDRDMA; Socket is a fall-back; no NET line "
    "proves nothing.",
    source="health facts B.6: channel lines are the evidence, capability lines are not",
    fix="On that node: is the RDMA device in the pod, is nvidia_peermem or DMA-BUF there, are the links up?",
    avoid="Do not set NCCL_NET_GDR_LEVEL=SYS to make the line appear; that proves nothing.",
    needs=("pods", "nodes"),
    after=("nccl.run", "rdma.allocatable", "gpu.allocatable", "nccl.transport"),
    phase="accept",
    tier="fabric",
)
def nccl_transport(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """One verdict per node over all runs; the worst one counts."""
    done = runs(evidence)
    groups = {name_of(one): group for one, group in expected.gpu_nodes(evidence.objects("nodes"))}
    found: dict[str, Finding] = {}
    for run in done:
        facts = run.report.to_json()
        for host in facts["hosts"]:
            name = run.node(host)
            group = groups.get(name)
            rdma = group is not None and group.rdma != "none"
            finding = _transport(run, facts, host, name, rdma)
            if name not in found or _outweighs(finding, found[name]):
                found[name] = finding
    if not done:
        yield _nothing_ran(expected, evidence)
    for name in sorted({name for run in done for name in run.nodes} - found.keys()):
        yield Finding(Status.UNPROVEN, node(name), "NoRecords", "the NCCL log shows nothing of the node")
    yield from found.values()


@check(
    "nccl.errors",
    title="NCCL logged no error",
    proves="No link failed and no retry was hidden in a run that ended well.",
    rule="No line of the error classes of health facts B.7.",
    source="health facts B.7 and E109",
    fix="Look at the port that the detail names: link state, counters, cable.",
    needs=("pods",),
    after=("nccl.run", "nccl.transport"),
    phase="accept",
    tier="fabric",
)
def nccl_errors(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """Errors by class."""
    done = runs(evidence)
    if not done:
        yield _nothing_ran(expected, evidence)
    for run in done:
        errors: list[dict[str, Any]] = run.report.to_json()["errors"]
        subject = _subject(run, expected)
        if not errors:
            yield passed(subject)
        for number, error in enumerate(errors):
            place = " ".join(str(error[key]) for key in ("peer", "hca") if error.get(key))
            yield Finding(
                Status.FAIL,
                Subject(subject.kind, f"{subject.name} #{number + 1}"),
                "NcclError",
                "NCCL logged errors",
                f"{error['class']} x{error['count']} on {run.node(error.get('host') or '?')} {place}".strip(),
                nodes=tuple(run.node(error[key]) for key in ("host", "peer") if error.get(key)),
                evidence=(f"logs/{run.workload}",),
            )


@check(
    "nccl.bandwidth",
    title="all-reduce reaches the bandwidth of its fabric",
    proves="The fabric carries what it was bought for.",
    rule="Bus bandwidth at the largest size is at least 80 % of the baseline of this class of fabric (92 %: "
    "no warning), or of the floor that inventory gives under thresholds.",
    source="health facts C.3; inventory's `thresholds` comes first",
    fix="Find the slow node or rail: compare gpuready accept --nccl pair on other pairs.",
    needs=("pods", "nodes"),
    after=("nccl.run", "nccl.transport", "nccl.errors", "rdma.allocatable"),
    phase="accept",
    tier="fabric",
)
def nccl_bandwidth(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """Largest size against the floor."""
    done = runs(evidence)
    if not done:
        yield _nothing_ran(expected, evidence)
    groups = {name_of(one): group for one, group in expected.gpu_nodes(evidence.objects("nodes"))}
    for run in done:
        benchmark = run.report.to_json()["benchmark"]
        seen = benchmark["max_size_busbw_gbytes_s"] if benchmark else None
        subject = _subject(run, expected)
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
        given = expected.cluster.thresholds.get(run.workload.removeprefix("nccl-"))
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
        yield _nothing_ran(expected, evidence)
    for run in done:
        benchmark = run.report.to_json()["benchmark"]
        wrong = benchmark["out_of_bounds"] if benchmark else None
        subject = _subject(run, expected)
        if wrong is None:
            yield Finding(Status.UNPROVEN, subject, "NotValidated", "the benchmark validated nothing", nodes=run.nodes)
        elif wrong:
            yield Finding(
                Status.FAIL, subject, "WrongResults", "all-reduce returned wrong sums", f"{wrong} out of bounds",
                expected="0", observed=str(wrong), nodes=run.nodes, evidence=(f"logs/{run.workload}",),
            )  # fmt: skip
        else:
            yield passed(subject)


def _transport(run: NcclRun, facts: dict[str, Any], host: str, name: str, rdma: bool) -> Finding:
    """The verdict on one node in one run, from the channels that its own network carries."""
    networks = facts["networks_by_host"].get(host) or []
    by_nic = {
        tuple(key.split("/")[1:]): count
        for key, count in facts["transport"]["by_nic"].items()
        if key.split("/")[0] == host
    }
    total = {key: count["send"] + count["receive"] for key, count in by_nic.items()}
    # A peer that fell back to sockets drags this host's channels to it along; they are the peer's doing.
    own = {key: number for key, number in total.items() if not networks or key[0] in networks}
    channels, direct = sum(own.values()), sum(by_nic[key]["gdr"] for key in own)
    network = ", ".join(networks) or "no network named"
    where = (f"logs/{run.workload}",)
    if not rdma:
        return passed(node(name), f"{network}, {sum(total.values())} channels; no RDMA expected", evidence=where)
    if "Socket" in networks:
        reason, cause = "TcpFallback", "NCCL fell back to TCP sockets"
    elif not channels and total:
        guilty = tuple(run.node(other) for other, names in facts["networks_by_host"].items() if "Socket" in names)
        cause = "its only peer fell back to TCP sockets"
        return Finding(Status.UNPROVEN, node(name), "PeerFellBack", cause, network, nodes=guilty, evidence=where)
    elif not channels:
        return Finding(
            Status.UNPROVEN,
            node(name),
            "NoNetChannel",
            "the log shows no channel between nodes",
            network,
            evidence=where,
        )
    elif direct == 0:
        reason, cause = "NoGpuDirect", "RDMA runs without GPUDirect"
    elif direct < channels:
        reason, cause = "PartlyGpuDirect", "some channels run without GPUDirect RDMA"
    else:
        rails = facts["rails"].get(host) or {"used": [], "idle": []}
        used, known = len(rails["used"]), len(rails["used"]) + len(rails["idle"])
        detail = f"{network}, GPUDirect RDMA on {direct} of {channels} channels, {used} of {known} rails used"
        return passed(node(name), detail, evidence=where)
    likely = nccl.why_no_gdr(run.report)
    return Finding(
        Status.FAIL,
        node(name),
        reason,
        cause,
        f"{network}, GPUDirect RDMA on {direct} of {channels} channels",
        fix=f"Most likely: {likely[0].text} {likely[0].next}" if likely and reason != "TcpFallback" else None,
        expected="GPUDirect RDMA on every channel",
        observed=f"{direct} of {channels}",
        evidence=where,
    )


def _outweighs(new: Finding, old: Finding) -> bool:
    """The worse verdict counts; that a peer fell back says nothing where another run could tell."""
    if "PeerFellBack" in (new.reason, old.reason):
        return old.reason == "PeerFellBack"
    return new.status.rank > old.status.rank


def _subject(run: NcclRun, expected: Expected) -> Subject:
    return Subject("pair" if run.workload == "nccl-pair" else "cluster", run.name)


def _nothing_ran(expected: Expected, evidence: Evidence) -> Finding:
    """Without a run there is nothing to judge; whether that matters is nccl.run's to say."""
    cause = str(evidence.about.get("nccl_off") or "NCCL did not run")
    return skipped(Subject("cluster", expected.cluster.name), cause)
