"""The bill of materials: charts.yaml, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml

from .inventory import Cluster
from .versions import satisfies, within


@dataclass(frozen=True)
class Release:
    """A Helm release that gpuready installs; charts.yaml explains every field.

    ``chart_range`` is the chart's kubeVersion, ``documented`` the first and last Kubernetes minor that a
    source names; None where neither is known. ``deadline_s`` is in seconds.
    """

    name: str
    title: str
    chart: str
    version: str
    app_version: str
    repository: str
    namespace: str
    privileged: bool
    digest: str | None
    deadline_s: int
    chart_range: str | None
    documented: tuple[str, str] | None
    source: str
    seen_on: str


@cache
def load() -> tuple[Release, ...]:
    """Every release of charts.yaml, in install order."""
    table = packaged("charts.yaml")["releases"]
    return tuple(_release(name, row) for name, row in table.items())


def releases(cluster: Cluster) -> list[Release]:
    """The releases that belong on a cluster, in install order.

    The Network Operator only where RDMA is expected, the DRA driver only where `dra` is not off.
    """
    unwanted = set()
    if not cluster.wants_rdma:
        unwanted.add("network-operator")
    if cluster.dra == "off":
        unwanted.add("dra-driver-nvidia-gpu")
    return [release for release in load() if release.name not in unwanted]


def unsupported(release: Release, server: str) -> str | None:
    """Why a release does not go with a Kubernetes version (``v1.35.4``), in one line; None where it does."""
    what = f"{release.title} {release.version}"
    if release.chart_range and not satisfies(server, release.chart_range):
        return f"{what} takes Kubernetes {release.chart_range}, the server has {server}"
    if release.documented and not within(server, *release.documented):
        first, last = release.documented
        return f"{what} is documented for Kubernetes {first} to {last}, the server has {server}"
    return None


def packaged(name: str) -> dict[str, Any]:
    """A YAML file of this package."""
    text = resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
    table: dict[str, Any] = yaml.safe_load(text) or {}
    return table


def _release(name: str, row: Mapping[str, Any]) -> Release:
    kubernetes = row["kubernetes"]
    first, _, last = (kubernetes["documented"] or "").partition(" - ")
    return Release(
        name=name,
        title=row["title"],
        chart=row["chart"],
        version=str(row["version"]),
        app_version=str(row["app_version"]),
        repository=row["repository"],
        namespace=row["namespace"],
        privileged=row["privileged"],
        digest=row["digest"],
        deadline_s=row["deadline_s"],
        chart_range=kubernetes["chart"],
        documented=(first, last) if last else None,
        source=row["source"],
        seen_on=row["seen_on"],
    )
