"""The bill of materials: charts.yaml, as values."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml

from .errors import InputError
from .inventory import Cluster
from .versions import satisfies, within

# The custom resource that can be taken over beside the releases.
NIC_CLUSTER_POLICY = "nic-cluster-policy"
_DEADLINE_S = 600
_ADOPT = re.compile(
    r"(?P<key>[\w.-]+)(=(?P<name>[\w.-]+)@(?P<namespace>[\w.-]+))?(:(?P<version>[\w.+-]+))?",
)


@dataclass(frozen=True)
class Release:
    """A Helm release that gpuready installs; charts.yaml explains every field.

    ``key`` is its name in charts.yaml and in the names of values files; ``name`` and ``namespace`` are Helm's,
    and differ from charts.yaml where inventory adopts a release that lies elsewhere. ``chart_range`` is the
    chart's kubeVersion, ``documented`` the first and last Kubernetes minor that a source names; None where
    neither is known. ``deadline_s`` is in seconds.
    """

    key: str
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
    adopted: bool = False


@cache
def load() -> tuple[Release, ...]:
    """Every release of charts.yaml, in install order."""
    table = packaged("charts.yaml")["releases"]
    return tuple(_release(name, row) for name, row in table.items())


def releases(cluster: Cluster) -> list[Release]:
    """The releases that belong on a cluster, in install order.

    The Network Operator only where RDMA is expected, the DRA driver only where `dra` is not off. One that
    `adopt` names has the name, the namespace and the version that are given there. Raises InputError where
    `adopt` is no use.
    """
    taken = _adopted(cluster)
    unwanted = set()
    if not cluster.wants_rdma:
        unwanted.add("network-operator")
    if cluster.dra == "off":
        unwanted.add("dra-driver-nvidia-gpu")
    return [taken.get(release.key, release) for release in load() if release.key not in unwanted]


def adopts(cluster: Cluster, key: str) -> bool:
    """Whether inventory says to take over what is called ``key``: a release, or nic-cluster-policy."""
    return any(_adopt(cluster, text)["key"] == key for text in cluster.adopt)


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


def packaged_values(key: str) -> dict[str, Any]:
    """The values file of a release; empty where this package has none."""
    try:
        return packaged(f"{key}.yaml")
    except FileNotFoundError:
        return {}


def _adopted(cluster: Cluster) -> dict[str, Release]:
    known = {release.key: release for release in load()}
    found = {}
    for text in cluster.adopt:
        said = _adopt(cluster, text)
        if (release := known.get(str(said["key"]))) is None:
            continue
        release = dataclasses.replace(
            release, name=said["name"] or release.name, namespace=said["namespace"] or release.namespace, adopted=True
        )
        if said["version"] and said["version"] != release.version:
            # What is known of the pinned chart does not hold for another one.
            version = said["version"]
            release = dataclasses.replace(
                release, version=version, app_version=version, digest=None, chart_range=None, documented=None
            )
        found[release.key] = release
    return found


def _adopt(cluster: Cluster, text: str) -> dict[str, str | None]:
    said = _ADOPT.fullmatch(text)
    known = [*(release.key for release in load()), NIC_CLUSTER_POLICY]
    if said is None or said["key"] not in known:
        raise InputError(
            f"inventory, cluster {cluster.name!r}: `adopt` holds {text!r}; it takes {', '.join(known)}, "
            "each as NAME, or NAME=RELEASE@NAMESPACE, and with :VERSION to stay at a chart version"
        )
    return said.groupdict()


def _release(key: str, row: Mapping[str, Any]) -> Release:
    kubernetes = row.get("kubernetes") or {}
    first, _, last = (kubernetes.get("documented") or "").partition(" - ")
    try:
        return Release(
            key=key,
            name=key,
            title=row.get("title", key),
            chart=row.get("chart", key),
            version=str(row["version"]),
            app_version=str(row.get("app_version", row["version"])),
            repository=row["repository"],
            namespace=row["namespace"],
            privileged=row.get("privileged", False),
            digest=row.get("digest"),
            deadline_s=row.get("deadline_s", _DEADLINE_S),
            chart_range=kubernetes.get("chart"),
            documented=(first, last) if last else None,
            source=row["source"],
            seen_on=row["seen_on"],
        )
    except KeyError as missing:
        raise InputError(f"charts_values/charts.yaml: release {key!r} has no {missing.args[0]!r}") from None
