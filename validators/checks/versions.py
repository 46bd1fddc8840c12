"""Versions of Kubernetes, the kubelets and the driver."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from gpuready.charts_values import bill
from gpuready.charts_values.versions import parts

from ..evidence import Evidence
from ..expected import Expected
from ..model import Finding, Status, Subject
from ..registry import check
from .gpu import OPERATOR
from .subjects import NODES, labels_of, name_of, node, passed

DRIVER = "nvidia.com/cuda.driver-version.full"


@check(
    "versions.kubelet",
    title="kubelets fit the API server",
    proves="No node runs a kubelet that the API server does not support.",
    rule="A kubelet is not newer than the API server and at most three minor versions older.",
    source="Kubernetes documentation, Version Skew Policy",
    fix="Upgrade the kubelet of that node.",
    needs=("nodes",),
    after=("nodes.present",),
)
def kubelet(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """Version skew."""
    server = parts(evidence.server_version or "")[:2]
    cluster = Subject("cluster", expected.cluster.name)
    if len(server) < 2:
        yield _unknown_server(cluster)
        return
    for one in evidence.objects("nodes"):
        seen = str(one.get("status", {}).get("nodeInfo", {}).get("kubeletVersion", ""))
        mine = parts(seen)[:2]
        if mine[:1] == server[:1] and server[1] - 3 <= mine[1] <= server[1]:
            yield passed(node(name_of(one)), seen)
        else:
            yield Finding(
                Status.FAIL,
                node(name_of(one)),
                "VersionSkew",
                "kubelet version does not fit the API server",
                f"{seen or 'unknown'} with API server {evidence.server_version}",
                expected=f"1.{server[1] - 3} to 1.{server[1]}",
                observed=seen or "unknown",
                evidence=("cluster/nodes.json",),
            )


@check(
    "versions.driver",
    title="the GPU driver has one version, the promised one",
    proves="No node is half-way through a driver upgrade.",
    rule="GFD's driver version label equals driver_version of inventory on each GPU node.",
    source="NVIDIA/gpu-operator, values.yaml: the default of driver.version moved from 580 (v26.3) to 595 (v26.7.0)",
    fix="Look at nvidia-driver-daemonset on that node; an old pod keeps the old driver until it is replaced.",
    avoid="Do not delete driver pods under running GPU jobs.",
    needs=("nodes",),
    after=(*NODES, *OPERATOR, "nfd.labels", "gpu.operands", "gpu.policy/cluster/*", "release.version/*/gpu-operator"),
)
def driver(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """Driver version by label."""
    wanted = expected.cluster.driver_version
    nodes = expected.gpu_nodes(evidence.objects("nodes"))
    seen = {name_of(one): labels_of(one).get(DRIVER) for one, _ in nodes}
    common = Counter(version for version in seen.values() if version).most_common(1)
    for name, version in seen.items():
        if version == wanted:
            yield passed(node(name), version)
        elif version is None:
            yield Finding(
                Status.UNPROVEN, node(name), "NoLabel", "no label tells the driver version", expected=wanted,
                evidence=("cluster/nodes.json",), fix="Look at gpu-feature-discovery on that node.",
                required=expected.cluster.dra != "gpus",
            )  # fmt: skip
        else:
            mixed = bool(common) and version != common[0][0]
            yield Finding(
                Status.FAIL,
                node(name),
                "DriverDiffers",
                "driver version differs from the other nodes" if mixed else "driver version is not the promised one",
                f"{version} instead of {wanted}",
                expected=wanted,
                observed=version,
                evidence=("cluster/nodes.json",),
            )


@check(
    "versions.kubernetes",
    title="Kubernetes is within the range of every release",
    proves="The charts run on a version that their makers document.",
    rule="The server's minor version lies in the range that charts_values/charts.yaml gives for each release.",
    source="charts_values/charts.yaml, `kubernetes` of each release, with the source of the range; what was not found "
    "is open",
    fix="Choose chart versions for this Kubernetes version in charts_values/charts.yaml.",
    needs=("namespaces",),
)
def kubernetes(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """Kubernetes against the documented ranges."""
    server = evidence.server_version or ""
    subject = Subject("cluster", expected.cluster.name)
    if not parts(server):
        yield _unknown_server(subject)
        return
    outside = [
        problem
        for release in bill.releases(expected.cluster)
        if (problem := bill.unsupported(release, server)) is not None
    ]
    if outside:
        yield Finding(
            Status.FAIL,
            subject,
            "OutsideRange",
            "a release does not support this Kubernetes version",
            "; ".join(outside),
            observed=server,
        )
    else:
        yield passed(subject, server)


def _unknown_server(subject: Subject) -> Finding:
    return Finding(Status.UNPROVEN, subject, "NoServerVersion", "the API server's version is not known")
