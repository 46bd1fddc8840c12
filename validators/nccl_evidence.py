"""The NCCL logs of an acceptance, read once, with pods replaced by the nodes they ran on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from . import nccl
from .acceptance.verdicts import RUN_LABEL, WORKLOAD_LABEL, PodVerdict, probe_pods
from .evidence import Evidence

WORKLOADS = ("nccl-pair", "nccl-all")


@dataclass(frozen=True)
class NcclRun:
    """One all-reduce: what `gpuready nccl` says of its logs, its pods, and the node behind each host name."""

    workload: str
    nodes: tuple[str, ...]
    pods: tuple[PodVerdict, ...]
    node_of: dict[str, str]
    report: nccl.NcclReport

    @property
    def name(self) -> str:
        """How a finding names the run."""
        return "+".join(self.nodes) if self.workload == "nccl-pair" else f"{len(self.nodes)} nodes"

    def node(self, host: str) -> str:
        """The node of a host name in the log; the name itself where no pod had it."""
        return self.node_of.get(host, host)


def runs(evidence: Evidence) -> tuple[NcclRun, ...]:
    """The all-reduce runs of this acceptance. Read once per evidence, since the logs are long."""
    if "nccl" not in evidence.parsed:
        planned = evidence.about.get("nccl", {})
        evidence.parsed["nccl"] = tuple(
            _run(evidence, workload, tuple(planned[workload]["nodes"])) for workload in WORKLOADS if workload in planned
        )
    found: tuple[NcclRun, ...] = evidence.parsed["nccl"]
    return found


def to_json(evidence: Evidence) -> dict[str, Any]:
    """The ``nccl`` key of an acceptance report: per run the object of `gpuready nccl`, and the node names."""
    return {
        one.workload.removeprefix("nccl-"): {
            **one.report.to_json(),
            "node_of_host": one.node_of,
        }
        for one in runs(evidence)
    }


def _run(evidence: Evidence, workload: str, nodes: tuple[str, ...]) -> NcclRun:
    logs = evidence.logs.get(workload, {})
    report = nccl.read(text.splitlines(keepends=True) for _, text in sorted(logs.items()))
    node_of: dict[str, str] = {}
    mine = {WORKLOAD_LABEL: workload, RUN_LABEL: evidence.about.get("run")}
    for pod in evidence.objects("pods"):
        if mine.items() <= (pod["metadata"].get("labels") or {}).items() and pod["spec"].get("nodeName"):
            # NCCL prints the host name, which an Indexed Job sets apart from the pod's name.
            for name in (pod["metadata"]["name"], pod["spec"].get("hostname")):
                if name:
                    node_of[name] = pod["spec"]["nodeName"]
    pods = tuple(probe_pods(evidence, workload))
    return NcclRun(workload, nodes, pods, node_of, report)
