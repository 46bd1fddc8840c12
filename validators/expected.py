"""What a cluster was promised: the inventory entry and the bill of materials, as one value."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gpuready.charts_values import bill, inventory
from gpuready.charts_values.errors import InputError

from .evidence import Object


@dataclass(frozen=True)
class PlannedRelease:
    """A Helm release as charts_values pins it."""

    name: str
    chart: str
    version: str
    namespace: str


@dataclass(frozen=True)
class Expected:
    """A cluster of `inventory` and the releases that belong on it."""

    cluster: inventory.Cluster
    releases: tuple[PlannedRelease, ...]

    @classmethod
    def of(cls, cluster: inventory.Cluster) -> Expected:
        """From an inventory entry and the packaged bill of materials."""
        planned = (PlannedRelease(r.name, r.chart, r.version, r.namespace) for r in bill.releases(cluster))
        return cls(cluster, tuple(planned))

    def to_json(self) -> dict[str, Any]:
        """The bundle's expected.json."""
        return {
            "schema": 1,
            "cluster": self.cluster.name,
            "entry": dict(self.cluster.entry),
            "releases": [dataclasses.asdict(release) for release in self.releases],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: Path | str = "expected.json") -> Expected:
        """The reverse of ``to_json``; raises InputError."""
        try:
            cluster = inventory.parse(data["cluster"], data["entry"])
            return cls(cluster, tuple(PlannedRelease(**release) for release in data["releases"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{where} is not what `gpuready check --save` writes: {error}") from error

    @cached_property
    def node_count(self) -> int:
        """GPU nodes over all groups."""
        return sum(group.count for group in self.cluster.groups)

    def release(self, chart: str) -> PlannedRelease | None:
        """The planned release of a chart."""
        return next((release for release in self.releases if release.chart == chart), None)

    def group_of(self, node: Object) -> inventory.Group | None:
        """The first group that a Node object belongs to."""
        return next((group for group in self.cluster.groups if group.holds(node)), None)

    def gpu_nodes(self, nodes: Iterable[Object]) -> list[tuple[Object, inventory.Group]]:
        """The Node objects that belong to a group, with it, by name; without those that ``away`` names."""
        return [(node, group) for node, group in self._members(nodes) if not group.away(node)]

    def away(self, nodes: Iterable[Object]) -> list[tuple[Object, inventory.Group]]:
        """The spot nodes that are being taken away, which inventory allows: nothing is expected of them."""
        return [(node, group) for node, group in self._members(nodes) if group.away(node)]

    def gone(self, nodes: Iterable[Object]) -> int:
        """How many of those have stopped already, while their pods are still counted as wanted."""
        return sum(group.gone(node) for node, group in self._members(nodes))

    def missing(self, nodes: Iterable[Object]) -> list[tuple[str, inventory.Group]]:
        """Promised nodes without a Node object: by name, or as ``group (n missing)`` where only counted."""
        present = list(nodes)
        names = {node["metadata"]["name"] for node in present}
        absent: list[tuple[str, inventory.Group]] = []
        for group in self.cluster.groups:
            if group.nodes:
                absent += [(name, group) for name in group.nodes if name not in names]
            elif (short := group.count - sum(group.holds(node) for node in present)) > 0:
                absent.append((f"{group.name} ({short} of {group.count})", group))
        return absent

    def _members(self, nodes: Iterable[Object]) -> list[tuple[Object, inventory.Group]]:
        found = [(node, group) for node in nodes if (group := self.group_of(node)) is not None]
        return sorted(found, key=lambda pair: str(pair[0]["metadata"]["name"]))
