"""Cilium, NFD, the NIC policy and what pods get of RDMA."""

from __future__ import annotations

from collections.abc import Iterator

from ..evidence import Evidence
from ..expected import Expected
from ..model import Finding, Status, Subject
from ..registry import check
from .subjects import allocatable, labels_of, name_of, node, passed, skipped

NIC_POLICY = "nic-cluster-policy"
GPU_ON_PCI = (
    "feature.node.kubernetes.io/pci-10de.present",
    "feature.node.kubernetes.io/pci-0302_10de.present",
    "feature.node.kubernetes.io/pci-0300_10de.present",
)


@check(
    "cilium.nodes",
    title="Cilium knows every node",
    proves="The agent runs on every node and has an address range for its pods.",
    rule="Each node has a CiliumNode object.",
    source="install facts 1.3",
    fix="Look at the agent on that node: kubectl -n kube-system get pods -l k8s-app=cilium -o wide",
    needs=("nodes", "ciliumnodes.cilium.io"),
    after=("release.installed", "nodes.ready"),
)
def cilium_nodes(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """CiliumNode per node."""
    if not _uses_cilium(expected, evidence):
        yield skipped(Subject("cluster", expected.cluster.name), "Cilium is not part of this cluster")
        return
    known = {name_of(one) for one in evidence.objects("ciliumnodes.cilium.io")}
    for one in evidence.objects("nodes"):
        if name_of(one) in known:
            yield passed(node(name_of(one)))
        else:
            yield Finding(
                Status.FAIL,
                node(name_of(one)),
                "NoCiliumNode",
                "Cilium does not know the node",
                expected="a CiliumNode object",
                observed="none",
                evidence=("cluster/ciliumnodes.cilium.io.json",),
            )


@check(
    "cilium.exclusive",
    title="Cilium leaves other CNI files alone",
    proves="Multus and secondary networks keep working.",
    rule="cni-exclusive in ConfigMap kube-system/cilium-config is false.",
    source="install facts 1.3: the agent renames other CNI files, and Multus stops without an error",
    fix="Set cni.exclusive=false in the Cilium values, run the installer, then restart Multus.",
    needs=("configmaps",),
    after=("release.installed",),
)
def cilium_exclusive(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """cni-exclusive."""
    subject = Subject("object", "kube-system/cilium-config")
    config = evidence.find("configmaps", "cilium-config")
    if config is None:
        yield (
            skipped(subject, "Cilium is not part of this cluster")
            if not _uses_cilium(expected, evidence)
            else Finding(Status.UNPROVEN, subject, "NoConfig", "Cilium's configuration is not there")
        )
        return
    value = (config.get("data") or {}).get("cni-exclusive", "true")
    if value == "false":
        yield passed(subject)
    else:
        yield Finding(
            Status.FAIL,
            subject,
            "CniExclusive",
            "Cilium removes other CNI configurations",
            f"cni-exclusive is {value}",
            expected="false",
            observed=value,
            evidence=("cluster/configmaps.json",),
        )


@check(
    "nfd.single",
    title="one NFD",
    proves="One set of labels, from one configuration.",
    rule="Exactly one Deployment is an NFD master.",
    source="install facts 0.1 and 10.19: both operators bring their own unless told not to",
    fix="Set nfd.enabled=false in both operators and keep the release node-feature-discovery.",
    needs=("deployments.apps",),
    after=("release.installed",),
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
    source="install facts 2.9",
    fix="Look at the NFD worker on that node; a taint that it does not tolerate keeps it away.",
    needs=("nodes",),
    after=("nodes.ready", "nfd.single", "release.installed"),
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
    source="install facts 3.3 and 11.10: any other name is ignored, and `ignore` of a part means not requested",
    fix="Read the part that is not ready: kubectl get nicclusterpolicy nic-cluster-policy -o yaml",
    needs=("nicclusterpolicies.mellanox.com",),
    after=("release.installed", "nfd.labels"),
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
    else:
        yield Finding(
            Status.FAIL,
            subject,
            "PolicyNotReady",
            "the NicClusterPolicy is not ready",
            "; ".join(waiting) or f"state {status.get('state', 'not set')}",
            expected="ready",
            observed=str(status.get("state", "not set")),
            evidence=where,
        )


@check(
    "rdma.allocatable",
    title="every node offers its RDMA resources",
    proves="Pods can ask for RDMA devices on every node that is to have them.",
    rule="Each node of a group with RDMA offers each of its rdma/* resources, in the promised count.",
    source="install facts 3.5 and 10.10; health facts E13",
    fix="Check label pci-15b3.present, label mofed.wait (must be false) and the device selectors of the policy.",
    avoid="Do not restart the kubelet under running pods to bring the resource back.",
    needs=("nodes",),
    after=("nodes.present", "nodes.ready", "nfd.labels", "network.policy", "release.installed"),
)
def rdma_allocatable(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """rdma/* per node."""
    if not any(group.rdma_resources for group in expected.cluster.groups):
        yield skipped(Subject("cluster", expected.cluster.name), "inventory expects no rdma/* resource")
        return
    for one, group in expected.gpu_nodes(evidence.objects("nodes")):
        for resource, wanted in group.rdma_resources.items():
            offered = allocatable(one, resource)
            if offered >= wanted:
                yield passed(node(name_of(one)), f"{resource} {offered}")
            else:
                yield Finding(
                    Status.FAIL,
                    node(name_of(one)),
                    "FewerThanExpected",
                    "node offers no RDMA" if offered == 0 else "node offers fewer RDMA shares than expected",
                    f"{resource}: {offered} of {wanted}",
                    expected=str(wanted),
                    observed=str(offered),
                    evidence=("cluster/nodes.json",),
                )


def _uses_cilium(expected: Expected, evidence: Evidence) -> bool:
    planned = expected.release("cilium") is not None
    return planned or evidence.find("daemonsets.apps", "cilium", "kube-system") is not None
