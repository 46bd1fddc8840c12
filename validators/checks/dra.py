"""Dynamic Resource Allocation: may it work here, and does every node publish its devices."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from gpuready.charts_values.versions import dra_shortfalls, parts

from ..evidence import Evidence, Object
from ..expected import Expected
from ..model import Finding, Status, Subject
from ..registry import check
from ..workloads import kept_out, stuck
from .gpu import GPU, OPERATOR
from .releases import DRA_CHART, workloads
from .subjects import NODES, allocatable, labels_of, name_of, node, passed, skipped
from .versions import DRIVER

RELEASE = ("release.installed/*/dra-driver-nvidia-gpu", "release.namespace/*/dra-driver-nvidia-gpu")
GPU_DRIVER = "gpu.nvidia.com"
DOMAIN_DRIVER = "compute-domain.nvidia.com"


@check(
    "dra.rules",
    title="Kubernetes and driver are new enough for DRA",
    proves="Claims can be satisfied at all.",
    rule="Kubernetes >= 1.32 (better 1.34.2), driver >= 565 (better 580), ComputeDomains driver >= 570.158.01.",
    source="kubernetes-sigs/dra-driver-nvidia-gpu 0.4, Chart.yaml (kubeVersion) and "
    "site/content/docs/prerequisites.md; NVIDIA GPU Operator documentation, DRA driver",
    fix="Raise the version that the rule names, or set dra to off in inventory.",
    needs=("nodes",),
    after=(*NODES, *OPERATOR, "nfd.labels", "gpu.operands", "versions.driver"),
)
def rules(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """The rule table against each node's driver."""
    mode = expected.cluster.dra
    cluster = Subject("cluster", expected.cluster.name)
    if mode == "off":
        yield skipped(cluster, "DRA is off in inventory")
        return
    server = evidence.server_version or ""
    if parts(server):
        yield _bounded(cluster, mode, "kubernetes", server)
    else:
        yield Finding(Status.UNPROVEN, cluster, "VersionUnknown", "no server version to hold against the rules")
    for one, _ in expected.gpu_nodes(evidence.objects("nodes")):
        subject = node(name_of(one))
        driver = labels_of(one).get(DRIVER) or _sliced_driver(evidence, name_of(one)) or ""
        if parts(driver):
            yield _bounded(subject, mode, "driver", driver)
        else:
            yield Finding(
                Status.UNPROVEN, subject, "VersionUnknown", "no driver version to hold against the rules",
                evidence=("cluster/nodes.json",),
            )  # fmt: skip


def _bounded(subject: Subject, mode: str, of: str, seen: str) -> Finding:
    """A version against the bounds of its kind, kubernetes or driver."""
    what = "Kubernetes" if of == "kubernetes" else "driver"
    bound = next((bound for bound in dra_shortfalls(mode, seen, seen) if bound.of == of), None)
    if bound is None:
        return passed(subject, f"{what} {seen}")
    return Finding(
        Status.FAIL if bound.refuse else Status.WARN,
        subject,
        "BelowBound",
        f"{what} is older than DRA needs" if bound.refuse else f"{what} is older than DRA wants",
        f"{seen} is below {bound.below}: {bound.why} ({bound.source})",
        expected=f">= {bound.below}",
        observed=seen,
    )


@check(
    "dra.slices",
    title="every GPU node publishes its ResourceSlices",
    proves="The scheduler can allocate this node's devices.",
    rule="Each GPU node has a slice of the driver in use, with DRA for GPUs one that lists every GPU; and the pod "
    "of the kubelet plugin is ready there.",
    source="Kubernetes documentation, Dynamic Resource Allocation, ResourceSlice; "
    "kubernetes-sigs/dra-driver-nvidia-gpu 0.4, hack/kubelet-plugin-prestart.sh: with a wrong root it waits for ever",
    fix="Look at the kubelet plugin on that node. Init:0/1 without an error means a wrong nvidiaDriverRoot.",
    needs=("resourceslices.resource.k8s.io", "nodes"),
    after=(*NODES, *OPERATOR, *RELEASE, "nfd.labels", "gpu.operands", "gpu.policy/cluster/*", "dra.rules"),
)
def slices(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """ResourceSlices per node."""
    mode = expected.cluster.dra
    if mode == "off":
        yield skipped(Subject("cluster", expected.cluster.name), "DRA is off in inventory")
        return
    driver = GPU_DRIVER if mode == "gpus" else DOMAIN_DRIVER
    published = slices_of(evidence, driver)
    plugin = _plugin(expected, evidence)
    held = stuck(evidence, plugin) if plugin else {}
    where = ("cluster/resourceslices.resource.k8s.io.json", "cluster/pods.json")
    for one, group in expected.gpu_nodes(evidence.objects("nodes")):
        name = name_of(one)
        mine = published.get(name)
        count = _gpu_devices(mine or [])
        why = held.get(name) or (kept_out(plugin, one) if plugin else "there is no kubelet plugin") or ""
        if mine is None:
            detail = f"driver {driver}" + (f"; kubelet plugin: {why}" if why else "; its kubelet plugin is ready")
            yield Finding(
                Status.FAIL, node(name), "NoSlice", "node publishes no ResourceSlice", detail,
                expected="a slice", observed="none", evidence=where,
            )  # fmt: skip
        elif name in held:
            yield Finding(
                Status.FAIL, node(name), "PluginNotReady", "the node's DRA kubelet plugin is not ready", why,
                expected="ready", observed=why, evidence=where,
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
    source="kubernetes-sigs/dra-driver-nvidia-gpu 0.4, templates/validation.yaml of the chart: not beside the device "
    "plugin",
    fix="Set dra in inventory to what is meant and run the installer: one of device plugin and DRA goes.",
    avoid="Do not run jobs that share these nodes until it is settled.",
    needs=("resourceslices.resource.k8s.io", "nodes"),
    after=("nodes.present",),
)
def owner(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """No double owner."""
    published = slices_of(evidence, GPU_DRIVER)
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


def _plugin(expected: Expected, evidence: Evidence) -> Object | None:
    """The DaemonSet of the DRA driver's kubelet plugin."""
    release = expected.release(DRA_CHART)
    mine = workloads(evidence, release) if release else []
    return next((one for one in mine if one["kind"] == "DaemonSet"), None)


def slices_of(evidence: Evidence, driver: str) -> dict[str, list[Object]]:
    """The slices of one driver by node."""
    found: dict[str, list[Object]] = defaultdict(list)
    for one in evidence.objects("resourceslices.resource.k8s.io"):
        if one["spec"].get("driver") == driver and one["spec"].get("nodeName"):
            found[one["spec"]["nodeName"]].append(one)
    return dict(found)


def attributes_of(device: Object) -> Object:
    """A device's attributes, which v1beta1 nests under ``basic``."""
    attributes: Object = device.get("attributes") or device.get("basic", {}).get("attributes") or {}
    return attributes


def _gpu_devices(slices: list[Object]) -> int:
    """Whole GPUs in slices."""
    devices = [device for one in slices for device in one["spec"].get("devices") or ()]
    return sum(attributes_of(device).get("type", {}).get("string", "gpu") == "gpu" for device in devices)


def _sliced_driver(evidence: Evidence, name: str) -> str | None:
    """The driver version that a node's GPU slices tell, for clusters without GFD."""
    for one in slices_of(evidence, GPU_DRIVER).get(name, ()):
        for device in one["spec"].get("devices") or ():
            version: Object = attributes_of(device).get("driverVersion", {})
            if "version" in version:
                return str(version["version"])
    return None
