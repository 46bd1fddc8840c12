"""Claims of Dynamic Resource Allocation: does who asks for devices get them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime

from ..acceptance.verdicts import probe_pods
from ..evidence import Evidence, Object
from ..expected import Expected
from ..model import Finding, Status, Subject
from ..registry import check
from .dra import GPU_DRIVER, RELEASE, attributes_of, slices_of
from .subjects import PROBES, name_of, node, not_probed, passed, skipped

# How long the scheduler may take over a claim.
PATIENCE_SECONDS = 60


@check(
    "dra.pending",
    title="no pod waits for a claim in vain",
    proves="Who asks for devices by claim gets them.",
    rule=f"No ResourceClaim without an allocation names a DeviceClass that does not exist, or is older than "
    f"{PATIENCE_SECONDS} s, while a pending pod waits for it.",
    source="Kubernetes documentation, Dynamic Resource Allocation, DeviceClass: a claim names it exactly",
    fix="Compare the claim's deviceClassName with kubectl get deviceclasses; then kubectl describe the pod.",
    needs=("resourceclaims.resource.k8s.io", "deviceclasses.resource.k8s.io", "pods"),
    after=(*RELEASE, "dra.slices", "dra.rules"),
)
def pending(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """Claims that wait."""
    cluster = Subject("cluster", expected.cluster.name)
    if expected.cluster.dra == "off":
        yield skipped(cluster, "DRA is off in inventory")
        return
    known = {name_of(one) for one in evidence.objects("deviceclasses.resource.k8s.io")}
    waiting = _waiting_pods(evidence)
    found = []
    for claim in evidence.objects("resourceclaims.resource.k8s.io"):
        place = f"{claim['metadata']['namespace']}/{name_of(claim)}"
        if place not in waiting or claim.get("status", {}).get("allocation"):
            continue
        unknown = sorted(_classes(claim) - known)
        age = _age(claim, evidence)
        if not unknown and (age is None or age < PATIENCE_SECONDS):
            continue
        pod = f"pod {waiting[place]} waits for it"
        found.append(
            Finding(
                Status.WARN,
                Subject("object", place),
                "ClassMissing" if unknown else "NoDevice",
                "a claim names a DeviceClass that does not exist" if unknown else "no device satisfies a claim",
                f"{', '.join(unknown)}; {pod}" if unknown else f"{pod}, for {age:.0f} s",
                expected="allocated",
                observed="pending",
                evidence=("cluster/resourceclaims.resource.k8s.io.json",),
            )
        )
    yield from found or [passed(cluster, "no pod waits for a claim")]


@check(
    "dra.claim",
    title="a claim gets every GPU of its node",
    proves="Scheduler, DRA driver and runtime hand out the devices that the claim says.",
    rule="The pod that claimed all GPUs of a node saw as many as promised, each a UUID of the node's slices.",
    source="Kubernetes documentation, Dynamic Resource Allocation, ResourceClaim: a slice offers, only a claim "
    "allocates",
    fix="kubectl -n gpuready describe the pod; then the log of the kubelet plugin on that node.",
    needs=("pods", "nodes", "resourceslices.resource.k8s.io"),
    after=(*PROBES, "dra.rules", "dra.slices", "dra.owner", "smi.pod"),
    phase="accept",
    tier="gpu",
)
def claim(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """Allocation of the probes' claims."""
    if expected.cluster.dra != "gpus":
        cause = "the device plugin serves the GPUs" if expected.cluster.dra != "off" else "DRA is off in inventory"
        yield skipped(Subject("cluster", expected.cluster.name), cause)
        return
    published = slices_of(evidence, GPU_DRIVER)
    probes = {pod.node: pod for pod in probe_pods(evidence, "nvidia-smi") if pod.node and pod.exit_code == 0}
    for one, group in expected.gpu_nodes(evidence.objects("nodes")):
        name = name_of(one)
        pod = probes.get(name)
        if pod is None or not pod.claims:
            yield not_probed(name, "no probe got the node's GPUs by a claim")
            continue
        # The claim itself is released with its pod; what the pod saw must be what the node published.
        seen = set(re.findall(r"<uuid>([^<]+)</uuid>", evidence.nodes.get(name, {}).get("nvidia-smi.xml", "")))
        known = seen & _uuids(published.get(name, []))
        if len(known) == len(seen) == group.gpus:
            yield passed(node(name), f"{len(seen)} GPUs by claim, each in the node's ResourceSlices")
        else:
            yield Finding(
                Status.FAIL, node(name), "ClaimDiffers", "the claim does not give the promised GPUs",
                f"{len(seen)} seen, {len(known)} of them published, {group.gpus} promised",
                expected=str(group.gpus), observed=str(len(known)),
                evidence=(f"nodes/{name}/nvidia-smi.xml", "cluster/resourceslices.resource.k8s.io.json"),
            )  # fmt: skip


def _waiting_pods(evidence: Evidence) -> dict[str, str]:
    """The pods that wait to be scheduled, by the claims that they use."""
    found: dict[str, str] = {}
    for pod in evidence.objects("pods"):
        if pod["spec"].get("nodeName") or pod.get("status", {}).get("phase") != "Pending":
            continue
        names = [one.get("resourceClaimName") for one in pod["spec"].get("resourceClaims") or ()]
        names += [one.get("resourceClaimName") for one in pod["status"].get("resourceClaimStatuses") or ()]
        namespace = pod["metadata"]["namespace"]
        found |= {f"{namespace}/{name}": f"{namespace}/{name_of(pod)}" for name in names if name}
    return found


def _classes(claim: Object) -> set[str]:
    """The DeviceClasses without which a claim cannot be satisfied; of alternatives any one will do."""
    requests = claim["spec"].get("devices", {}).get("requests") or ()
    # v1 and v1beta2 nest what v1beta1 keeps flat.
    asked = (one.get("exactly") or one for one in requests)
    return {str(one["deviceClassName"]) for one in asked if one.get("deviceClassName")}


def _age(claim: Object, evidence: Evidence) -> float | None:
    """Seconds from the claim's creation to the run; None where either is not known."""
    made, now = claim["metadata"].get("creationTimestamp"), evidence.about.get("time")
    return (datetime.fromisoformat(now) - datetime.fromisoformat(made)).total_seconds() if made and now else None


def _uuids(slices: list[Object]) -> set[str]:
    """The UUIDs of the devices in slices."""
    devices = [device for one in slices for device in one["spec"].get("devices") or ()]
    return {str(attributes_of(device).get("uuid", {}).get("string", "")) for device in devices}
