"""The installation of one cluster: look, refuse or plan, then release by release with a wait after each."""

from __future__ import annotations

import shutil
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
from gpuready.charts_values.resources import NIC_CLUSTER_POLICY, custom_resources
from pyinfra import logger
from pyinfra.context import host

from . import brownfield, charts, disruption, observed, ofed, operations, preflight, survey
from .charts import Chart
from .helm import Helm
from .observed import Goal
from .releases import Releases
from .survey import Survey

T = TypeVar("T")

_KUBELETS = Goal("GPU nodes", 300, observed.kubelets)
_NIC_POLICY = Goal("NicClusterPolicy", 1800, observed.nic_policy)
_RAIL_NETWORKS = Goal("rail networks", 300, observed.rail_networks)


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
    planned = bill.releases(cluster)
    seen = survey.take(api, helm, cluster)
    preflight.identity(cluster, seen)
    brownfield.check(cluster, seen, planned)
    disruption.check_names(cluster, seen.nodes)
    source = _Charts(cluster, helm, seen)
    releases = Releases(api, helm, cluster, seen, survey.observed(cluster, seen), source.chart)
    work = {release: releases.work(release) for release in planned}
    wanted = {release.key: one.plan.values for release, one in work.items()}
    preflight.edited_network(seen, releases.manifest("cilium"))
    for note in preflight.check(cluster, seen, planned, wanted):
        _note(note)
    resources, withheld = _custom_resources(cluster, seen)
    if ofed.is_new(resources, seen.nic_policy):
        for note in ofed.check(cluster, seen.nodes, ofed.ways(cluster)):
            _note(note)
    source.prepare([one.plan.release for one in work.values() if one.upgrade])
    for line in (*(line for one in work.values() for line in one.plan.withheld), *withheld):
        _note(line)
    if old := observed.older_drivers(api, cluster, list(seen.nodes)):
        _note(f"driver of an older release on {' '.join(old)}; it is replaced when `maintenance` names them")
    left, freed = _drivers_left(cluster, seen)

    renewed: operations.Renewed = set()
    reached = partial(operations.reached, api=api, cluster=cluster, renewed=renewed)
    applied = partial(operations.applied, api=api, renewed=renewed)

    reached(goal=_KUBELETS, subject="kubelets", name="GPU nodes: kubelets healthy")
    for release in _loop(planned):
        title = release.title
        if cluster.dra == "gpus" and release.key == "gpu-operator":
            operations.labelled_for_dra(api=api, cluster=cluster, name="GPU nodes: label for DRA")
        if left and release.key == "gpu-operator":
            operations.drivers_left(
                api=api, names=left, leave=True, name="GPU nodes: leave the driver outside maintenance"
            )
        if release.namespace != "kube-system":
            applied(wanted=_namespace(release), name=f"{title}: namespace {release.namespace}")
        version = work[release].plan.release.version
        operations.released(releases=releases, release=release, renewed=renewed, name=f"{title}: release {version}")
        if freed and release.key == "gpu-operator":
            operations.drivers_left(api=api, names=freed, leave=False, name="GPU nodes: no longer leave the driver")
        reached(goal=observed.goal(release), subject=release.key, name=f"{title}: wait until observed")
        if release.key == "network-operator":
            for resource in _loop(resources):
                name = resource["metadata"]["name"]
                applied(wanted=resource, name=f"{resource['kind']} {name}: applied")
                if name == NIC_CLUSTER_POLICY:
                    reached(goal=_NIC_POLICY, subject=name, name=f"{resource['kind']} {name}: wait until observed")
            if cluster.networks:
                reached(goal=_RAIL_NETWORKS, subject="rails", name="Networks of the rails: wait until observed")


class _Charts:
    """The charts of one run: from the folder of charts, or downloaded into a folder that goes with the run."""

    def __init__(self, cluster: Cluster, helm: Helm, seen: Survey) -> None:
        self._cluster, self._helm, self._seen = cluster, helm, seen
        self.chart = cache(self._chart)
        self._download = cache(self._make_download)

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

    def _make_download(self) -> Path:
        made = charts.download_folder()
        weakref.finalize(self, shutil.rmtree, made, ignore_errors=True)
        return made

    def _chart(self, release: Release) -> Chart:
        local = charts.folder(self._cluster)
        found = charts.obtain(release, self._cluster, self._helm, local or self._download())
        if note := preflight.chart_range(release, found, self._seen):
            _note(note)
        return found


def _custom_resources(cluster: Cluster, seen: Survey) -> tuple[list[Object], list[str]]:
    """The custom resources to apply now, and what of them is withheld."""
    wanted, withheld = [], []
    for one in custom_resources(cluster):
        if one["metadata"]["name"] == NIC_CLUSTER_POLICY:
            one, line = disruption.nic_policy(cluster, seen.nodes, seen.nic_policy, one)
            withheld += [line] if line else []
        wanted.append(one)
    return wanted, withheld


def _drivers_left(cluster: Cluster, seen: Survey) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """GPU nodes whose driver the operator has to leave alone, and those that carry the label without need."""
    nodes = [node for node, _ in survey.gpu_nodes(cluster, seen.nodes)]
    names = {str(node["metadata"]["name"]) for node in nodes}
    inside = disruption.maintained(cluster, seen.nodes)
    labelled = {
        str(node["metadata"]["name"])
        for node in nodes
        if disruption.SKIP_LABEL in (node["metadata"].get("labels") or {})
    }
    left = names - inside if inside else set()
    return tuple(sorted(left)), tuple(sorted(labelled - left))


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
