"""Which nodes are probed, with what, and why others are not. Pure: evidence in, plan out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from gpuready.charts_values.inventory import Group

from ..checks.subjects import allocatable, condition, labels_of, name_of
from ..evidence import Evidence, Object
from ..expected import Expected

GPU = "nvidia.com/gpu"
HOSTNAME = "kubernetes.io/hostname"
# GFD's label of nodes whose NVLink leads to other nodes: cluster uuid and clique of the NVLink domain.
CLIQUE = "nvidia.com/gpu.clique"
# Where schedulers of several clouds and NVIDIA's topograph say which leaf switch a node hangs on.
LEAVES = (
    "network.topology.nvidia.com/leaf",
    "topology.k8s.aws/network-node-layer-3",
    "cloud.google.com/gce-topology-subblock",
)
# The workload that proves the NICs of nodes which NVLink joins.
NET = "nccl-net"


@dataclass(frozen=True)
class Target:
    """A node that takes probe pods. ``gpus`` is what it offers now; ``rdma`` what a pod asks of it.

    ``clique`` is the NVLink domain that it shares with other nodes, empty where NVLink ends inside the node.
    ``leaf`` is the switch that it hangs on, empty where no label says so.
    """

    node: str
    hostname: str
    group: Group
    gpus: int
    rdma: Mapping[str, int]
    clique: str = ""
    leaf: str = ""

    @property
    def complete(self) -> bool:
        """Whether it offers every GPU that it should."""
        return self.gpus == self.group.gpus


@dataclass(frozen=True)
class NcclPlan:
    """The nodes of each NCCL run by its workload; ``off`` says why there is none, ``left`` whom no run can take.

    ``nccl-pair`` takes two nodes and ``nccl-all`` every node of a group. ``nccl-net`` is the pair once more where
    NVLink joins its nodes: without NVLink between them, so that the NICs are proved, too. Each further group has
    runs of its own, with a number behind the name.
    """

    runs: Mapping[str, tuple[Target, ...]] = field(default_factory=dict)
    off: str = ""
    left: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What acceptance will run. ``not_probed`` maps the other nodes to the reason."""

    targets: tuple[Target, ...]
    not_probed: dict[str, str] = field(default_factory=dict)
    nccl: NcclPlan = NcclPlan()
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
        labels = labels_of(one)
        clique = labels.get(CLIQUE, "") if expected.cluster.dra != "off" else ""
        leaf = next((labels[key] for key in LEAVES if labels.get(key)), "")
        targets.append(Target(name, labels.get(HOSTNAME, name), group, offered, rdma, clique, leaf))
    excluded = {t.node: f"it offers {t.gpus} of {t.group.gpus} GPUs" for t in targets if not t.complete}
    runs = _nccl_runs(targets, nccl)
    excluded |= refused
    return Plan(tuple(targets), refused, runs, nccl_excluded=excluded | dict(runs.left))


def domain_of(targets: Sequence[Target]) -> str:
    """The NVLink domain that all of these nodes share; empty where there is none."""
    cliques = {target.clique for target in targets}
    return cliques.pop() if len(cliques) == 1 else ""


def _nccl_runs(targets: list[Target], nccl: str) -> NcclPlan:
    """The NCCL runs, each within one group: ranks of unlike nodes would test the weaker one."""
    if nccl == "off":
        return NcclPlan(off="deselected with --nccl off")
    complete = [target for target in targets if target.complete]
    groups: dict[str, list[Target]] = {}
    for target in complete:
        groups.setdefault(target.group.name, []).append(target)
    runs: dict[str, tuple[Target, ...]] = {}
    left: dict[str, str] = {}
    number = 0
    for members in sorted(groups.values(), key=len, reverse=True):
        if len(members) > 1:
            number += 1
            runs |= _runs_of(members, nccl, f"-{number}" if number > 1 else "")
        elif members[0].group.count > 1:
            left[members[0].node] = f"no other node of group {members[0].group.name} is complete and idle"
    if not runs:
        return NcclPlan(off=f"{len(complete)} complete and idle nodes; two of one group are needed")
    return NcclPlan(runs, left=left)


def _runs_of(members: list[Target], nccl: str, suffix: str) -> dict[str, tuple[Target, ...]]:
    """The runs of one group."""
    # The two ends of the list are the likeliest to hang on different switches.
    pair = (members[0], members[-1])
    runs: dict[str, tuple[Target, ...]] = {f"nccl-pair{suffix}": pair}
    if domain_of(pair) and pair[0].group.rdma != "none":
        runs[f"{NET}{suffix}"] = pair
    if nccl == "all" and len(members) > 2:
        runs[f"nccl-all{suffix}"] = tuple(members)
    return runs


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
