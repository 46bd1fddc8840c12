"""The API server and the nodes: what everything else stands on."""

from __future__ import annotations

from collections.abc import Iterator

from ..evidence import Evidence
from ..expected import Expected
from ..model import Finding, Status, Subject
from ..registry import check
from .subjects import condition, name_of, node, passed, skipped


@check(
    "cluster.reachable",
    title="the API server answers",
    proves="There is something to judge.",
    rule="GET /version is answered.",
    source="health facts E1",
    fix="Check the context and the network: kubectl version",
)
def reachable(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """The server's version is known."""
    subject = Subject("cluster", expected.cluster.name)
    failure = evidence.failures.get("version")
    if evidence.server_version:
        yield passed(subject, f"Kubernetes {evidence.server_version}")
    elif evidence.objects("nodes"):
        yield passed(subject, "it does not tell its version")
    elif failure is not None and failure.kind == "forbidden":
        cause = "the API server does not accept the credentials"
        yield Finding(
            Status.ERROR, subject, "CredentialsRefused", cause, failure.message,
            fix="Log in again, or give another --kubeconfig or --context.",
        )  # fmt: skip
    elif failure is not None:
        cause = "the API server does not answer"
        yield Finding(Status.ERROR, subject, "Unreachable", cause, failure.message)
    else:
        yield skipped(subject, "the bundle names no API server")


@check(
    "cluster.identity",
    title="the API server is the one that inventory pins",
    proves="The report is about the cluster that was meant.",
    rule="The uid of namespace kube-system equals cluster_uid of the inventory entry, where it is pinned.",
    source="platform facts M14: contexts get mixed up; a namespace uid does not",
    fix="Choose the right context, or correct cluster_uid in inventory.",
    avoid="Do not install anything before this is settled.",
    needs=("namespaces",),
)
def identity(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """The right cluster answered."""
    subject = Subject("cluster", expected.cluster.name)
    seen = evidence.about.get("uid")
    pinned = expected.cluster.cluster_uid
    if pinned and pinned != seen:
        yield Finding(
            Status.FAIL,
            subject,
            "AnotherCluster",
            "this is another cluster than inventory pins",
            f"uid {seen} instead of {pinned}",
            expected=pinned,
            observed=str(seen),
            evidence=("cluster/namespaces.json",),
        )
    else:
        yield passed(subject, f"uid {seen}" + ("" if pinned else ", not pinned in inventory"))


@check(
    "nodes.present",
    title="every promised GPU node is there",
    proves="No node is silently missing.",
    rule="Each node that inventory names exists; each group that is only counted has its count.",
    source="health facts E4; platform facts M15-M17 on why nodes do not join",
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
    source="health facts E3",
    fix="Read the kubelet's reason: kubectl describe node NODE; then journalctl -u kubelet on it.",
    needs=("nodes",),
    after=("nodes.present",),
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
    "nodes.schedulable",
    title="no GPU node is cordoned",
    proves="Pods can be placed on every GPU node.",
    rule="spec.unschedulable is not set on a GPU node of reserved capacity.",
    source="health facts E5",
    fix="Find out who cordoned it and why; then kubectl uncordon NODE.",
    avoid="Do not uncordon a node that someone took out for repair.",
    needs=("nodes",),
)
def schedulable(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """Cordons."""
    nodes = expected.gpu_nodes(evidence.objects("nodes"))
    if not nodes:
        subject = Subject("cluster", expected.cluster.name)
        yield Finding(
            Status.UNPROVEN, subject, "NoGpuNodes", "no node belongs to a group of inventory",
            fix="Compare the groups of inventory with kubectl get nodes --show-labels.",
        )  # fmt: skip
    for one, group in nodes:
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
