"""The releases of one run: what is installed, read once, what is to be, and how one becomes the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gpuready.charts_values.bill import Release
from gpuready.charts_values.errors import RefusedError
from gpuready.charts_values.inventory import Cluster
from gpuready.charts_values.kube import Api, Object
from gpuready.charts_values.values import Observed, own, taken_over, values

from . import disruption, drift, survey
from .changes import differences
from .charts import Chart
from .disruption import Plan
from .drift import Drift
from .helm import PENDING, Helm, Installed
from .survey import Survey

Values = dict[str, Any]
CLUSTER_POLICY = "/apis/nvidia.com/v1/clusterpolicies/cluster-policy"


@dataclass(frozen=True)
class Found:
    """A release as Helm has it: the newest revision, the last good one, and that one's user values and objects."""

    installed: Installed | None = None
    good: Installed | None = None
    values: Values = field(default_factory=dict)
    manifest: tuple[Object, ...] = ()


@dataclass(frozen=True)
class Work:
    """What is to be done to a release. ``upgrade`` says why Helm must run, ``drifted`` what is put back without it."""

    plan: Plan
    upgrade: tuple[str, ...] = ()
    drifted: tuple[Drift, ...] = ()

    @property
    def said(self) -> str | None:
        """Everything that differs, on one line; None where nothing does."""
        release = self.plan.release
        told = [*self.upgrade, *(one.said for one in self.drifted)]
        return f"{release.title} {release.version}: {'; '.join(told)}" if told else None


class Releases:
    """Plans and makes the releases of one cluster. Every release is read once; Helm is slow."""

    def __init__(
        self,
        api: Api,
        helm: Helm,
        cluster: Cluster,
        seen: Survey,
        facts: Observed,
        chart: Callable[[Release], Chart],
    ) -> None:
        self._api, self._helm, self._cluster, self._seen, self._facts, self._chart = (
            api,
            helm,
            cluster,
            seen,
            facts,
            chart,
        )
        self._work: dict[str, Work] = {}
        self._found: dict[str, Found] = {}

    def work(self, release: Release) -> Work:
        """What is to be done, found out once. Raises RefusedError where nothing can be."""
        if release.key not in self._work:
            self._work[release.key] = self._plan(release)
        return self._work[release.key]

    def manifest(self, key: str) -> tuple[Object, ...]:
        """The objects of a planned release, as it was last deployed; empty where it was not."""
        return self._found.get(key, Found()).manifest

    def make(self, release: Release, say: Callable[[str], None]) -> bool:
        """Do the work; returns whether the release was there before."""
        work = self.work(release)
        planned = work.plan.release
        if not planned.adopted:
            survey.record(self._api, planned)
        for one in work.drifted:
            drift.put_back(self._api, one)
        if work.upgrade:
            chart = self._chart(planned)
            installed = self._helm.releases().get((planned.namespace, planned.name))
            if installed and installed.status == "uninstalling":
                raise _uninstalling(planned)
            if installed and installed.status in PENDING:
                revision = self._helm.settle(installed)
                say(f"{planned.title}: {installed.status} ended by going to revision {revision}")
            self._helm.install(planned, chart.path, work.plan.values)
        return self._seen.installed(release) is not None

    def _plan(self, release: Release) -> Work:
        found = self._found[release.key] = self._find(release)
        if found.installed is not None and found.installed.status == "uninstalling":
            raise _uninstalling(release)
        facts, kept = self._settle_devices(release, found)
        wanted = (
            taken_over(release, self._cluster, facts, found.values)
            if release.adopted
            else values(release, self._cluster, facts)
        )
        plan = disruption.plan(
            self._cluster, self._seen.nodes, release, found.good, found.values, wanted, self._restarts
        )
        plan = dataclasses.replace(plan, withheld=(*plan.withheld, *kept))
        upgrade = tuple(_upgrade(plan, found))
        if found.good is None:
            return Work(plan, upgrade)
        plan, keep = self._settle_driver(plan, found)
        if keep and upgrade:
            # Helm knows nothing of what is to stay.
            plan = dataclasses.replace(
                plan, withheld=(*plan.withheld, disruption.postponed(self._cluster, plan, upgrade))
            )
            upgrade = ()
        return Work(plan, upgrade, tuple(drift.find(self._api, found.good, found.manifest, keep)))

    def _find(self, release: Release) -> Found:
        installed = self._seen.installed(release)
        if installed is None or installed.status == "uninstalling":
            return Found(installed)
        good = installed if installed.status == "deployed" else self._helm.last_good(installed)
        if good is None:
            return Found(installed)
        return Found(installed, good, self._helm.values(good), tuple(self._helm.manifest(good)))

    def _settle_devices(self, release: Release, found: Found) -> tuple[Observed, tuple[str, ...]]:
        """The facts with the devices that a Cilium of ours was installed with, and a line where inventory has others.

        Other devices on a running network cut nodes off whose device is not among them.
        """
        if release.key != "cilium" or release.adopted or found.good is None:
            return self._facts, ()
        made = found.values.get("devices")
        there = " ".join(made) if isinstance(made, list) else str(made or "")
        own_word = "devices" in own(release.key, self._cluster)
        same = there == self._facts.devices or own_word
        return dataclasses.replace(self._facts, devices=there), (
            () if same else (disruption.devices_kept(self._cluster, there, self._facts.devices),)
        )

    def _restarts(self, release: Release, wanted: Values) -> bool:
        """Whether an upgrade would exchange the driver on a node: its pods are of another make than wanted."""
        policy = self._api.find(CLUSTER_POLICY)
        rendered = self._helm.render(release, self._chart(release).path, wanted)
        made = next((one for one in rendered if one["kind"] == "ClusterPolicy"), None)
        return policy is None or made is None or self._disturbs(release, made["spec"], policy["spec"])

    def _settle_driver(self, plan: Plan, found: Found) -> tuple[Plan, drift.Keep | None]:
        """A ClusterPolicy that was edited by hand is put back, unless drivers would restart once more."""
        if plan.release.key != "gpu-operator" or disruption.maintained(self._cluster, self._seen.nodes):
            return plan, None
        made = next((one for one in found.manifest if one["kind"] == "ClusterPolicy"), None)
        live = self._api.find(CLUSTER_POLICY) if made else None
        if made is None or live is None or not self._disturbs(plan.release, made["spec"], live["spec"]):
            return plan, None
        line = disruption.edited(self._cluster, live["spec"], made["spec"])
        return dataclasses.replace(plan, withheld=(*plan.withheld, line)), disruption.keep_driver

    def _disturbs(self, release: Release, wanted: Object, live: Object) -> bool:
        if disruption.same_driver(wanted, live):
            return False
        pods = disruption.driver_pods(self._api, release.namespace)
        version = str((wanted.get("driver") or {}).get("version", ""))
        # An edit that no pod has taken up yet is undone without a restart.
        untouched = all(not pod.current and disruption.runs_version(pod, version) for pod in pods)
        return bool(pods) and not untouched


def _upgrade(plan: Plan, found: Found) -> list[str]:
    """Why Helm must run."""
    release, installed = plan.release, found.installed
    if installed is None:
        return ["not installed"]
    if installed.status != "deployed":
        return [f"revision {installed.revision} is {installed.status}"]
    if installed.chart != f"{release.chart}-{release.version}":
        return [f"{installed.chart} is installed"]
    return differences(found.values, plan.values)


def _uninstalling(release: Release) -> RefusedError:
    return RefusedError(
        f"{release.title}: release {release.name} in namespace {release.namespace} is being uninstalled; wait until "
        f"`helm list -A --uninstalling` is empty, or, if nobody does it any more, end it: "
        f"helm uninstall {release.name} --namespace {release.namespace}"
    )
