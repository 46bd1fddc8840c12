"""Faults of nodes as Kubernetes sees them."""

from __future__ import annotations

import dataclasses

from gpuready.charts_values.kube import Object

from .. import fleet
from ..fleet import Hardware
from .edits import Edit, patch, taint
from .model import Fault, Site

_PLEG = "PLEG is not healthy: pleg was last seen active 3m7.2s ago; threshold is 3m0s"
_TAINT = {"key": "maintenance", "value": "firmware", "effect": "NoExecute"}


def _path(site: Site) -> str:
    return f"/api/v1/nodes/{site.node}"


def _remove(site: Site) -> list[Edit]:
    """It comes back as a kubelet registers it, with the labels that it had."""
    labels = site.get(_path(site))["metadata"].get("labels") or {}
    joined = fleet.nodes(site.profile, len(site.now.nodes), site.now.ports["kwok"])
    body: Object = next(one for one in joined if one["metadata"]["name"] == site.node)
    body["metadata"]["labels"] = labels
    # Unlike other objects a node is born with its status: its kubelet writes both.
    return [Edit("delete", _path(site), {}, undo=Edit("create", _path(site), body))]


def _silence_kubelet(truth: Hardware) -> Hardware:
    return dataclasses.replace(truth, kubelet=_PLEG)


def _cordon(site: Site) -> list[Edit]:
    return [patch(_path(site), {"spec": {"unschedulable": True}}, site.get(_path(site)))]


def _lock_out(site: Site) -> list[Edit]:
    site.get(_path(site))
    return [taint(_path(site), _TAINT)]


FAULTS = (
    Fault(
        name="node-missing",
        title="one node is gone from the cluster",
        breaks="the Node object is deleted, as by an autoscaler or a hand; the kubelet does not register again",
        finding="nodes.present",
        edits=_remove,
    ),
    Fault(
        name="node-not-ready",
        title="one node is not Ready",
        breaks="the kubelet posts Ready=False: its container runtime does not answer (PLEG)",
        finding="nodes.ready",
        truth=_silence_kubelet,
    ),
    Fault(
        name="node-cordoned",
        title="one node is cordoned",
        breaks="spec.unschedulable is set, and nobody has taken it back after the maintenance",
        finding="nodes.schedulable",
        edits=_cordon,
    ),
    Fault(
        name="taint-lockout",
        title="one node carries a taint that nothing tolerates",
        breaks="taint maintenance=firmware:NoExecute, which inventory does not name: operands are evicted",
        finding="nodes.taints",
        follows=(
            "rdma.allocatable",
            "gpu.operands",
            "gpu.allocatable",
            "gpu.product",
            "versions.driver",
            "dra.rules",
            "dra.slices",
        ),
        edits=_lock_out,
    ),
)
