"""The Helm releases that a cluster shows, and which of them somebody else has installed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gpuready.charts_values import bill

from ..checks.releases import RELEASE_NAME, RELEASE_NAMESPACE
from ..checks.subjects import labels_of
from ..evidence import Evidence

# ConfigMap kube-system/gpuready-installs, in which the installer notes what it made.
INSTALLS = "gpuready-installs"
_NIC_POLICIES = "nicclusterpolicies.mellanox.com"
_SUB_CHART = "node-feature-discovery"
_CHART = re.compile(r"(?P<chart>.+?)-(?P<version>v?\d.*)")


@dataclass(frozen=True)
class Seen:
    """A release that shows itself on a workload; ``version`` is its chart's, empty where no label tells."""

    name: str
    namespace: str
    chart: str
    version: str


def seen(evidence: Evidence) -> list[Seen]:
    """The releases, by name and namespace."""
    charts: dict[tuple[str, str], dict[str, str]] = {}
    for key in ("deployments.apps", "daemonsets.apps"):
        for one in evidence.objects(key):
            notes = one["metadata"].get("annotations") or {}
            if RELEASE_NAME not in notes:
                continue
            place = (notes[RELEASE_NAME], notes.get(RELEASE_NAMESPACE, "?"))
            chart = _CHART.fullmatch(labels_of(one).get("helm.sh/chart", ""))
            version = chart["version"] if chart else labels_of(one).get("app.kubernetes.io/version", "")
            charts.setdefault(place, {}).setdefault(chart["chart"] if chart else place[0], version)
    return [Seen(*place, *_chart(place[0], found)) for place, found in sorted(charts.items())]


def _chart(name: str, found: Mapping[str, str]) -> tuple[str, str]:
    """The release's own chart and its version: the workloads of a sub-chart, mostly NFD, have that one's label."""
    known = [release.chart for release in bill.load() if release.chart != _SUB_CHART]
    chart = next(one for one in (name, *known, *found) if one in found)
    return chart, found[chart]


def adopted(evidence: Evidence, releases: Iterable[Seen]) -> tuple[list[str] | None, str]:
    """The value of `adopt`, None where there is nothing to take over, and what is open about it."""
    ours = _installs(evidence)
    names = []
    for one in releases:
        pinned = next((release for release in bill.load() if release.chart == one.chart), None)
        if pinned is None or ours.get(pinned.key) == f"{one.name}@{one.namespace}":
            continue
        place = "" if (one.name, one.namespace) == (pinned.name, pinned.namespace) else f"={one.name}@{one.namespace}"
        version = f":{one.version}" if one.version and one.version.lstrip("v") != pinned.version.lstrip("v") else ""
        names.append(f"{pinned.key}{place}{version}")
    if "network-operator" not in ours and evidence.objects(_NIC_POLICIES):
        names.append(bill.NIC_CLUSTER_POLICY)
    if not names:
        return None, ""
    lost = f"; {INSTALLS} could not be read" if _lost(evidence) else ""
    return names, f"check: gpuready did not install these; it takes them over with the values they have{lost}"


def without_helm(evidence: Evidence) -> list[str]:
    """Notes on what is there and belongs to no Helm release: it cannot be taken over."""
    notes = []
    for key, name, title in (
        ("daemonsets.apps", "cilium", "Cilium"),
        ("deployments.apps", "gpu-operator", "GPU Operator"),
        ("daemonsets.apps", "nvidia-device-plugin-daemonset", "NVIDIA device plugin"),
    ):
        for one in evidence.objects(key):
            owned = one["metadata"].get("ownerReferences") or RELEASE_NAME in (one["metadata"].get("annotations") or {})
            if one["metadata"]["name"] == name and not owned:
                place = one["metadata"].get("namespace", "?")
                notes.append(f"{title} in {place} belongs to no Helm release; the installer refuses beside it.")
    flannel = [one["metadata"]["name"] for one in evidence.objects("nodes") if _of_flannel(one["metadata"])]
    if flannel:
        notes.append(
            f"{len(flannel)} nodes have a pod network of flannel; Cilium is not installed beside it. "
            "Switch flannel off where the cluster is configured."
        )
    return notes


def _of_flannel(meta: Mapping[str, object]) -> bool:
    annotations = meta.get("annotations") or {}
    return isinstance(annotations, Mapping) and any(
        str(key).startswith("flannel.alpha.coreos.com/") for key in annotations
    )


def _installs(evidence: Evidence) -> Mapping[str, str]:
    return (evidence.find(INSTALLS, INSTALLS) or {}).get("data") or {}


def _lost(evidence: Evidence) -> bool:
    failure = evidence.failures.get(INSTALLS)
    return failure is not None and failure.kind != "absent"
