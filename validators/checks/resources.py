"""What else inventory promises of a node: MIG devices, EFA, pools of SR-IOV functions, shared GPUs."""

from __future__ import annotations

from collections.abc import Iterator

from ..evidence import Evidence
from ..expected import Expected
from ..model import Finding, Status, Subject
from ..registry import check
from .gpu import GPU, OPERATOR
from .subjects import MACHINE, NODES, allocatable, name_of, node, passed, skipped


@check(
    "resources.allocatable",
    title="every node offers the other resources that inventory promises",
    proves="Pods can ask for MIG devices, EFA, SR-IOV functions and the like on every node that is to have them.",
    rule="Each node offers each resource of its group, apart from nvidia.com/gpu and rdma/*, in the promised count "
    "or more.",
    source="Kubernetes documentation, device plugins and extended resources: allocatable is what the scheduler counts",
    fix="Look at the device plugin that serves the resource, on that node: kubectl describe node NODE. MIG devices "
    "come with label nvidia.com/mig.config and its state.",
    avoid="Do not restart the kubelet under running pods to bring a resource back.",
    needs=("nodes",),
    after=(
        *(*NODES, *MACHINE, *OPERATOR, "release.installed/*/network-operator", "nfd.labels"),
        *("network.policy", "gpu.operands", "gpu.policy/cluster/*"),
    ),
)
def other_resources(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """Every promised resource that no other check judges, per node."""
    promised = {
        group.name: {key: count for key, count in group.resources.items() if not _judged_elsewhere(key)}
        for group in expected.cluster.groups
    }
    if not any(promised.values()):
        yield skipped(Subject("cluster", expected.cluster.name), "inventory promises no other resource")
        return
    for one, group in expected.gpu_nodes(evidence.objects("nodes")):
        wanted = promised[group.name]
        offers = {key: allocatable(one, key) for key in wanted}
        short = [key for key, count in wanted.items() if offers[key] < count]
        if short:
            first = short[0]
            yield Finding(
                Status.FAIL,
                node(name_of(one)),
                "FewerThanExpected",
                "node offers fewer of a promised resource than expected",
                "; ".join(f"{key}: {offers[key]} of {wanted[key]}" for key in short),
                expected=f"{first} {wanted[first]}",
                observed=str(offers[first]),
                evidence=("cluster/nodes.json",),
            )
        elif wanted:
            yield passed(node(name_of(one)), ", ".join(f"{key} {count}" for key, count in offers.items()))


def _judged_elsewhere(resource: str) -> bool:
    """Whether gpu.allocatable, dra.slices or rdma.allocatable judges it; they know more of the causes."""
    return resource == GPU or resource.startswith("rdma/")
