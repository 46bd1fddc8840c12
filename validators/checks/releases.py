"""Each Helm release by what runs of it, never by Helm's own word."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..evidence import Evidence, Object
from ..expected import Expected, PlannedRelease
from ..model import Finding, Status, Subject
from ..registry import check
from .subjects import labels_of, name_of, passed

RELEASE_NAME = "meta.helm.sh/release-name"
RELEASE_NAMESPACE = "meta.helm.sh/release-namespace"


def workloads(evidence: Evidence, release: PlannedRelease) -> list[Object]:
    """The Deployments and DaemonSets that Helm made for a release."""
    found = []
    for key in ("deployments.apps", "daemonsets.apps"):
        for item in evidence.objects(key):
            notes = item["metadata"].get("annotations") or {}
            if (notes.get(RELEASE_NAME), notes.get(RELEASE_NAMESPACE)) == (release.name, release.namespace):
                found.append(item)
    return found


def chart_version(workload: Object, chart: str) -> str | None:
    """The chart version that a workload says it came from, by its label; None where it has no such label."""
    label = labels_of(workload).get("helm.sh/chart", "")
    return label.removeprefix(f"{chart}-") if label.startswith(f"{chart}-") else None


def image_tags(workload: Object) -> set[str]:
    """Tags of the images that a workload runs, digests cut off."""
    containers = workload["spec"]["template"]["spec"]["containers"]
    images = (str(one["image"]).partition("@")[0] for one in containers)
    return {image.rpartition(":")[2] for image in images if ":" in image}


def unready(workload: Object) -> str | None:
    """What a workload lacks, in words; None where all its pods are ready."""
    status = workload.get("status", {})
    if workload["kind"] == "DaemonSet":
        wanted = status.get("desiredNumberScheduled", 0)
        ready = status.get("numberReady", 0)
    else:
        wanted = workload["spec"].get("replicas", 1)
        ready = status.get("readyReplicas", 0)
    return None if ready >= wanted else f"{name_of(workload)} {ready} of {wanted} ready"


@check(
    "release.installed",
    title="every release of charts_values runs",
    proves="What was to be installed is there, and its pods are ready.",
    rule="Each planned release has workloads of its name and namespace, all of whose pods are ready.",
    source="install facts 11.2: `helm status` says deployed while nothing runs",
    fix="Run the installer again: pyinfra inventory deploys/gpu.py. Then: kubectl -n NAMESPACE get pods",
    avoid="Do not uninstall a release to mend it; its custom resources may go with it.",
    needs=("deployments.apps", "daemonsets.apps"),
    after=("nodes.ready",),
)
def installed(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """Releases by their workloads."""
    for release in expected.releases:
        subject = Subject("object", f"{release.namespace}/{release.name}")
        mine = workloads(evidence, release)
        lacking = [text for text in map(unready, mine) if text]
        if not mine:
            yield Finding(
                Status.FAIL,
                subject,
                "ReleaseMissing",
                "release is not installed",
                f"no workload says it belongs to release {release.name}",
                expected=f"{release.chart} {release.version}",
                observed="nothing",
                evidence=("cluster/deployments.apps.json", "cluster/daemonsets.apps.json"),
            )
        elif lacking:
            yield Finding(
                Status.FAIL,
                subject,
                "PodsNotReady",
                "pods of the release are not ready",
                "; ".join(lacking),
                expected="all pods ready",
                observed=lacking[0],
                evidence=("cluster/deployments.apps.json", "cluster/daemonsets.apps.json"),
            )
        else:
            yield passed(subject, f"{len(mine)} workloads ready")


@check(
    "release.version",
    title="every release has the pinned version",
    proves="What runs is what charts_values/charts.yaml pins.",
    rule="The chart label or, without one, an image tag of the release's workloads carries the pinned version.",
    source="health facts E10; Helm's own records are Secrets, which a read-only role must not read",
    fix="Run the installer, or pin what runs in charts_values.",
    avoid="Do not upgrade a driver or Cilium outside a maintenance window.",
    needs=("deployments.apps", "daemonsets.apps"),
    after=("release.installed",),
)
def release_version(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """Chart versions."""
    for release in expected.releases:
        subject = Subject("object", f"{release.namespace}/{release.name}")
        mine = workloads(evidence, release)
        seen = {version for one in mine if (version := chart_version(one, release.chart))}
        tags = set().union(*map(image_tags, mine)) if mine else set()
        plain = release.version.removeprefix("v")
        if not mine:
            yield Finding(Status.UNPROVEN, subject, "ReleaseMissing", "no workload shows a version", required=False)
        elif seen == {release.version} or (not seen and {plain, f"v{plain}"} & tags):
            yield passed(subject, release.version)
        else:
            observed = ", ".join(sorted(seen or {t for t in tags if re.match(r"v?\d", t)})) or "no version"
            yield Finding(
                Status.FAIL,
                subject,
                "VersionDiffers",
                "release has another version than charts_values pins",
                f"{observed} instead of {release.version}",
                expected=release.version,
                observed=observed,
                evidence=("cluster/deployments.apps.json", "cluster/daemonsets.apps.json"),
            )
