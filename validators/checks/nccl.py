"""NCCL all-reduce: did it run, over which transport and rails, and what did it complain of."""

from __future__ import annotations

from collections.abc import Iterator
from signal import SIGKILL
from typing import Any

from gpuready.charts_values.inventory import Group

from .. import nccl
from ..acceptance.verdicts import PodVerdict, cut_short, not_started
from ..evidence import Evidence
from ..expected import Expected
from ..model import Finding, Status, Subject
from ..nccl_evidence import NcclRun, runs
from ..registry import check
from .subjects import NODES, PROBES, name_of, node, passed, skipped

_UPSTREAM = (*PROBES, *NODES, "nodes.schedulable", "gpu.allocatable", "rdma.allocatable", "smi.pod", "smi.gpus")
# The exit code of a container that SIGKILL ended.
_KILLED = 128 + SIGKILL
_PEERS_DOING = ("PeerFellBack", "PeerLacksRails")


@check(
    "nccl.errors",
    title="NCCL logged no error",
    proves="No link failed and no retry was hidden in a run that ended well.",
    rule="No line that reports an error: of CUDA, of verbs calls, completions and asynchronous events of NICs, of "
    "sockets and bootstrap, of plug-ins, or of nccl-tests itself. Of two ends of a dead link the one is blamed that "
    "reports an error of its own, else the one that most ranks name.",
    source="NVIDIA/nccl 2.8 to 2.30, src/transport/net_ib, src/misc/ibvwrap.cc, src/misc/socket.cc and "
    "src/bootstrap.cc",
    fix="Look at the port that the detail names: link state, counters, cable.",
    needs=("pods",),
    after=(*_UPSTREAM, "nccl.errors"),
    phase="accept",
    tier="fabric",
)
def nccl_errors(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """One finding for each node that errors speak of, over all runs, or for the NIC that failed there.

    Its first error is the nearest to a cause.
    """
    done = runs(evidence)
    if not done:
        yield nothing_ran(expected, evidence)
    found: dict[Subject, tuple[NcclRun, dict[str, str], nccl.Accusation]] = {}
    for run in done:
        subject = subject_of(run, expected)
        errors = nccl.accusations(run.report)
        failed, killed = any(pod.exit_code for pod in run.pods), any(map(_killed, run.pods))
        if errors and all((failed and one.first.echo) or (killed and not one.first.local) for one in errors):
            yield skipped(subject, "what NCCL logged follows from a pod that failed or did not start")
            continue
        if not errors:
            yield passed(subject)
        for one in errors:
            place = node(run.node(one.host)) if one.host else subject
            _, details, _ = found.setdefault(place, (run, {}, one))
            details.setdefault(one.reason, one.detail(run.node))
    for place, (run, details, first) in found.items():
        error = first.first.error_class
        nics = {one.hca for one in first.errors if one.local and one.hca}
        subject = Subject("nic", f"{place.name}/{nics.pop()}") if place.kind == "node" and len(nics) == 1 else place
        yield Finding(
            Status.FAIL, subject, first.reason, error.meaning, "; ".join(details.values()), fix=error.fix,
            nodes=(place.name,) if place.kind == "node" else (), evidence=(f"logs/{run.workload}",),
        )  # fmt: skip


@check(
    "nccl.run",
    title="NCCL all-reduce runs on two nodes and on all",
    proves="Every node takes part in a collective over the fabric.",
    rule="Every pod of the run ended with exit code 0, and the log shows every rank initialised.",
    source="NVIDIA/nccl 2.30, src/init.cc: each rank prints Init COMPLETE",
    fix="Read the first error in logs/nccl-* of the bundle: gpuready nccl BUNDLE/logs/nccl-pair/*.log",
    needs=("pods", "nodes"),
    after=(*_UPSTREAM, "nccl.errors"),
    phase="accept",
    tier="fabric",
)
def nccl_run(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """Exit codes, completeness, and the nodes that were left out."""
    done = runs(evidence)
    off = str(evidence.about.get("nccl_off") or "")
    cluster = Subject("cluster", expected.cluster.name)
    short = _short_of_spot(expected, evidence)
    alone = {name_of(one) for one, group in expected.gpu_nodes(evidence.objects("nodes")) if group.name in short}
    for name, reason in sorted(evidence.about.get("nccl_excluded", {}).items()):
        yield Finding(
            Status.UNPROVEN, node(name), "LeftOut", "node took no part in the NCCL runs", reason,
            fix="Mend or free the node, then run gpuready accept again.",
            required=name not in alone and not off.startswith("deselected"),
        )  # fmt: skip
    if not done:
        if off.startswith("deselected") or expected.node_count < 2:
            yield skipped(cluster, off or "one node has no fabric to test")
        else:
            why = off or cut_short(evidence)
            fix = "Free two nodes." if off else "Run gpuready accept again."
            # Where inventory lets nodes be away, those that are left may each be alone.
            needed = any(group.count > 1 and group.name not in short for group in expected.cluster.groups)
            yield Finding(Status.UNPROVEN, cluster, "NotRun", "NCCL did not run", why, fix=fix, required=needed)
    for run in done:
        bad = [pod for pod in run.pods if pod.exit_code != 0]
        facts = run.report.to_json()
        subject = subject_of(run, expected)
        where = tuple(f"logs/{run.workload}/{pod.pod}.log" for pod in (bad or list(run.pods))[:1])
        unfinished = len(run.pods) < len(run.nodes) or any(pod.exit_code is None for pod in run.pods)
        if unfinished and cut_short(evidence) and all(pod.exit_code in (0, None) for pod in run.pods):
            yield Finding(
                Status.UNPROVEN, subject, "CutShort", "the NCCL run did not end in time", cut_short(evidence),
                nodes=run.nodes, fix="Run gpuready accept again.",
            )  # fmt: skip
        elif absent := not_started(run.pods):
            yield _not_started(run, expected, evidence, absent)
        elif bad or len(run.pods) < len(run.nodes):
            said = _failure(run, bad) if bad else "a pod is missing"
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
    source="NVIDIA/nccl 2.8 to 2.30, src/transport/net.cc: channel lines tell what is used, capability lines what "
    "could be",
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
    groups = groups_of(expected, evidence)
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
        yield nothing_ran(expected, evidence)
    for name in sorted({name for run in done for name in run.nodes} - found.keys()):
        yield Finding(Status.UNPROVEN, node(name), "NoRecords", "the NCCL log shows nothing of the node")
    yield from found.values()


@check(
    "nccl.rails",
    title="every rail carries traffic",
    proves="No NIC is missing or silent behind a run that ended well.",
    rule="NCCL lists as many NICs on each node as its group promises, and channels of a run use all of them.",
    source="NVIDIA/nccl 2.30, src/transport/net_ib/init.cc (NET/IB : Using) and src/transport/net.cc (channel lines)",
    fix="On that node: ibstat, then dmesg for the NIC that is missing; compare lspci -d 15b3: with a good node.",
    avoid="Do not lower `nics` in inventory to make it pass.",
    needs=("pods", "nodes"),
    after=("nccl.run", "rdma.allocatable", "nccl.transport", "nccl.rails"),
    phase="accept",
    tier="fabric",
)
def nccl_rails(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """NICs that NCCL lists and uses, per node over all runs; the worst one counts."""
    groups = groups_of(expected, evidence)
    found: dict[str, Finding] = {}
    for run in runs(evidence):
        facts = run.report.to_json()
        seen = {host: _listed(run, facts, host) for host in facts["hosts"]}
        promised = {host: group.nics for host in seen if (group := groups.get(run.node(host))) and group.rdma != "none"}
        sockets = {host for host in seen if "Socket" in (facts["networks_by_host"].get(host) or ())}
        short = sockets | {h for h, nics in promised.items() if (listed := seen[h]) is not None and listed < nics}
        for host in seen:
            name = run.node(host)
            finding = _rails(run, facts, host, promised.get(host, 0), short)
            if name not in found or _outweighs(finding, found[name]):
                found[name] = finding
    yield from found.values() or [nothing_ran(expected, evidence)]


def _failure(run: NcclRun, bad: list[PodVerdict]) -> str:
    """What is known of why a run failed: of a pod that was killed, of a node that errors speak of, or of any."""
    accused = {run.node(one.host) for one in nccl.accusations(run.report) if one.host and not one.first.echo}
    first = min(bad, key=lambda pod: (not _killed(pod), pod.node not in accused))
    code = "no exit code" if first.exit_code is None else f"exit {first.exit_code}"
    said = f"{first.node or first.pod}: {first.waiting or code}"
    hung = [str(rank) for pod in bad for rank in pod.message.get("hung") or ()]
    return said + (f"; ranks that hang: {', '.join(hung)}" if hung else "")


def _killed(pod: PodVerdict) -> bool:
    """Whether the pod did not start or was killed, as the OOM killer does: its peers only miss it."""
    return bool(pod.waiting) or pod.exit_code == _KILLED


def _not_started(run: NcclRun, expected: Expected, evidence: Evidence, absent: tuple[int, ...]) -> Finding:
    """A run whose pods waited for others in vain: which ranks, on which nodes, and why they are not there."""
    each = groups_of(expected, evidence)[run.nodes[0]].gpus
    ranks = ", ".join(f"{index * each} to {index * each + each - 1}" for index in absent)
    late = [pod for pod in run.pods if pod.index in absent]
    came = {pod.node for pod in run.pods if pod.index not in absent}
    nodes = tuple(name for name in run.nodes if name not in came)
    why = next((pod.waiting for pod in late if pod.waiting), "")
    said = f"ranks {ranks}, on {' or '.join(nodes)}" if nodes else f"ranks {ranks}"
    return Finding(
        Status.FAIL, subject_of(run, expected), "RanksMissing", "ranks of the NCCL run did not start in time",
        f"{said}: {why or 'their pods run, and the others could not hear of them'}",
        expected=f"{len(run.nodes)} pods", observed=f"{len(run.nodes) - len(absent)} pods", nodes=nodes,
        evidence=(f"logs/{run.workload}",),
        fix="kubectl describe the pods that wait. Where all run: DNS in namespace gpuready, and network policies.",
    )  # fmt: skip


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
    elif not channels and facts["transport"]["gdr"] == "not_applicable":
        return passed(node(name), "one NVLink domain: no channel needs a NIC", evidence=where)
    elif not channels:
        return Finding(
            Status.UNPROVEN,
            node(name),
            "NoNetChannel",
            "the log shows no channel between nodes",
            network,
            evidence=where,
        )
    elif direct == 0 and run.report.traffic[host].silent:
        cause = "the network's plug-in does not say whether it uses GPU memory"
        return Finding(Status.UNPROVEN, node(name), "PluginSilent", cause, network, evidence=where)
    elif direct == 0:
        reason, cause = "NoGpuDirect", "RDMA runs without GPUDirect"
    elif direct < channels:
        reason, cause = "PartlyGpuDirect", "some channels run without GPUDirect RDMA"
    else:
        rails = facts["rails"].get(host) or {"used": []}
        used, known = len(rails["used"]), len(rails["used"]) + len(rails.get("idle") or ())
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


def _listed(run: NcclRun, facts: dict[str, Any], host: str) -> int | None:
    """How many RDMA NICs NCCL knows on a host; None where the log does not tell."""
    rails = facts["rails"].get(host)
    if rails is None or rails["idle"] is None or "Socket" in (facts["networks_by_host"].get(host) or ()):
        return None
    return len(rails["used"]) + len(rails["idle"])


def _rails(run: NcclRun, facts: dict[str, Any], host: str, promised: int, short: set[str]) -> Finding:
    """The verdict on one host's rails; ``short`` are the hosts of the run that lack NICs."""
    subject, where = node(run.node(host)), (f"logs/{run.workload}",)
    if not promised:
        return passed(subject, "no RDMA expected", evidence=where)
    if host not in facts["rails"] and facts["transport"]["gdr"] == "not_applicable":
        return passed(subject, "one NVLink domain: no channel needs a NIC", evidence=where)
    listed = _listed(run, facts, host)
    used = len(facts["rails"].get(host, {}).get("used") or ())
    if used >= promised:
        return passed(subject, f"{used} of {promised} rails used", evidence=where)
    if "Socket" in (facts["networks_by_host"].get(host) or ()):
        return skipped(subject, "NCCL uses no rail of the node: it runs over sockets")
    if listed is None:
        return Finding(
            Status.UNPROVEN, subject, "RailsUnknown", "the log does not tell the node's NICs", f"{used} rails used",
            evidence=where, required=False,
        )  # fmt: skip
    names = _nic_names(run)
    if listed < promised:
        absent = sorted(set().union(*names.values()) - names.get(host, set()))
        reason, cause = "NicMissing", "NCCL sees fewer NICs than the node should have"
        detail = f"{listed} of {promised} rails" + (f"; not there: {', '.join(absent)}" if absent else "")
    elif short:
        peers = tuple(sorted(run.node(other) for other in short))
        return Finding(
            Status.UNPROVEN, subject, "PeerLacksRails", "rails are idle, since a peer lacks its own",
            f"{used} of {promised} rails used", nodes=peers, evidence=where,
        )  # fmt: skip
    else:
        reason, cause = "RailIdle", "NCCL leaves rails of the node idle"
        detail = f"{used} of {promised} rails used; idle: {', '.join(map(str, facts['rails'][host]['idle']))}"
    return Finding(
        Status.FAIL, subject, reason, cause, detail, expected=f"{promised} rails",
        observed=str(min(used, listed)), evidence=where,
    )  # fmt: skip


def _nic_names(run: NcclRun) -> dict[str, set[str]]:
    """The names of the NICs that NCCL lists, by host."""
    return {host: {nic.name for nic in nics} for host, nics in run.report.devices.nics.items()}


def _outweighs(new: Finding, old: Finding) -> bool:
    """The worse verdict counts; a peer's doing says nothing where another run could tell."""
    if new.reason in _PEERS_DOING or old.reason in _PEERS_DOING:
        return old.reason in _PEERS_DOING
    return new.status.rank > old.status.rank


def groups_of(expected: Expected, evidence: Evidence) -> dict[str, Group]:
    """The group of each GPU node, by the node's name."""
    return {name_of(one): group for one, group in expected.gpu_nodes(evidence.objects("nodes"))}


def subject_of(run: NcclRun, expected: Expected) -> Subject:
    """What a finding about a run is about."""
    return Subject("cluster" if run.kind == "all" else "pair", run.name)


def nothing_ran(expected: Expected, evidence: Evidence) -> Finding:
    """Without a run there is nothing to judge; whether that matters is nccl.run's to say."""
    cause = str(evidence.about.get("nccl_off") or "NCCL did not run")
    return skipped(Subject("cluster", expected.cluster.name), cause)


def _short_of_spot(expected: Expected, evidence: Evidence) -> set[str]:
    """The spot groups of which nodes are away."""
    nodes = evidence.objects("nodes")
    away = [group for _, group in [*expected.away(nodes), *expected.missing(nodes)]]
    return {group.name for group in away if group.capacity == "spot"}
