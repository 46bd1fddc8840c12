"""Which nodes are probed, with what, and why others are not. Pure: evidence in, plan out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from gpuready.charts_values.inventory import Group

from ..checks.subjects import allocatable, condition, labels_of, name_of
from ..evidence import Evidence, Object
from ..expected import Expected

GPU = "nvidia.com/gpu"
HOSTNAME = "kubernetes.io/hostname"


@dataclass(frozen=True)
class Target:
    """A node that takes probe pods. ``gpus`` is what it offers now; ``rdma`` what a pod asks of it."""

    node: str
    hostname: str
    group: Group
    gpus: int
    rdma: Mapping[str, int]

    @property
    def complete(self) -> bool:
        """Whether it offers every GPU that it should."""
        return self.gpus == self.group.gpus


@dataclass(frozen=True)
class Plan:
    """What acceptance will run. ``not_probed`` maps the other nodes to the reason.

    ``pair`` and ``all`` are the nodes of the two NCCL runs, empty where a run does not take place;
    ``nccl_off`` then says why.
    """

    targets: tuple[Target, ...]
    not_probed: dict[str, str] = field(default_factory=dict)
    pair: tuple[Target, ...] = ()
    all: tuple[Target, ...] = ()
    nccl_off: str = ""
    nccl_excluded: dict[str, str] = field(default_factory=dict)


def plan(expected: Expected, evidence: Evidence, pods: Iterable[Object], *, nccl: str) -> Plan:
    """Decide on the probes. ``pods`` are the running pods of the cluster; ``nccl`` is off, pair or all."""
    holders = _holders(pods)
    claims = expected.cluster.dra == "gpus"
    targets: list[Target] = []
    refused: dict[str, str] = {}
    for one, group in expected.gpu_nodes(evidence.objects("nodes")):
        name = name_of(one)
        offered = group.gpus if claims else allocatable(one, GPU)
        reason = _unfit(one, offered, holders.get(name))
        if reason:
            refused[name] = reason
            continue
        rdma = {
            resource: 1 if promised > group.nics else promised
            for resource, promised in group.rdma_resources.items()
            if allocatable(one, resource)
        }
        targets.append(Target(name, labels_of(one).get(HOSTNAME, name), group, offered, rdma))
    excluded = {t.node: f"it offers {t.gpus} of {t.group.gpus} GPUs" for t in targets if not t.complete}
    excluded |= refused
    return Plan(tuple(targets), refused, *_nccl_runs(targets, nccl), nccl_excluded=excluded)


def _nccl_runs(targets: list[Target], nccl: str) -> tuple[tuple[Target, ...], tuple[Target, ...], str]:
    """Pair, all and why neither. One group only: ranks of unlike nodes would test the weaker one."""
    if nccl == "off":
        return (), (), "deselected with --nccl off"
    complete = [target for target in targets if target.complete]
    groups = {target.group.name for target in complete}
    largest = max(groups, key=lambda name: sum(t.group.name == name for t in complete), default="")
    members = [target for target in complete if target.group.name == largest]
    if len(members) < 2:
        return (), (), f"{len(members)} complete and idle nodes; two are needed"
    everyone = tuple(members) if nccl == "all" and len(members) > 2 else ()
    # The two ends of the list are the likeliest to hang on different switches.
    return (members[0], members[-1]), everyone, ""


def _unfit(one: Object, gpus: int, holder: str | None) -> str:
    if (condition(one, "Ready") or {}).get("status") != "True":
        return "the node is not Ready"
    if one["spec"].get("unschedulable"):
        return "the node is cordoned"
    if gpus == 0:
        return "the node offers no GPU"
    return f"its GPUs are held by {holder}" if holder else ""


def _holders(pods: Iterable[Object]) -> dict[str, str]:
    """Which pod holds GPUs of each node; the first one found."""
    found: dict[str, str] = {}
    for pod in pods:
        spec = pod["spec"]
        asks = any(
            GPU in (container.get("resources", {}).get("limits") or {}) for container in spec.get("containers", ())
        )
        if spec.get("nodeName") and asks:
            found.setdefault(spec["nodeName"], f"{pod['metadata']['namespace']}/{pod['metadata']['name']}")
    return found
