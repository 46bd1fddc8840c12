"""How a node stands: with its cluster, with the pods on it, and with what its kubelet was told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gpuready.charts_values import quantities
from gpuready.charts_values.errors import InputError
from gpuready.charts_values.kube import Object

# Says that the cordon of a node is ours, so that an interrupted run can be taken up again.
CORDONED = "gpuready/cordoned-for"
_MIRROR = "kubernetes.io/config.mirror"


@dataclass(frozen=True)
class Standing:
    """How a node stands with its cluster. ``complaint`` is why it is not Ready, empty where it is."""

    joined: bool
    ready: bool = False
    network_only: bool = False
    cordoned: bool = False
    ours: bool = False
    complaint: str = ""

    @property
    def well(self) -> bool:
        """The kubelet reports, and complains of the missing network at most."""
        return self.ready or self.network_only


def standing(node: Object | None) -> Standing:
    """How a node stands, from its object; None where it has joined no cluster."""
    if node is None:
        return Standing(joined=False)
    conditions = {one["type"]: one for one in node.get("status", {}).get("conditions") or ()}
    ready = conditions.get("Ready", {})
    text = f"{ready.get('reason', '')}: {ready.get('message', '')}".strip(": ") or "no word of its kubelet"
    network = ready.get("status") == "False" and any(word in text.lower() for word in ("network", "cni"))
    return Standing(
        joined=True,
        ready=ready.get("status") == "True",
        network_only=network,
        cordoned=bool(node.get("spec", {}).get("unschedulable")),
        ours=CORDONED in (node["metadata"].get("annotations") or {}),
        complaint="" if ready.get("status") == "True" else f"NotReady, {text}",
    )


def moves(pod: Object) -> bool:
    """Whether a drain is about this pod: not those of DaemonSets, of the node's own files, or that have ended."""
    meta = pod["metadata"]
    owners = meta.get("ownerReferences") or ()
    if any(owner.get("kind") == "DaemonSet" for owner in owners) or _MIRROR in (meta.get("annotations") or {}):
        return False
    if any(owner.get("kind") == "Node" for owner in owners):
        return False
    return pod.get("status", {}).get("phase") not in ("Succeeded", "Failed")


def holds(has: Any, wants: Any) -> bool:
    """Whether a value that a kubelet shows is what was asked for; amounts may be written in another way."""
    if isinstance(wants, Mapping):
        return isinstance(has, Mapping) and all(holds(has.get(key), value) for key, value in wants.items())
    if isinstance(wants, list):
        return isinstance(has, list) and len(has) == len(wants) and all(map(holds, has, wants))
    return bool(has == wants or str(has) == str(wants) or _amount(has) == _amount(wants))


def _amount(value: Any) -> Any:
    try:
        return quantities.parse(value)
    except InputError:
        return value
