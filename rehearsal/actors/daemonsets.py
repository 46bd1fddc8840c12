"""DaemonSets that the played operators make: written when their content changes, and judged when rolled out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from gpuready.charts_values.kube import Object

from .cache import Cache
from .writes import Writer

# The annotation by which the GPU Operator, too, tells whether it has to write.
HASH = "nvidia.com/last-applied-hash"


def owner(policy: Object) -> Object:
    """The owner reference to a policy: what it owns goes when it goes."""
    return {
        "apiVersion": policy["apiVersion"],
        "kind": policy["kind"],
        "name": policy["metadata"]["name"],
        "uid": policy["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def bring(known: Object | None, wanted: Object, writer: Writer, manager: str) -> bool:
    """Write ``wanted`` where it differs from what was written before; returns whether it did not differ."""
    digest = hashlib.sha256(json.dumps(wanted["spec"], sort_keys=True).encode()).hexdigest()[:16]
    if known and (known["metadata"].get("annotations") or {}).get(HASH) == digest:
        return True
    wanted["metadata"].setdefault("annotations", {})[HASH] = digest
    writer.apply("daemonsets", _path(wanted), wanted, manager)
    return False


def remove(daemonset: Object, writer: Writer) -> None:
    """Delete it, unless that is under way."""
    if "deletionTimestamp" not in daemonset["metadata"]:
        writer.delete("daemonsets", _path(daemonset))


def rolled_out(daemonset: Object, *, empty_is_fine: bool) -> bool:
    """Whether every pod that a DaemonSet wants is of its newest template and available.

    One that no node wants is fine for the GPU Operator and never ready for the Network Operator.
    """
    status = daemonset.get("status", {})
    if status.get("observedGeneration") != daemonset["metadata"].get("generation"):
        return False
    desired = int(status.get("desiredNumberScheduled") or 0)
    if desired == 0:
        return empty_is_fine
    return bool(status.get("numberAvailable") == desired and status.get("updatedNumberScheduled") == desired)


def upgrade(
    policy: Mapping[str, object], known: Object, wanted: Object, skip: str, cache: Cache, writer: Writer
) -> None:
    """With autoUpgrade an operator replaces pods of an older image, a few nodes at a time; not where ``skip`` is."""
    if not policy.get("autoUpgrade"):
        return
    pods = list(cache.owned.get(known["metadata"]["uid"], {}).values())
    image = wanted["spec"]["template"]["spec"]["containers"][0]["image"]
    room = max(1, int(str(policy.get("maxParallelUpgrades") or 1))) - sum(1 for pod in pods if not pod.ready)
    kept = {name for name, node in cache.nodes.items() if node.labels.get(skip) == "true"}
    old = [pod for pod in pods if pod.ready and pod.containers[0][1] != image and pod.node not in kept]
    for pod in sorted(old, key=lambda one: one.node)[: max(0, room)]:
        writer.delete("pods", pod.path, node=pod.node)


def _path(daemonset: Object) -> str:
    meta = daemonset["metadata"]
    return f"/apis/apps/v1/namespaces/{meta['namespace']}/daemonsets/{meta['name']}"
