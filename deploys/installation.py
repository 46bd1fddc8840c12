"""The installation of one cluster: look, refuse or plan, then release by release with a wait after each."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

from gpuready.charts_values import bill
from gpuready.charts_values.bill import Release
from gpuready.charts_values.errors import InputError
from gpuready.charts_values.inventory import Cluster
from gpuready.charts_values.kube import Api, Object
from gpuready.charts_values.resources import custom_resources
from gpuready.charts_values.values import Values, values
from pyinfra import logger
from pyinfra.context import host

from . import charts, observed, operations, preflight, survey
from .charts import Chart
from .helm import Helm
from .observed import Goal
from .survey import Survey

T = TypeVar("T")

_KUBELETS = Goal("GPU nodes", 300, observed.kubelets)
_NIC_POLICY = Goal("NicClusterPolicy", 1800, observed.nic_policy)


def install(cluster: object) -> None:
    """Queue the operations that bring a cluster to what inventory and charts_values say.

    ``cluster`` is what inventory gives the host. Everything that may refuse runs here, before the first change.
    Raises GpureadyError.
    """
    if not isinstance(cluster, Cluster):
        raise InputError(
            "group `cluster` of this inventory carries no gpuready entry; end the file as ./inventory does"
        )
    helm = Helm.connect(cluster)
    api = Api.connect(cluster.kubeconfig, cluster.context)
    seen = survey.take(api, helm, cluster)
    planned = bill.releases(cluster)
    facts = survey.observed(cluster, seen)
    wanted = {release.name: values(release, cluster, facts) for release in planned}
    for note in preflight.check(cluster, seen, planned, wanted):
        _note(note)
    resources = custom_resources(cluster)
    source = _Charts(cluster, helm, seen)
    source.prepare([release for release in planned if _differs(helm, release, seen, wanted[release.name])])

    renewed: operations.Renewed = set()
    reached = partial(operations.reached, api=api, cluster=cluster, renewed=renewed)
    applied = partial(operations.applied, api=api, renewed=renewed)

    reached(goal=_KUBELETS, subject="kubelets", name="GPU nodes: kubelets healthy")
    for release in _loop(planned):
        title = release.title
        if cluster.dra == "gpus" and release.name == "gpu-operator":
            operations.labelled_for_dra(api=api, cluster=cluster, name="GPU nodes: label for DRA")
        if release.namespace != "kube-system":
            applied(wanted=_namespace(release), name=f"{title}: namespace {release.namespace}")
        operations.released(
            helm=helm,
            release=release,
            chart=partial(source.chart, release),
            values=wanted[release.name],
            renewed=renewed,
            name=f"{title}: release {release.version}",
        )
        reached(goal=observed.goal(release), subject=release.name, name=f"{title}: wait until observed")
        if release.name == "network-operator":
            for resource in _loop(resources):
                name = resource["metadata"]["name"]
                applied(wanted=resource, name=f"{resource['kind']} {name}: applied")
                reached(goal=_NIC_POLICY, subject=name, name=f"{resource['kind']} {name}: wait until observed")


class _Charts:
    """The charts of one run: from the folder of charts, or downloaded into a folder that goes with the run."""

    def __init__(self, cluster: Cluster, helm: Helm, seen: Survey) -> None:
        self._cluster, self._helm, self._seen = cluster, helm, seen
        self._download = Path(tempfile.mkdtemp(prefix="gpuready-charts-"))
        weakref.finalize(self, shutil.rmtree, self._download, ignore_errors=True)
        self.chart = cache(self._chart)

    def prepare(self, changing: list[Release]) -> None:
        """Get and verify the charts that are about to be used, so that a bad one stops the run before it starts.

        From a folder all charts of the plan are cheap to verify, yet only those that change matter.
        """
        if not changing:
            return
        here = charts.folder(self._cluster)
        found = {release: self.chart(release) for release in changing}
        _note(f"charts: {here or 'from the repositories of charts.yaml'}")
        if stand_ins := [release.chart for release, chart in found.items() if chart.stand_in]:
            _note(f"stand-in charts, which install nothing real: {', '.join(stand_ins)}")
        real = [(release, chart) for release, chart in found.items() if not chart.stand_in]
        if unknown := [release.chart for release, _ in real if release.digest is None]:
            _note(f"digest not recorded in charts.yaml: {', '.join(unknown)}")
        if unpacked := [release.chart for release, chart in real if release.digest and chart.path.is_dir()]:
            _note(f"digest not verified, since the chart is an unpacked folder: {', '.join(unpacked)}")

    def _chart(self, release: Release) -> Chart:
        found = charts.obtain(release, self._cluster, self._helm, self._download)
        if note := preflight.chart_range(release, found, self._seen):
            _note(note)
        return found


def _differs(helm: Helm, release: Release, seen: Survey, wanted: Values) -> bool:
    return operations.release_difference(helm, release, seen.installed(release), wanted) is not None


def _namespace(release: Release) -> Object:
    labels = dict(operations.PRIVILEGED) if release.privileged else {}
    meta: Object = {"name": release.namespace, "labels": labels}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": meta}


def _loop(items: list[T]) -> Iterator[T]:
    """Over items, with the place that pyinfra needs to order operations of one line."""
    found: Iterator[T] = host.loop(items)  # type: ignore[no-untyped-call]
    return found


def _note(line: str) -> None:
    logger.info(f"    {line}")
