"""The NCCL logs of an acceptance, read once, with pods replaced by the nodes they ran on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from . import nccl
from .acceptance.verdicts import RUN_LABEL, WORKLOAD_LABEL, PodVerdict, probe_pods
from .evidence import Evidence

# In this order they are reported: what goes over the NICs first.
KINDS = ("net", "pair", "all")
# The largest message of an acceptance run.
LARGEST_BYTES = 8 << 30


@dataclass(frozen=True)
class NcclRun:
    """One all-reduce: what `gpuready nccl` says of its logs, its pods, and the node behind each host name.

    ``nvlink_domain`` is the NVLink domain that joins its nodes and that it was to use, empty where there is none.
    """

    workload: str
    nodes: tuple[str, ...]
    pods: tuple[PodVerdict, ...]
    node_of: dict[str, str]
    report: nccl.NcclReport
    nvlink_domain: str = ""

    @property
    def kind(self) -> str:
        """net, pair or all."""
        return kind_of(self.workload)

    @property
    def name(self) -> str:
        """How a finding names the run."""
        if self.kind == "all":
            # Groups beyond the first have a number, and may have as many nodes as another.
            which = "" if self.workload == "nccl-all" else f" from {self.nodes[0]} on"
            return f"{len(self.nodes)} nodes{which}"
        return "+".join(self.nodes) + (" by NIC" if self.kind == "net" else "")

    def node(self, host: str) -> str:
        """The node of a host name in the log; the name itself where no pod had it."""
        return self.node_of.get(host, host)


def kind_of(workload: str) -> str:
    """What a workload runs: ``pair`` of ``nccl-pair-2``."""
    return workload.removeprefix("nccl-").partition("-")[0]


def runs(evidence: Evidence) -> tuple[NcclRun, ...]:
    """The all-reduce runs of this acceptance. Read once per evidence, since the logs are long."""
    if "nccl" not in evidence.parsed:
        planned = evidence.about.get("nccl", {})
        known = sorted((one for one in planned if kind_of(one) in KINDS), key=lambda one: KINDS.index(kind_of(one)))
        evidence.parsed["nccl"] = tuple(_run(evidence, workload, planned[workload]) for workload in known)
    found: tuple[NcclRun, ...] = evidence.parsed["nccl"]
    return found


def to_json(evidence: Evidence) -> dict[str, Any]:
    """The ``nccl`` key of an acceptance report: per run the object of `gpuready nccl`, and the node names.

    ``search`` is there where a slow all-reduce was searched for its cause: what was run and what follows from it.
    """
    search = evidence.about.get("nccl_search")
    return ({"search": search} if search else {}) | {
        one.workload.removeprefix("nccl-"): {
            **one.report.to_json(),
            "node_of_host": one.node_of,
        }
        for one in runs(evidence)
    }


def _run(evidence: Evidence, workload: str, planned: dict[str, Any]) -> NcclRun:
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
    domain = str(planned.get("nvlink_domain") or "")
    return NcclRun(workload, tuple(planned["nodes"]), pods, node_of, report, domain)
