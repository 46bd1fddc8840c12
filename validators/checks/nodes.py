"""The nodes: there, Ready, and open to the pods that belong on them."""

from __future__ import annotations

from collections.abc import Iterator

from ..evidence import Evidence
from ..expected import Expected
from ..model import Finding, Status
from ..registry import check
from ..workloads import taint_text
from .subjects import condition, name_of, node, passed

# Set and taken away by Kubernetes, cloud controllers, the CNI and the autoscalers.
_LIFECYCLE = (
    *("node.kubernetes.io/", "node-role.kubernetes.io/", "node.cloudprovider.kubernetes.io/", "node.cilium.io/"),
    *("karpenter.sh/", "ToBeDeletedByClusterAutoscaler", "DeletionCandidateOfClusterAutoscaler"),
)

# What keeps a kubelet from running, or from starting again.
_KUBELET = (
    *("node.containerd_version", "node.swap", "node.kubelet_restart", "node.cpu_manager", "node.memory_manager"),
    *("node.cgroup_driver", "node.disk"),
)


@check(
    "nodes.present",
    title="every promised GPU node is there",
    proves="No node is silently missing.",
    rule="Each node that inventory names exists; each group that is only counted has its count.",
    source="docs/reference/inventory.md, `nodes` and `count`: Kubernetes itself does not know who is missing",
    fix="Look at the machine: kubectl get nodes; then its console, region and join log.",
    avoid="Do not run kubeadm on a node of a hosted platform.",
    needs=("nodes",),
)
def present(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """Promised nodes exist."""
    nodes = evidence.objects("nodes")
    for name, group in expected.missing(nodes):
        spot = group.capacity == "spot"
        yield Finding(
            Status.SKIP if spot else Status.FAIL,
            node(name),
            "SpotNodeAbsent" if spot else "NodeMissing",
            "spot node is away, which inventory allows" if spot else "promised node does not exist",
            f"group {group.name}",
            expected="a Node object",
            observed="none",
            required=not spot,
            evidence=("cluster/nodes.json",),
        )
    for one, group in expected.gpu_nodes(nodes):
        yield passed(node(name_of(one)), f"group {group.name}", evidence=("cluster/nodes.json",))


@check(
    "nodes.ready",
    title="every node is Ready",
    proves="The kubelet reports, and its container runtime and network work.",
    rule="Condition Ready is True on every node.",
    source="Kubernetes documentation, Node Status, conditions",
    fix="Read the kubelet's reason: kubectl describe node NODE; then journalctl -u kubelet on it.",
    needs=("nodes",),
    after=("nodes.present", *_KUBELET),
)
def ready(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """Condition Ready."""
    for one in evidence.objects("nodes"):
        subject = node(name_of(one))
        group = expected.group_of(one)
        state = condition(one, "Ready") or {}
        if state.get("status") == "True":
            yield passed(subject)
        elif group is not None and group.capacity == "spot" and one["spec"].get("unschedulable"):
            cause = "spot node is preempted, which inventory allows"
            yield Finding(Status.SKIP, subject, "SpotNodeAbsent", cause, required=False)
        else:
            unknown = state.get("status") == "Unknown"
            yield Finding(
                Status.FAIL,
                subject,
                "KubeletSilent" if unknown else "NotReady",
                "kubelet stopped reporting" if unknown else "node is not Ready",
                f"{state.get('reason', 'no condition')}: {state.get('message', '')}".strip(": "),
                expected="Ready",
                observed=str(state.get("reason", "no Ready condition")),
                evidence=("cluster/nodes.json",),
            )


@check(
    "nodes.taints",
    title="GPU nodes carry the declared taints only",
    proves="Operands and jobs that tolerate what inventory declares can land on every GPU node.",
    rule="Each NoSchedule or NoExecute taint of a GPU node is declared in inventory, those that Kubernetes, "
    "cloud, CNI and autoscaler set by themselves aside.",
    source="Kubernetes documentation, Taints and Tolerations; NVIDIA/gpu-operator v26.7.0, values.yaml, "
    "daemonsets.tolerations: nvidia.com/gpu alone",
    fix="Find out who set it; then declare it under `taints` of the group, or: kubectl taint nodes NODE KEY-",
    avoid="Do not remove the taint of a node that someone took out for repair.",
    needs=("nodes",),
    after=("nodes.present", "nodes.ready"),
)
def taints(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """Taints that nobody declared."""
    declared = {(taint["key"], taint["effect"]) for taint in expected.cluster.gpu_taints}
    for one, _ in expected.gpu_nodes(evidence.objects("nodes")):
        strange = [
            taint_text(taint)
            for taint in one["spec"].get("taints") or ()
            if taint["effect"] in ("NoSchedule", "NoExecute")
            and (taint["key"], taint["effect"]) not in declared
            and not taint["key"].startswith(_LIFECYCLE)
        ]
        if strange:
            yield Finding(
                Status.FAIL,
                node(name_of(one)),
                "UndeclaredTaint",
                "a taint that inventory does not declare keeps pods off the node",
                ", ".join(strange),
                expected=", ".join(sorted(":".join(pair) for pair in declared)) or "no taint",
                observed=", ".join(strange),
                evidence=("cluster/nodes.json",),
            )
        else:
            yield passed(node(name_of(one)))


@check(
    "nodes.schedulable",
    title="no GPU node is cordoned",
    proves="Pods can be placed on every GPU node.",
    rule="spec.unschedulable is not set on a GPU node of reserved capacity.",
    source="Kubernetes documentation, Nodes, manual node administration",
    fix="Find out who cordoned it and why; then kubectl uncordon NODE.",
    avoid="Do not uncordon a node that someone took out for repair.",
    needs=("nodes",),
    after=("nodes.present", "nodes.ready"),
)
def schedulable(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """Cordons."""
    for one, group in expected.gpu_nodes(evidence.objects("nodes")):
        if one["spec"].get("unschedulable") and group.capacity != "spot":
            yield Finding(
                Status.WARN,
                node(name_of(one)),
                "Cordoned",
                "node is cordoned",
                expected="schedulable",
                observed="cordoned",
                evidence=("cluster/nodes.json",),
            )
        else:
            yield passed(node(name_of(one)))
