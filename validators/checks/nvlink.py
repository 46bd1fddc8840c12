"""NVLink between nodes: racks such as NVL72, whose GPUs form one NVLink domain."""

from __future__ import annotations

from collections.abc import Iterator

from ..evidence import Evidence
from ..expected import Expected
from ..model import Finding, Status, Subject
from ..nccl_evidence import runs
from ..registry import check
from .subjects import passed, skipped

_MNNVL = "P2P/MNNVL"


@check(
    "nccl.nvlink",
    title="nodes of one NVLink domain talk over NVLink",
    proves="The ComputeDomain's IMEX channels work: pods reach the GPUs of other nodes without a NIC.",
    rule="In a run within one NVLink domain every host shows channels via P2P/MNNVL, and none over the network.",
    source="NVIDIA/nccl 2.20 to 2.30, src/transport/p2p.cc: P2P/MNNVL; GFD's label nvidia.com/gpu.clique",
    fix="Read the ComputeDomain while a job runs: kubectl get computedomains -A -o yaml; then the DRA driver's log. "
    "nvidia-imex.service must be masked on the nodes.",
    needs=("pods",),
    after=("nccl.run", "dra.slices", "dra.rules"),
    phase="accept",
    tier="fabric",
)
def nvlink(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """P2P/MNNVL on every host of a run that was planned within one domain."""
    planned = [run for run in runs(evidence) if run.nvlink_domain]
    if not planned:
        yield skipped(Subject("cluster", expected.cluster.name), "no NCCL run within one NVLink domain")
    for run in planned:
        kind = "cluster" if run.kind == "all" else "pair"
        subject, where = Subject(kind, run.name), (f"logs/{run.workload}",)
        counts = {host: one.intranode.get(_MNNVL, 0) for host, one in run.report.traffic.items()}
        without = sorted(run.node(host) for host, count in counts.items() if not count)
        outside = run.report.net_channels
        if counts and not without and not outside:
            detail = f"{sum(counts.values())} channels via {_MNNVL}, domain {run.nvlink_domain}"
            yield passed(subject, detail, evidence=where)
        elif not counts:
            yield Finding(
                Status.UNPROVEN, subject, "NoRecords", "the NCCL log shows no channel", evidence=where, nodes=run.nodes
            )
        else:
            yield Finding(
                Status.FAIL,
                subject,
                "NvlinkNotUsed",
                "nodes of one NVLink domain do not use NVLink between them",
                f"{outside} channels over the network" + (f"; no {_MNNVL} on {', '.join(without)}" if without else ""),
                expected=f"every channel via {_MNNVL} inside domain {run.nvlink_domain}",
                observed=f"{sum(counts.values())} via {_MNNVL}, {outside} over the network",
                evidence=where,
                nodes=tuple(without) or run.nodes,
            )
