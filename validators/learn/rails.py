"""The secondary networks of RoCE rails that a cluster has: those that gpuready made, else those of others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ..evidence import Evidence, Object

POOLS = "ippools.nv-ipam.nvidia.com"
MACVLANS = "macvlannetworks.mellanox.com"
ATTACHMENTS = "network-attachment-definitions.k8s.cni.cncf.io"
_POLICIES = "nicclusterpolicies.mellanox.com"
# CNI plugins that hand a device of the node, or a share of it, to a pod.
_PLUGINS = ("macvlan", "ipvlan", "host-device", "sriov")


def networks(evidence: Evidence, shares: Sequence[str]) -> tuple[dict[str, Any] | None, str]:
    """The value of `networks` of a RoCE group with these rdma/* resources, and what is open about it."""
    made = {
        one["metadata"]["name"]: _rail(one, evidence, shares)
        for one in evidence.objects(MACVLANS)
        if (one.get("spec") or {}).get("networkNamespace", "default") == "default"
    }
    if made and all(made.values()):
        return dict(sorted(made.items())), ""
    theirs = sorted(_place(one) for one in evidence.objects(ATTACHMENTS) if _plugin(one) in _PLUGINS)
    if theirs:
        return {name: {} for name in theirs}, "check: which of these networks are rails; they are used as they are"
    return (
        None,
        "fill in: interface and cidr of each rail; or `host_network`: True, where pods share the node's network",
    )


def _rail(network: Object, evidence: Evidence, shares: Sequence[str]) -> dict[str, Any]:
    """What inventory says of a network; empty where its addresses are not known."""
    spec = network["spec"]
    pool = evidence.find(POOLS, str(_json(spec.get("ipam")).get("poolName")))
    if pool is None or not spec.get("master"):
        return {}
    rail: dict[str, Any] = {"interface": spec["master"], "cidr": pool["spec"].get("subnet", "")}
    if pool["spec"].get("gateway"):
        rail["gateway"] = pool["spec"]["gateway"]
    if spec.get("mtu"):
        rail["mtu"] = spec["mtu"]
    if shares[1:] and (resource := _resource(spec["master"], evidence)) in shares:
        rail["resource"] = resource
    return rail


def _resource(interface: str, evidence: Evidence) -> str:
    """The rdma/* resource whose shares give a pod this device."""
    for policy in evidence.objects(_POLICIES):
        plugin = (policy.get("spec") or {}).get("rdmaSharedDevicePlugin") or {}
        for entry in _json(plugin.get("config")).get("configList") or ():
            if interface in ((entry.get("selectors") or {}).get("ifNames") or ()):
                return f"{entry.get('resourcePrefix') or 'rdma'}/{entry.get('resourceName')}"
    return ""


def _plugin(attachment: Object) -> str:
    """The CNI plugin of a NetworkAttachmentDefinition, the first of a chain."""
    config = _json((attachment.get("spec") or {}).get("config"))
    chain = config.get("plugins") or [config]
    return str(chain[0].get("type", ""))


def _place(one: Object) -> str:
    return f"{one['metadata'].get('namespace', 'default')}/{one['metadata']['name']}"


def _json(text: object) -> dict[str, Any]:
    """An object that is written as text within another; nothing where it is no such text."""
    try:
        found = json.loads(str(text or "{}"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
