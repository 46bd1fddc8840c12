"""NFD, the NIC policy and what pods get of RDMA."""

from __future__ import annotations

from collections.abc import Iterator

from gpuready.charts_values.inventory import Group

from ..evidence import Evidence, Object
from ..expected import Expected
from ..model import Finding, Status, Subject
from ..registry import check
from ..workloads import stuck, unready
from .releases import RELEASE_NAME
from .subjects import NODES, allocatable, labels_of, name_of, node, passed, skipped, troubles

NIC_POLICY = "nic-cluster-policy"
NFD_RELEASE = "release.installed/*/node-feature-discovery"
OPERATOR = "release.installed/*/network-operator"
WAIT = "network.nvidia.com/operator.mofed.wait"
NIC_ON_PCI = "feature.node.kubernetes.io/pci-15b3.present"
GPU_ON_PCI = (
    "feature.node.kubernetes.io/pci-10de.present",
    "feature.node.kubernetes.io/pci-0302_10de.present",
    "feature.node.kubernetes.io/pci-0300_10de.present",
)


@check(
    "nfd.single",
    title="one NFD",
    proves="One set of labels, from one configuration.",
    rule="Exactly one Deployment is an NFD master.",
    source="NVIDIA/gpu-operator v26.7.0 and Mellanox/network-operator 26.4.1, values.yaml: nfd.enabled is true in both",
    fix="Set nfd.enabled=false in both operators and keep the release node-feature-discovery.",
    needs=("deployments.apps",),
    after=(NFD_RELEASE,),
)
def nfd_single(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """Count of NFD masters."""
    masters = [
        f"{one['metadata']['namespace']}/{name_of(one)}"
        for one in evidence.objects("deployments.apps")
        if labels_of(one).get("app.kubernetes.io/name") == "node-feature-discovery"
        and labels_of(one).get("role", "master") == "master"
        and "gc" not in name_of(one).rsplit("-", 1)
    ]
    subject = Subject("cluster", expected.cluster.name)
    if len(masters) == 1:
        yield passed(subject, masters[0])
    else:
        yield Finding(
            Status.FAIL,
            subject,
            "SeveralNfd" if masters else "NoNfd",
            "several NFD masters label the same nodes" if masters else "NFD is not installed",
            ", ".join(masters),
            expected="1",
            observed=str(len(masters)),
            evidence=("cluster/deployments.apps.json",),
        )


@check(
    "nfd.labels",
    title="NFD sees the GPUs of every GPU node",
    proves="The operators will act on these nodes.",
    rule="A GPU node carries pci-10de.present, or the same with the class 0302 or 0300.",
    source="NVIDIA/gpu-operator v26.7.0, controllers/state_manager.go: by these labels it knows a GPU node",
    fix="Look at the NFD worker on that node; a taint that it does not tolerate keeps it away.",
    needs=("nodes",),
    after=(*NODES, NFD_RELEASE, "release.namespace/*/node-feature-discovery", "nfd.single"),
)
def nfd_labels(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """PCI labels."""
    for one, _ in expected.gpu_nodes(evidence.objects("nodes")):
        if any(labels_of(one).get(label) == "true" for label in GPU_ON_PCI):
            yield passed(node(name_of(one)))
        else:
            yield Finding(
                Status.FAIL,
                node(name_of(one)),
                "NoPciLabel",
                "NFD shows no NVIDIA device on the node",
                expected=f"{GPU_ON_PCI[0]}=true",
                observed="no such label",
                evidence=("cluster/nodes.json",),
            )


@check(
    "network.policy",
    title="the NicClusterPolicy is in force",
    proves="The Network Operator made what was asked for.",
    rule="An object named nic-cluster-policy has state ready, and every part that its spec asks for is ready.",
    source="Mellanox/network-operator 26.7, controllers/nicclusterpolicy_controller.go (any other name is ignored) and "
    "pkg/state/state_skel.go (`ignore` of a part: not requested)",
    fix="Read the part that is not ready: kubectl get nicclusterpolicy nic-cluster-policy -o yaml",
    needs=("nicclusterpolicies.mellanox.com",),
    after=(*NODES, NFD_RELEASE, OPERATOR, "release.namespace/*/network-operator"),
)
def nic_policy(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """NicClusterPolicy."""
    subject = Subject("object", NIC_POLICY)
    if not expected.cluster.wants_rdma:
        yield skipped(subject, "inventory expects no RDMA")
        return
    policies = evidence.objects("nicclusterpolicies.mellanox.com")
    policy = next((one for one in policies if name_of(one) == NIC_POLICY), None)
    where = ("cluster/nicclusterpolicies.mellanox.com.json",)
    if policy is None:
        others = ", ".join(sorted(map(name_of, policies)))
        yield Finding(
            Status.FAIL,
            subject,
            "WrongName" if others else "NoPolicy",
            "the NicClusterPolicy has a name that the operator ignores" if others else "no NicClusterPolicy",
            others,
            expected=NIC_POLICY,
            observed=others or "none",
            fix="Run the installer; it applies nic-cluster-policy." if not others else None,
            evidence=where,
        )
        return
    status = policy.get("status", {})
    waiting = [
        f"{part['name']} is {part['state']}" + (f": {part['message']}" if part.get("message") else "")
        for part in status.get("appliedStates", ())
        if part.get("state") not in ("ready", "ignore")
    ]
    if status.get("state") == "ready" and not waiting:
        yield passed(subject)
    elif _waits_for_spot(expected, evidence):
        yield skipped(subject, "it waits for spot nodes that are away, which inventory allows")
    else:
        held = _held_up(expected, evidence)
        told = "; ".join(waiting) or f"state {status.get('state', 'not set')}"
        yield Finding(
            Status.FAIL,
            subject,
            "PolicyNotReady",
            "the NicClusterPolicy is not ready",
            "; ".join(part for part in (troubles(held), told) if part),
            expected="ready",
            observed=str(status.get("state", "not set")),
            evidence=(*where, "cluster/pods.json"),
            nodes=tuple(sorted(name for name in held if name)),
        )


def _waits_for_spot(expected: Expected, evidence: Evidence) -> bool:
    """Whether spot nodes are away, and all that the Network Operator wants elsewhere is ready."""
    release = expected.release("network-operator")
    namespace = release.namespace if release else ""
    daemonsets = [one for one in evidence.objects("daemonsets.apps") if one["metadata"].get("namespace") == namespace]
    nodes = evidence.objects("nodes")
    away = any(group.rdma != "none" for _, group in expected.away(nodes)) and expected.gone(nodes) > 0
    return away and bool(daemonsets) and not any(map(unready, daemonsets))


@check(
    "rdma.wait",
    title="no node waits for its NIC driver",
    proves="The RDMA device plugin may run on the node.",
    rule="Label network.nvidia.com/operator.mofed.wait is not true on a node of a group with RDMA.",
    source="Mellanox/network-operator 26.7, controllers/mofed_wait_labels.go, and the nodeSelector in "
    "manifests/state-rdma-shared-device-plugin: stuck at true means no rdma/* resource",
    fix="Look at the OFED pod of that node; without one the operator's word is stale: restart network-operator.",
    avoid="Do not set the label by hand while the driver container loads modules.",
    needs=("nodes",),
    after=(*NODES, OPERATOR, "network.policy"),
)
def rdma_wait(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """The Network Operator's gate."""
    if not expected.cluster.wants_rdma:
        yield skipped(Subject("cluster", expected.cluster.name), "inventory expects no RDMA")
        return
    for one, group in expected.gpu_nodes(evidence.objects("nodes")):
        value = labels_of(one).get(WAIT)
        if value == "true" and group.rdma != "none":
            yield Finding(
                Status.FAIL, node(name_of(one)), "WaitsForDriver", "node waits for its NIC driver",
                f"{WAIT} is true", expected="false", observed="true", evidence=("cluster/nodes.json",),
            )  # fmt: skip
        else:
            yield passed(node(name_of(one)))


@check(
    "rdma.allocatable",
    title="every node offers its RDMA resources",
    proves="Pods can ask for RDMA devices on every node that is to have them.",
    rule="Each node of a group with RDMA offers each of its rdma/* resources, in the promised count.",
    source="Mellanox/k8s-rdma-shared-dev-plugin, README: resourceName and rdmaHcaMax",
    fix="Check label pci-15b3.present and the device selectors of the policy; then lspci -d 15b3: on the node.",
    avoid="Do not restart the kubelet under running pods to bring the resource back.",
    needs=("nodes",),
    after=(*NODES, "node.modules", NFD_RELEASE, OPERATOR, "network.policy", "rdma.wait"),
)
def rdma_allocatable(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """rdma/* per node."""
    if not any(group.rdma_resources for group in expected.cluster.groups):
        yield skipped(Subject("cluster", expected.cluster.name), "inventory expects no rdma/* resource")
        return
    for one, group in expected.gpu_nodes(evidence.objects("nodes")):
        offers = {resource: allocatable(one, resource) for resource in group.rdma_resources}
        short = [resource for resource, wanted in group.rdma_resources.items() if offers[resource] < wanted]
        if short:
            yield _short_of_rdma(one, group, short)
        elif offers:
            yield passed(node(name_of(one)), ", ".join(f"{resource} {count}" for resource, count in offers.items()))


def _short_of_rdma(one: Object, group: Group, short: list[str]) -> Finding:
    """One verdict per node, with the first of the resources that it lacks."""
    resource, wanted = short[0], group.rdma_resources[short[0]]
    offered = allocatable(one, resource)
    others = [] if offered else _other_names(one, group)
    more = f" and {len(short) - 1} more" if len(short) > 1 else ""
    detail, fix = f"{resource}{more}: {offered} of {wanted}", None
    if others:
        reason, cause = "OtherName", "node offers its RDMA under another name"
        detail += f"; offered: {', '.join(others)}"
        fix = f"Make resourceName in the NicClusterPolicy {resource.partition('/')[2]}, or correct inventory."
    elif offered:
        reason, cause = "FewerThanExpected", "node offers fewer RDMA shares than expected"
    else:
        reason, cause = "FewerThanExpected", "node offers no RDMA"
        if labels_of(one).get(NIC_ON_PCI) != "true":
            detail += f"; NFD sees no NVIDIA NIC on the node ({NIC_ON_PCI})"
    return Finding(
        Status.FAIL,
        node(name_of(one)),
        reason,
        cause,
        detail,
        expected=f"{resource} {wanted}",
        observed=", ".join(others) or str(offered),
        fix=fix,
        evidence=("cluster/nodes.json",),
    )


def _other_names(one: Object, group: Group) -> list[str]:
    """RDMA resources that a node offers and nobody promised, with their counts."""
    offered: dict[str, str] = one.get("status", {}).get("allocatable", {})
    return [
        f"{key} {count}"
        for key, count in sorted(offered.items())
        if key.startswith("rdma/") and key not in group.rdma_resources and count != "0"
    ]


def _held_up(expected: Expected, evidence: Evidence) -> dict[str, str]:
    """What the pods lack that the Network Operator made, by node."""
    release = expected.release("network-operator")
    found: dict[str, str] = {}
    for one in evidence.objects("daemonsets.apps"):
        mine = release is not None and one["metadata"]["namespace"] == release.namespace
        by_helm = RELEASE_NAME in (one["metadata"].get("annotations") or {})
        if mine and not by_helm and unready(one):
            found |= {name: f"{name_of(one)}: {why}" for name, why in stuck(evidence, one).items()}
    return found
