"""Each Helm release: what Helm says of it, whether it may run, and what runs of it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from gpuready.charts_values import bill

from ..evidence import RELEASES, Evidence, Object
from ..expected import Expected, PlannedRelease
from ..model import Finding, Status, Subject
from ..registry import check
from ..workloads import counts, stuck, unready
from .subjects import NODES, labels_of, name_of, passed, skipped, troubles

RELEASE_NAME = "meta.helm.sh/release-name"
RELEASE_NAMESPACE = "meta.helm.sh/release-namespace"
PSA_ENFORCE = "pod-security.kubernetes.io/enforce"
DRA_CHART = "dra-driver-nvidia-gpu"


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


@check(
    "release.status",
    title="Helm calls every release deployed",
    proves="No install or upgrade broke off half-way; the next one can go on from here.",
    rule="The newest Helm record of each planned release has status deployed. Only names and labels of the "
    "records are read; without permission for that the check is skipped.",
    source="Helm documentation, helm status: the states of a release",
    fix="helm history RELEASE -n NAMESPACE tells the reason; then run the installer again. A pending one that no "
    "helm is working on needs: helm rollback RELEASE -n NAMESPACE",
    avoid="Do not uninstall the release to get out; its custom resources may go with it.",
)
def release_status(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """The label `status` of the newest record."""
    cluster = Subject("cluster", expected.cluster.name)
    failure = evidence.failures.get(RELEASES)
    if failure is not None or RELEASES not in evidence.cluster:
        forbidden = failure is not None and failure.kind == "forbidden"
        cause = "the identity may not list Helm's records" if forbidden else "Helm's records could not be read"
        yield skipped(cluster, cause, failure.message if failure and not forbidden else "")
        return
    newest: dict[tuple[str, str], dict[str, str]] = {}
    for record in sorted(evidence.objects(RELEASES), key=lambda one: int(labels_of(one).get("version", 0))):
        newest[record["metadata"]["namespace"], name_of(record)] = labels_of(record)
    for release in expected.releases:
        labels = newest.get((release.namespace, release.name))
        status = (labels or {}).get("status", "unknown")
        if labels is None:
            yield skipped(_subject(release), "Helm has no record of the release")
        elif status == "deployed":
            yield passed(_subject(release), f"revision {labels.get('version')}")
        else:
            pending = status.startswith("pending")
            yield Finding(
                Status.FAIL,
                _subject(release),
                "ReleasePending" if pending else "ReleaseNotDeployed",
                "a Helm operation on the release never ended" if pending else "the last Helm operation failed",
                f"revision {labels.get('version')} is {status}",
                expected="deployed",
                observed=status,
                evidence=(f"cluster/{RELEASES}.json",),
            )


@check(
    "release.namespace",
    title="namespaces admit the pods of their releases",
    proves="Pod Security lets pods mount the host's devices, so that a pod that goes can come back.",
    rule="The namespace of each release that needs privileges has pod-security.kubernetes.io/enforce=privileged; "
    "another value fails, no value warns.",
    source="Kubernetes documentation, Pod Security Admission and Pod Security Standards: hostPath and privileged pods",
    fix="kubectl label --overwrite namespace NAMESPACE pod-security.kubernetes.io/enforce=privileged",
    needs=("namespaces",),
)
def release_namespace(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """Pod Security labels."""
    for release in bill.releases(expected.cluster):
        found = evidence.find("namespaces", release.namespace)
        subject = _subject(release)
        level = labels_of(found).get(PSA_ENFORCE) if found else None
        if not release.privileged:
            yield passed(subject, "needs no privileges")
        elif found is None:
            yield skipped(subject, "there is no such namespace")
        elif level == "privileged":
            yield passed(subject)
        else:
            yield Finding(
                Status.FAIL if level else Status.WARN,
                subject,
                "PodsRefused" if level else "NoLabel",
                "the namespace refuses the privileged pods of its release"
                if level
                else "the namespace does not say that it admits privileged pods",
                f"namespace {release.namespace}: enforce is {level or 'not set'}",
                expected="privileged",
                observed=level or "not set",
                evidence=("cluster/namespaces.json",),
            )


@check(
    "release.installed",
    title="every release of charts_values runs",
    proves="What was to be installed is there, and its pods are ready.",
    rule="Each planned release has workloads of its name and namespace; no Deployment is scaled to 0, and all pods "
    "are ready. The DRA driver's DaemonSet is left to dra.slices, which judges it node by node.",
    source="Helm documentation, helm install: without --wait a release is deployed before any pod runs",
    fix="Run the installer again: pyinfra inventory deploys/gpu.py. Then: kubectl -n NAMESPACE get pods",
    avoid="Do not uninstall a release to mend it; its custom resources may go with it.",
    needs=("deployments.apps", "daemonsets.apps"),
    after=(*NODES, "release.status/same", "release.namespace/same"),
)
def installed(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """Releases by their workloads."""
    where = ("cluster/deployments.apps.json", "cluster/daemonsets.apps.json")
    for release in expected.releases:
        mine = workloads(evidence, release)
        judged = [one for one in mine if not (release.chart == DRA_CHART and one["kind"] == "DaemonSet")]
        stopped = [name_of(one) for one in judged if one["kind"] == "Deployment" and counts(one)[1] == 0]
        lacking = [one for one in judged if unready(one)]
        if not mine:
            yield Finding(
                Status.FAIL,
                _subject(release),
                "ReleaseMissing",
                "release is not installed",
                f"no workload says it belongs to release {release.name}",
                expected=f"{release.chart} {release.version}",
                observed="nothing",
                evidence=where,
            )
        elif stopped:
            yield Finding(
                Status.FAIL,
                _subject(release),
                "ScaledToZero",
                "release is switched off: a Deployment is scaled to 0",
                ", ".join(stopped),
                expected="at least 1 replica",
                observed="0 replicas",
                fix=f"kubectl -n {release.namespace} scale deployment {stopped[0]} --replicas 1",
                evidence=where,
            )
        elif lacking:
            held = {name_of(one): stuck(evidence, one) for one in lacking}
            # A workload whose pods have no node must not be excused by the nodes of the others.
            placed = all(nodes and "" not in nodes for nodes in held.values())
            yield Finding(
                Status.FAIL,
                _subject(release),
                "PodsNotReady",
                "pods of the release are not ready",
                "; ".join(_shortfall(one, held[name_of(one)]) for one in lacking),
                expected="all pods ready",
                observed=_shortfall(lacking[0], {}),
                evidence=(*where, "cluster/pods.json"),
                nodes=tuple(sorted(set().union(*held.values()))) if placed else (),
            )
        else:
            yield passed(_subject(release), f"{len(mine)} workloads ready")


@check(
    "release.version",
    title="every release has the pinned version",
    proves="What runs is what charts_values/charts.yaml pins.",
    rule="The chart label or, without one, an image tag of the release's workloads carries the pinned version.",
    source="Helm documentation, Labels and Annotations, helm.sh/chart; Helm's own records are Secrets, which a "
    "read-only role must not read",
    fix="Run the installer, or pin what runs in charts_values.",
    avoid="Do not upgrade a driver or Cilium outside a maintenance window.",
    needs=("deployments.apps", "daemonsets.apps"),
    after=("release.status/same", "release.installed/same"),
)
def release_version(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """Chart versions."""
    for release in expected.releases:
        subject = _subject(release)
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


def _subject(release: PlannedRelease | bill.Release) -> Subject:
    return Subject("object", f"{release.namespace}/{release.name}")


def _shortfall(workload: Object, held: dict[str, str]) -> str:
    """How many of a workload's pods are ready, and why one is not."""
    ready, wanted = counts(workload)
    why = troubles(held)
    return f"{name_of(workload)} {ready} of {wanted} ready" + (f", {why}" if why else "")
