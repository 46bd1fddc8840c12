"""What the components together want a node to be, and the patches that make it so.

A component claims what is its own, by prefix or by name, and says what it wants there; what it claims and
does not want is taken away. What nobody claims is left alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gpuready.charts_values import quantities
from gpuready.charts_values.kube import Object

from .pods import now
from .records import Node


@dataclass
class NodeWish:
    """Labels, device counts, conditions and taints.

    ``conditions`` maps a type to (status, reason, message); ``untaint`` holds keys of taints to remove.
    """

    labels: dict[str, str] = field(default_factory=dict)
    resources: dict[str, int] = field(default_factory=dict)
    conditions: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    untaint: set[str] = field(default_factory=set)
    _prefixes: tuple[str, ...] = ()
    _resource_prefixes: tuple[str, ...] = ()

    def claim_labels(self, *prefixes: str) -> None:
        """Labels with these prefixes are the caller's: absent unless wanted."""
        self._prefixes += prefixes

    def claim_resources(self, *prefixes: str) -> None:
        """Resources with these prefixes are the caller's: zero unless wanted."""
        self._resource_prefixes += prefixes

    def label(self, node: Node, key: str) -> str | None:
        """A label as it will be, as far as the components that came before have said."""
        if key.startswith(self._prefixes):
            return self.labels.get(key)
        return node.labels.get(key)

    def patch(self, node: Node) -> Object | None:
        """The strategic merge patch of labels and taints, or None where nothing differs."""
        labels: dict[str, str | None] = {
            key: value for key, value in self.labels.items() if node.labels.get(key) != value
        }
        labels |= {key: None for key in node.labels if key not in self.labels and key.startswith(self._prefixes)}
        left = [one for one in node.taints if one["key"] not in self.untaint]
        body: Object = {}
        if labels:
            body["metadata"] = {"labels": labels}
        if len(left) < len(node.taints):
            # To the server all taints are one value: none that has come meanwhile may be lost.
            body["spec"] = {"taints": left}
            body.setdefault("metadata", {})["resourceVersion"] = str(node.version)
        return body or None

    def status_patch(self, node: Node) -> Object | None:
        """The strategic merge patch of /status, or None where nothing differs."""
        wanted = {name: 0 for name in node.capacity if name.startswith(self._resource_prefixes)} | self.resources
        counts = {
            name: str(count)
            for name, count in wanted.items()
            if {_count(node.capacity.get(name)), _count(node.allocatable.get(name))} != {count}
        }
        conditions = [
            {
                "type": kind,
                "status": status,
                "reason": reason,
                "message": message,
                "lastHeartbeatTime": now(),
                "lastTransitionTime": now(),
            }
            for kind, (status, reason, message) in self.conditions.items()
            if node.conditions.get(kind) != (status, reason)
        ]
        body: Object = {}
        if counts:
            # The kubelet keeps a device's name with zero when its plugin goes.
            body |= {"capacity": counts, "allocatable": counts}
        if conditions:
            body["conditions"] = conditions
        return {"status": body} if body else None


def _count(quantity: str | None) -> int | None:
    """The API writes 1000 as 1k: numbers are compared, not texts."""
    return None if quantity is None else quantities.count(quantity)
