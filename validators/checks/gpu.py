"""The GPU Operator's own word, its operands, and what nodes really offer."""

from __future__ import annotations

from collections.abc import Iterator

from ..evidence import Evidence, Object
from ..expected import Expected
from ..model import Finding, Status, Subject
from ..registry import check
from ..workloads import counts, kept_out, stuck
from .network import NFD_RELEASE
from .subjects import MACHINE, NODES, allocatable, condition, labels_of, name_of, node, passed, skipped, troubles

GPU = "nvidia.com/gpu"
PRODUCT = "nvidia.com/gpu.product"
OPERATOR = (NFD_RELEASE, "release.installed/*/gpu-operator")
COMPONENT = "app.kubernetes.io/component"
# The order in which operands wait for each other; the first that is not ready is the cause of the rest.
OPERANDS = (
    ("driver", "nvidia-driver-daemonset"),
    ("toolkit", "nvidia-container-toolkit-daemonset"),
    ("devicePlugin", "nvidia-device-plugin-daemonset"),
    ("validator", "nvidia-operator-validator"),
    ("gfd", "gpu-feature-discovery"),
    ("dcgmExporter", "nvidia-dcgm-exporter"),
    ("migManager", "nvidia-mig-manager"),
)


@check(
    "gpu.operands",
    title="the operands run on every GPU node",
    proves="Driver, toolkit, device plugin and the rest are ready where they belong.",
    rule="Each operand that the ClusterPolicy enables may run on every GPU node, and is ready there.",
    source="NVIDIA/gpu-operator v26.7.0, controllers/state_manager.go (their order) and "
    "controllers/object_controls.go: a DaemonSet that wants no pods counts as ready",
    fix="Look at the first operand that is not ready; the later ones wait for it.",
    needs=("daemonsets.apps", "clusterpolicies.nvidia.com", "nodes"),
    after=(*NODES, *MACHINE, *OPERATOR, "release.namespace/*/gpu-operator", "nfd.labels", "gpu.operands"),
)
def operands(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """DaemonSets in the order of their dependence."""
    policies = evidence.objects("clusterpolicies.nvidia.com")
    if not policies:
        cluster = Subject("cluster", expected.cluster.name)
        yield skipped(cluster, "there is no ClusterPolicy that says what should run")
        return
    spec = policies[0].get("spec", {})
    failed: dict[str, set[str]] = {}
    for key, name in OPERANDS:
        if not spec.get(key, {}).get("enabled", key == "validator"):
            continue
        homes = _homes(key, expected, evidence)
        if homes:
            mine = _daemonsets(key, name, evidence)
            yield _operand(name, mine, homes, evidence, policies[0], failed)
        else:
            cause = "no GPU here can be partitioned (MIG)" if key == "migManager" else "no GPU node takes it"
            yield skipped(Subject("object", name), cause)


def _daemonsets(key: str, name: str, evidence: Evidence) -> list[Object]:
    """The DaemonSets of an operand: one, but for the driver, which has one for each kernel where it is precompiled
    and one for each NVIDIADriver object and system, all with the same label.
    """
    found = evidence.objects("daemonsets.apps")
    if key == "driver" and (mine := [one for one in found if labels_of(one).get(COMPONENT) == "nvidia-driver"]):
        return mine
    return [one for one in found if name_of(one) == name]


def _operand(
    name: str,
    mine: list[Object],
    homes: list[Object],
    evidence: Evidence,
    policy: Object,
    failed: dict[str, set[str]],
) -> Finding:
    """One operand on the nodes where it belongs; ``failed`` gathers the nodes of those that fail."""
    subject, wanted = Subject("object", name), len(homes)
    ready, desired = (sum(numbers) for numbers in zip((0, 0), *map(counts, mine), strict=True))
    barred = {name_of(home): why for home in homes if (why := _barred(mine, home)) is not None}
    if ready >= desired >= wanted and not barred:
        return passed(subject, f"{ready} of {desired} ready")
    lacks = bool(barred) or desired < wanted
    held = {node_name: why for one in mine for node_name, why in stuck(evidence, one).items()} | barred
    nodes = {node_name for node_name in held if node_name}
    before = next((other for other, theirs in failed.items() if not (nodes and theirs) or nodes & theirs), "")
    failed[name] = nodes
    told = "" if mine else _told(policy)
    parts = (
        troubles(held),
        f"{ready} ready, {desired} wanted, {wanted} GPU nodes",
        f"it waits for {before}" if before else "",
        f"the operator says: {told}" if told else "",
    )
    return Finding(
        Status.FAIL,
        subject,
        "WantsTooFewPods" if lacks else "PodsNotReady",
        "operand does not run on every GPU node" if lacks else "operand is not ready",
        "; ".join(part for part in parts if part),
        expected=str(wanted),
        observed=str(min(ready, desired)),
        evidence=("cluster/daemonsets.apps.json", "cluster/pods.json"),
        nodes=tuple(sorted(nodes)),
    )


def _barred(mine: list[Object], home: Object) -> str | None:
    """What keeps every DaemonSet of an operand off a node; None where one may run there."""
    reasons = [kept_out(one, home) for one in mine]
    if None in reasons:
        return None
    return next(iter(reasons), "there is no DaemonSet")


@check(
    "gpu.policy",
    title="the ClusterPolicy is ready, and for the right reason",
    proves="The GPU Operator reconciled GPU nodes, not an empty cluster.",
    rule="One ClusterPolicy is in force, its state is ready and its Ready condition has reason Reconciled.",
    source="NVIDIA/gpu-operator v26.7.0, controllers/clusterpolicy_controller.go: it is ready, too, with no NFD "
    "labels and with no GPU node",
    fix="Read the condition: kubectl get clusterpolicy -o yaml",
    avoid="Do not delete the ClusterPolicy; that takes the driver from every node.",
    needs=("clusterpolicies.nvidia.com",),
    after=(*NODES, *OPERATOR, "nfd.labels", "gpu.operands"),
)
def policy(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """ClusterPolicy state and reason."""
    found = evidence.objects("clusterpolicies.nvidia.com")
    where = ("cluster/clusterpolicies.nvidia.com.json",)
    if not found:
        yield Finding(
            Status.FAIL,
            Subject("cluster", expected.cluster.name),
            "NoPolicy",
            "no ClusterPolicy",
            expected="cluster-policy",
            observed="none",
            fix="Run the installer; the GPU Operator's chart makes it.",
            evidence=where,
        )
    for one in found:
        subject = Subject("object", name_of(one))
        state = str(one.get("status", {}).get("state", "not set"))
        seen = condition(one, "Ready") or {}
        reason = str(seen.get("reason", "no condition"))
        if state == "ignored":
            yield Finding(
                Status.WARN, subject, "SecondPolicy", "a second ClusterPolicy is ignored", evidence=where,
                fix=f"Delete the one that nobody uses: kubectl delete clusterpolicy {name_of(one)}",
            )  # fmt: skip
        elif state == "ready" and reason == "Reconciled":
            yield passed(subject)
        elif excuse := _excuse(one, expected, evidence):
            yield skipped(subject, excuse)
        else:
            error = condition(one, "Error") or {}
            told = seen.get("message") or error.get("message") or ""
            cause = "the ClusterPolicy is not ready"
            if state == "ready":
                cause = "the ClusterPolicy says ready without having reconciled a GPU node"
            yield Finding(
                Status.FAIL,
                subject,
                "FalselyReady" if state == "ready" else "PolicyNotReady",
                cause,
                f"state {state}, reason {reason}" + (f": {told}" if told else ""),
                expected="ready, Reconciled",
                observed=f"{state}, {reason}",
                evidence=where,
                collective=True,
            )


@check(
    "gpu.allocatable",
    title="every node offers all its GPUs",
    proves="The device plugin sees as many GPUs as were promised, and pods can have them.",
    rule="allocatable nvidia.com/gpu equals the promise on each node, unless DRA serves the GPUs.",
    source="NVIDIA/gpu-operator v26.7.0, cmd/nvidia-validator/main.go: the operator's own validator is content with "
    "one GPU",
    fix="Compare with the node: nvidia-smi -L there, then dmesg for Xid 79 and PCI errors.",
    avoid="Do not start multi-node jobs before the node is out or mended; one would hang pending.",
    needs=("nodes",),
    after=(*NODES, *MACHINE, *OPERATOR, "nfd.labels", "gpu.operands", "gpu.policy/cluster/*"),
)
def gpu_allocatable(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """nvidia.com/gpu per node."""
    nodes = expected.gpu_nodes(evidence.objects("nodes"))
    if expected.cluster.dra == "gpus":
        yield skipped(Subject("cluster", expected.cluster.name), "DRA serves the GPUs")
        return
    for one, group in nodes:
        offered = allocatable(one, GPU)
        if not offered and not group.gpus:
            yield skipped(node(name_of(one)), "inventory promises no whole GPU here")
            continue
        if offered == group.gpus:
            yield passed(node(name_of(one)), f"{offered} of {group.gpus}", evidence=("cluster/nodes.json",))
            continue
        cause = "fewer GPUs allocatable than expected"
        if offered == 0:
            cause = "no GPU allocatable"
        elif offered > group.gpus:
            cause = "more GPUs allocatable than expected"
        yield Finding(
            Status.FAIL,
            node(name_of(one)),
            "FewerThanExpected" if offered < group.gpus else "MoreThanExpected",
            cause,
            f"{offered} of {group.gpus}",
            expected=str(group.gpus),
            observed=str(offered),
            fix=None if offered else "Follow the operands: kubectl -n gpu-operator get pods -o wide",
            evidence=("cluster/nodes.json",),
        )


@check(
    "gpu.product",
    title="the GPUs are of the promised product",
    proves="The hardware is what was ordered.",
    rule="Label nvidia.com/gpu.product equals the group's gpu_product; without GFD it cannot tell.",
    source="NVIDIA/k8s-device-plugin, docs/gpu-feature-discovery/README.md, generated labels",
    fix="Correct inventory, or send the machine back.",
    needs=("nodes",),
    after=(*NODES, *OPERATOR, "nfd.labels", "gpu.operands", "gpu.policy/cluster/*", "gpu.allocatable"),
)
def product(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """GFD's product label."""
    for one, group in expected.gpu_nodes(evidence.objects("nodes")):
        seen = labels_of(one).get(PRODUCT)
        subject = node(name_of(one))
        if seen == group.gpu_product:
            yield passed(subject, seen)
        elif seen is None:
            yield Finding(
                Status.UNPROVEN, subject, "NoLabel", "GFD has not labelled the node", expected=group.gpu_product,
                fix="Look at gpu-feature-discovery on that node.", evidence=("cluster/nodes.json",),
                required=expected.cluster.dra != "gpus",
            )  # fmt: skip
        else:
            yield Finding(
                Status.FAIL,
                subject,
                "ProductDiffers",
                "node has another GPU product than expected",
                f"{seen} instead of {group.gpu_product}",
                expected=group.gpu_product,
                observed=seen,
                evidence=("cluster/nodes.json",),
            )


def _excuse(policy: Object, expected: Expected, evidence: Evidence) -> str:
    """Why a ClusterPolicy need not be in order while spot nodes are away; the operands are judged by themselves."""
    nodes = evidence.objects("nodes")
    ready, error = condition(policy, "Ready") or {}, condition(policy, "Error") or {}
    if expected.gone(nodes) and {ready.get("reason"), error.get("reason")} & {"OperandNotReady", "DriverNotReady"}:
        return "an operand waits for spot nodes that are away, which inventory allows"
    groups = expected.cluster.groups
    spot = bool(groups) and all(group.capacity == "spot" for group in groups)
    if spot and not expected.gpu_nodes(nodes) and ready.get("status") == "True":
        return "every GPU node is a spot node and away, which inventory allows"
    return ""


def _homes(key: str, expected: Expected, evidence: Evidence) -> list[Object]:
    """The GPU nodes on which an operand belongs."""
    nodes = [one for one, _ in expected.gpu_nodes(evidence.objects("nodes"))]
    nodes = [one for one in nodes if labels_of(one).get("nvidia.com/gpu.deploy.operands") != "false"]
    if key == "driver":
        # The word of NVIDIA/k8s-driver-manager (cmd/driver-manager) for a node whose host brings the driver.
        return [one for one in nodes if labels_of(one).get("nvidia.com/gpu.deploy.driver") != "pre-installed"]
    if key == "migManager":
        # It runs where GPUs can be partitioned alone (NVIDIA/gpu-operator, controllers/state_manager.go).
        return [one for one in nodes if labels_of(one).get("nvidia.com/mig.capable") == "true"]
    return nodes


def _told(policy: Object) -> str:
    """What the operator complains of."""
    told = (condition(policy, "Error") or {}).get("message") or (condition(policy, "Ready") or {}).get("message")
    return str(told or "")
