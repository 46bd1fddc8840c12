"""Which nodes are probed, with what, and why others are not. Pure: evidence in, plan out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from gpuready.charts_values.inventory import Group

from ..checks.subjects import allocatable, condition, labels_of, name_of
from ..evidence import Evidence, Object
from ..expected import Expected
from . import holders
from .holders import GPU as GPU

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
    ``leaf`` is the switch that it hangs on, empty where no label says so. ``cpus`` and ``memory_mib`` are what it
    offers of those, 0 where it does not say.
    """

    node: str
    hostname: str
    group: Group
    gpus: int
    rdma: Mapping[str, int]
    clique: str = ""
    leaf: str = ""
    cpus: int = 0
    memory_mib: int = 0

    @property
    def lacks(self) -> str:
        """What it should offer to an all-reduce and does not; empty where it is complete."""
        if self.gpus != self.group.gpus:
            return f"it offers {self.gpus} of {self.group.gpus} GPUs"
        absent = sorted(self.group.rdma_resources.keys() - self.rdma.keys())
        return f"it offers no {' and no '.join(absent)}" if absent else ""


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


def plan(
    expected: Expected, evidence: Evidence, pods: Iterable[Object], *, nccl: str, claims: Iterable[Object] = ()
) -> Plan:
    """Decide on the probes. ``pods`` are the running pods of the cluster and ``claims`` its ResourceClaims; ``nccl``
    is off, pair or all."""
    held = holders.holders(pods, claims)
    by_claim = expected.cluster.dra == "gpus"
    targets: list[Target] = []
    refused: dict[str, str] = {}
    for one, group in expected.gpu_nodes(evidence.objects("nodes")):
        name = name_of(one)
        offered = group.gpus if by_claim else allocatable(one, GPU)
        reason = _unfit(one, offered, held.get(name))
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
        cpus, memory = allocatable(one, "cpu"), allocatable(one, "memory") >> 20
        hostname = labels.get(HOSTNAME, name)
        targets.append(Target(name, hostname, group, offered, rdma, clique, leaf, cpus, memory))
    excluded = {target.node: target.lacks for target in targets if target.lacks}
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
    complete = [target for target in targets if not target.lacks]
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
