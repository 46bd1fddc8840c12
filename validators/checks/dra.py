"""Dynamic Resource Allocation: may it work here, does it publish every GPU, does a claim get one."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

from gpuready.charts_values.versions import dra_shortfalls, parts

from ..acceptance.verdicts import probe_pods
from ..evidence import Evidence, Object
from ..expected import Expected
from ..model import Finding, Status, Subject
from ..registry import check
from .gpu import GPU
from .subjects import allocatable, labels_of, name_of, node, passed, skipped
from .versions import DRIVER

GPU_DRIVER = "gpu.nvidia.com"
DOMAIN_DRIVER = "compute-domain.nvidia.com"


@check(
    "dra.rules",
    title="Kubernetes and driver are new enough for DRA",
    proves="Claims can be satisfied at all.",
    rule="Kubernetes >= 1.32 (better 1.34.2), driver >= 565 (better 580), ComputeDomains driver >= 570.158.01.",
    source="install facts 4.4: chart, DRA driver documentation and GPU Operator documentation, reconciled",
    fix="Raise the version that the rule names, or set dra to off in inventory.",
    needs=("nodes",),
    after=("versions.driver",),
)
def rules(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """The rule table against each node's driver."""
    mode = expected.cluster.dra
    cluster = Subject("cluster", expected.cluster.name)
    if mode == "off":
        yield skipped(cluster, "DRA is off in inventory")
        return
    server = evidence.server_version or ""
    by_driver: dict[str, list[str]] = defaultdict(list)
    for one, _ in expected.gpu_nodes(evidence.objects("nodes")):
        by_driver[labels_of(one).get(DRIVER) or _sliced_driver(evidence, name_of(one)) or ""].append(name_of(one))
    for version, names in sorted(by_driver.items()):
        if not version or not parts(server):
            yield Finding(
                Status.UNPROVEN, cluster, "VersionUnknown", "no driver or server version to hold against the rules",
                f"{len(names)} nodes without a driver version", nodes=tuple(names),
            )  # fmt: skip
            continue
        missed = dra_shortfalls(mode, server, version)
        for bound in missed:
            seen = server if bound.of == "kubernetes" else version
            what = "Kubernetes" if bound.of == "kubernetes" else "driver"
            yield Finding(
                Status.FAIL if bound.refuse else Status.WARN,
                cluster,
                "BelowBound",
                f"{what} is older than DRA needs" if bound.refuse else f"{what} is older than DRA wants",
                f"{seen} is below {bound.below}: {bound.why} ({bound.source})",
                expected=f">= {bound.below}",
                observed=seen,
                nodes=tuple(names) if bound.of == "driver" else (),
            )
        if not missed:
            yield passed(cluster, f"Kubernetes {server}, driver {version}")


@check(
    "dra.slices",
    title="every GPU node publishes its ResourceSlices",
    proves="The scheduler can allocate this node's devices.",
    rule="Each GPU node has a slice of the driver in use; with DRA for GPUs it lists every GPU.",
    source="health facts E17; install facts 4.3 and 10.15",
    fix="Look at the kubelet plugin on that node. Init:0/1 without an error means a wrong nvidiaDriverRoot.",
    needs=("resourceslices.resource.k8s.io", "nodes"),
    after=("release.installed", "nodes.ready", "gpu.operands", "dra.rules"),
)
def slices(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """ResourceSlices per node."""
    mode = expected.cluster.dra
    if mode == "off":
        yield skipped(Subject("cluster", expected.cluster.name), "DRA is off in inventory")
        return
    driver = GPU_DRIVER if mode == "gpus" else DOMAIN_DRIVER
    published = _slices(evidence, driver)
    where = ("cluster/resourceslices.resource.k8s.io.json",)
    for one, group in expected.gpu_nodes(evidence.objects("nodes")):
        name = name_of(one)
        mine = published.get(name)
        count = _gpu_devices(mine or [])
        if mine is None:
            yield Finding(
                Status.FAIL, node(name), "NoSlice", "node publishes no ResourceSlice", f"driver {driver}",
                expected="a slice", observed="none", evidence=where,
            )  # fmt: skip
        elif mode == "gpus" and count != group.gpus:
            yield Finding(
                Status.FAIL, node(name), "FewerThanExpected", "ResourceSlices list another number of GPUs",
                f"{count} of {group.gpus}", expected=str(group.gpus), observed=str(count), evidence=where,
            )  # fmt: skip
        else:
            yield passed(node(name), f"{driver}: {sum(len(s['spec'].get('devices') or ()) for s in mine)} devices")


@check(
    "dra.owner",
    title="each GPU has one owner",
    proves="A GPU is not handed out twice.",
    rule="A node does not offer nvidia.com/gpu and GPU slices of gpu.nvidia.com at the same time.",
    source="install facts 4.5; health facts E20",
    fix="Set dra in inventory to what is meant and run the installer: one of device plugin and DRA goes.",
    avoid="Do not run jobs that share these nodes until it is settled.",
    needs=("resourceslices.resource.k8s.io", "nodes"),
)
def owner(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """No double owner."""
    published = _slices(evidence, GPU_DRIVER)
    for one, _ in expected.gpu_nodes(evidence.objects("nodes")):
        name = name_of(one)
        offered, sliced = allocatable(one, GPU), _gpu_devices(published.get(name, []))
        if offered and sliced:
            yield Finding(
                Status.FAIL,
                node(name),
                "TwoOwners",
                "device plugin and DRA both offer the same GPUs",
                f"nvidia.com/gpu {offered}, {GPU_DRIVER} {sliced}",
                expected="one of them",
                observed="both",
                evidence=("cluster/nodes.json", "cluster/resourceslices.resource.k8s.io.json"),
            )
        else:
            yield passed(node(name), "DRA" if sliced else "device plugin")


@check(
    "dra.claim",
    title="a claim gets every GPU of its node",
    proves="Scheduler, DRA driver and runtime hand out the devices that the claim says.",
    rule="The pod that claimed all GPUs of a node saw as many as promised, each a UUID of the node's slices.",
    source="health facts E19: a plugin's green light is no allocation",
    fix="kubectl -n gpuready describe the pod; then the log of the kubelet plugin on that node.",
    needs=("pods", "nodes", "resourceslices.resource.k8s.io"),
    after=("dra.rules", "dra.slices", "dra.owner"),
    phase="accept",
    tier="gpu",
)
def claim(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """Allocation of the probes' claims."""
    if expected.cluster.dra != "gpus":
        cause = "the device plugin serves the GPUs" if expected.cluster.dra != "off" else "DRA is off in inventory"
        yield skipped(Subject("cluster", expected.cluster.name), cause)
        return
    published = _slices(evidence, GPU_DRIVER)
    probes = {pod.node: pod for pod in probe_pods(evidence, "nvidia-smi") if pod.node and pod.exit_code == 0}
    for one, group in expected.gpu_nodes(evidence.objects("nodes")):
        name = name_of(one)
        pod = probes.get(name)
        if pod is None or not pod.claims:
            yield Finding(
                Status.UNPROVEN, node(name), "NotProbed", "no probe got the node's GPUs by a claim",
                fix="Mend what keeps the probe from running, then run gpuready accept again.",
            )  # fmt: skip
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


def _uuids(slices: list[Object]) -> set[str]:
    """The UUIDs of the devices in slices."""
    devices = [device for one in slices for device in one["spec"].get("devices") or ()]
    return {str(_attributes(device).get("uuid", {}).get("string", "")) for device in devices}


def _slices(evidence: Evidence, driver: str) -> dict[str, list[Object]]:
    """The slices of one driver by node."""
    found: dict[str, list[Object]] = defaultdict(list)
    for one in evidence.objects("resourceslices.resource.k8s.io"):
        if one["spec"].get("driver") == driver and one["spec"].get("nodeName"):
            found[one["spec"]["nodeName"]].append(one)
    return dict(found)


def _attributes(device: Object) -> Object:
    """A device's attributes, which v1beta1 nests under ``basic``."""
    attributes: Object = device.get("attributes") or device.get("basic", {}).get("attributes") or {}
    return attributes


def _gpu_devices(slices: list[Object]) -> int:
    """Whole GPUs in slices."""
    devices = [device for one in slices for device in one["spec"].get("devices") or ()]
    return sum(_attributes(device).get("type", {}).get("string", "gpu") == "gpu" for device in devices)


def _sliced_driver(evidence: Evidence, name: str) -> str | None:
    """The driver version that a node's GPU slices tell, for clusters without GFD."""
    for one in _slices(evidence, GPU_DRIVER).get(name, ()):
        for device in one["spec"].get("devices") or ():
            version: Object = _attributes(device).get("driverVersion", {})
            if "version" in version:
                return str(version["version"])
    return None
