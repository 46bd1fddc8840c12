"""Whether the cluster is at rest: for whoever has changed something and waits until it shows."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from gpuready.charts_values.kube import Object

from .. import faults
from .cache import Cache
from .records import FRESH, Pod
from .writes import Writer

# Seconds without an event or a write after which it is said.
_QUIET = 0.3
# What the controller-manager takes from a node that is Ready again, at its next look: every five seconds.
_PASSING = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")


class Rest:
    """Writes beside the faults what the actors make of them, and since when nothing has happened."""

    def __init__(self, state_dir: Path, cache: Cache, writer: Writer) -> None:
        self._state_dir = state_dir
        self._cache = cache
        self._writer = writer
        self._stirred = time.monotonic()
        self._said: faults.Shown | None = None

    def note(self, now: Mapping[str, str], *, stirred: bool) -> None:
        """After each look: with which faults it was, and whether anything changed or was written."""
        if stirred or self._writer.busy:
            self._stirred = time.monotonic()
        rests = time.monotonic() - self._stirred >= _QUIET
        if rests and self._said and self._said.since is None and self._passing():
            self._stirred, rests = time.monotonic(), False
        said = self._said
        if said and said.faults == now and said.since == (self._stirred if rests else None):
            return
        moving = rests and self._moving()
        self._said = faults.Shown(dict(now), self._stirred if rests else None, moving)
        faults.acknowledge(self._state_dir, self._said)

    def _passing(self) -> bool:
        """Whether a node that is Ready still carries the taint of one that is not."""
        with self._cache.lock:
            return any(
                node.conditions.get("Ready", ("",))[0] == "True" and any(one["key"] in _PASSING for one in node.taints)
                for node in self._cache.nodes.values()
            )

    def _moving(self) -> bool:
        """Whether pods are to come or to go: the controllers or kwok may be slow today."""
        with self._cache.lock:
            pods = any(pod.node and _on_its_way(pod) for pod in self._cache.pods.values())
            return pods or any(_rolls(one) for one in self._cache.objects("daemonsets"))


def _on_its_way(pod: Pod) -> bool:
    return pod.deleting or (pod.progress == FRESH and not pod.gated)


def _rolls(daemonset: Object) -> bool:
    status = daemonset.get("status", {})
    wanted = int(status.get("desiredNumberScheduled") or 0)
    return bool(
        status.get("observedGeneration") != daemonset["metadata"].get("generation")
        or int(status.get("currentNumberScheduled") or 0) < wanted
        or int(status.get("updatedNumberScheduled") or 0) < wanted
    )
