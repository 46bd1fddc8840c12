"""The GPU Operator's own word, its operands, and what nodes really offer."""

from __future__ import annotations

from collections.abc import Iterator

from ..evidence import Evidence, Object
from ..expected import Expected
from ..model import Finding, Status, Subject
from ..registry import check
from .subjects import allocatable, condition, labels_of, name_of, node, passed, skipped

GPU = "nvidia.com/gpu"
PRODUCT = "nvidia.com/gpu.product"
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
    "gpu.policy",
    title="the ClusterPolicy is ready, and for the right reason",
    proves="The GPU Operator reconciled GPU nodes, not an empty cluster.",
    rule="One ClusterPolicy is in force, its state is ready and its Ready condition has reason Reconciled.",
    source="install facts 2.6: it is also ready with no NFD labels and with no GPU node",
    fix="Read the condition: kubectl get clusterpolicy -o yaml",
    avoid="Do not delete the ClusterPolicy; that takes the driver from every node.",
    needs=("clusterpolicies.nvidia.com",),
    after=("release.installed", "nfd.labels"),
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
            )


@check(
    "gpu.operands",
    title="the operands run on every GPU node",
    proves="Driver, toolkit, device plugin and the rest are ready where they belong.",
    rule="Each operand that the ClusterPolicy enables wants as many pods as there are GPU nodes, and has them.",
    source="install facts 2.7 and 11.2: a DaemonSet that wants 0 pods counts as ready",
    fix="Look at the first operand that is not ready; the later ones wait for it.",
    needs=("daemonsets.apps", "clusterpolicies.nvidia.com", "nodes"),
    after=("nodes.ready", "nfd.labels", "gpu.policy", "release.installed"),
)
def operands(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """DaemonSets in the order of their dependence."""
    policies = evidence.objects("clusterpolicies.nvidia.com")
    spec = policies[0].get("spec", {}) if policies else {}
    everywhere = _driver_nodes(expected, evidence)
    where = ("cluster/daemonsets.apps.json",)
    blamed = ""
    for key, name in OPERANDS:
        if not spec.get(key, {}).get("enabled", key == "validator"):
            continue
        subject = Subject("object", name)
        wanted = _mig_nodes(expected, evidence) if key == "migManager" else everywhere
        if key == "migManager" and not wanted:
            yield skipped(subject, "no GPU here can be partitioned (MIG)")
            continue
        one = evidence.find("daemonsets.apps", name)
        status = one.get("status", {}) if one else {}
        desired, ready = status.get("desiredNumberScheduled", 0), status.get("numberReady", 0)
        if one is not None and ready >= desired >= wanted > 0:
            yield passed(subject, f"{ready} of {desired} ready")
            continue
        lacking = one is None or desired < wanted
        yield Finding(
            Status.FAIL,
            subject,
            "WantsTooFewPods" if lacking else "PodsNotReady",
            "operand does not run on every GPU node" if lacking else "operand is not ready",
            f"{ready} ready, {desired} wanted, {wanted} GPU nodes" + (f"; it waits for {blamed}" if blamed else ""),
            expected=str(wanted),
            observed=str(min(ready, desired)),
            evidence=where,
        )
        blamed = blamed or name
    if not policies:
        yield Finding(
            Status.UNPROVEN,
            Subject("cluster", expected.cluster.name),
            "NoPolicy",
            "no ClusterPolicy to compare with",
        )


@check(
    "gpu.allocatable",
    title="every node offers all its GPUs",
    proves="The device plugin sees as many GPUs as were promised, and pods can have them.",
    rule="allocatable nvidia.com/gpu equals the promise on each node, unless DRA serves the GPUs.",
    source="health facts E7: the operator's validator is content with one GPU",
    fix="Compare with the node: nvidia-smi -L there, then dmesg for Xid 79 and PCI errors.",
    avoid="Do not start multi-node jobs before the node is out or mended; one would hang pending.",
    needs=("nodes",),
    after=("nodes.present", "nodes.ready", "nfd.labels", "gpu.policy", "gpu.operands", "release.installed"),
)
def gpu_allocatable(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """nvidia.com/gpu per node."""
    nodes = expected.gpu_nodes(evidence.objects("nodes"))
    if expected.cluster.dra == "gpus":
        yield skipped(Subject("cluster", expected.cluster.name), "DRA serves the GPUs")
        return
    for one, group in nodes:
        offered = allocatable(one, GPU)
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
    source="install facts 2.9",
    fix="Correct inventory, or send the machine back.",
    needs=("nodes",),
    after=("nodes.ready", "gpu.operands", "gpu.allocatable"),
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


def _driver_nodes(expected: Expected, evidence: Evidence) -> int:
    """GPU nodes that exist and are not excused: how many pods each operand must want."""
    return sum(not _excused(one) for one, _ in expected.gpu_nodes(evidence.objects("nodes")))


def _mig_nodes(expected: Expected, evidence: Evidence) -> int:
    """GPU nodes that can partition their GPUs: MIG manager runs on these alone (install facts 2.9)."""
    nodes = expected.gpu_nodes(evidence.objects("nodes"))
    return sum(labels_of(one).get("nvidia.com/mig.capable") == "true" for one, _ in nodes if not _excused(one))


def _excused(one: Object) -> bool:
    return labels_of(one).get("nvidia.com/gpu.deploy.operands") == "false"
