"""Cilium: its agents make nodes Ready.

Plays the operator (CRD, CiliumNode with a pod CIDR) and what an agent changes on its node. The agents' pods
are kwok's; without a pod CIDR for its node an agent does not get the node Ready, as in reality.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_network

from gpuready.charts_values.kube import Object

from .cache import Cache
from .informers import PATHS
from .records import Node
from .scene import View, roles
from .wishes import NodeWish
from .writes import Writer

TAINT = "node.cilium.io/agent-not-ready"
_CRD = "ciliumnodes.cilium.io"


@dataclass(frozen=True)
class Cilium:
    """What the installed objects say: ``config`` is the ConfigMap's data, ``places`` the rank of each node.

    ``registered`` tells whether the API server knows CiliumNodes by now.
    """

    registered: bool
    config: Mapping[str, str]
    places: Mapping[str, int]

    def pod_cidr(self, node: Node) -> str:
        """The pod CIDR of a node, from the pool or from the node; empty where there is none."""
        if self.config.get("ipam", "cluster-pool") != "cluster-pool":
            return node.pod_cidr
        try:
            pool = ip_network(self.config["cluster-pool-ipv4-cidr"].split()[0])
            size = int(self.config.get("cluster-pool-ipv4-mask-size", "24"))
        except (KeyError, IndexError, ValueError):
            return ""
        place = self.places[node.name]
        if size < pool.prefixlen or place >= 1 << (size - pool.prefixlen):
            return ""
        width = 1 << (pool.max_prefixlen - size)
        return f"{pool.network_address + place * width}/{size}"


def read(cache: Cache) -> Cilium | None:
    """None until the agents' DaemonSet and the ConfigMap are both there."""
    agents = [one for one in cache.objects("daemonsets") if "cilium" in roles([one]).values()]
    if not agents:
        return None
    config = cache.object("configmaps", "cilium-config", agents[0]["metadata"]["namespace"])
    if config is None:
        return None
    # By name: a node that was deleted and joins again keeps its place, and with it its pod CIDR.
    ranked = sorted(cache.nodes)
    registered = bool((cache.object("crds", _CRD) or {}).get("established"))
    return Cilium(registered, dict(config.get("data") or {}), {name: rank for rank, name in enumerate(ranked)})


def cluster(cilium: Cilium | None, cache: Cache, writer: Writer) -> None:
    """The CRD, as Cilium's operator registers it."""
    if cilium is not None and cache.object("crds", _CRD) is None:
        writer.create("crds", PATHS["crds"], _crd())


def node(cilium: Cilium | None, view: View, wish: NodeWish, cache: Cache, writer: Writer) -> None:
    """Ready, without the taint, and with a CiliumNode, where an agent runs."""
    if cilium is None or "cilium" not in view.pods:
        return
    pod_cidr = cilium.pod_cidr(view.node)
    mine = cache.object("ciliumnodes", view.node.name)
    if mine is not None and view.node.uid not in [one["uid"] for one in mine["metadata"].get("ownerReferences") or ()]:
        # Of a node that had this name before: the garbage collector would come for it at any time.
        writer.delete("ciliumnodes", f"{PATHS['ciliumnodes']}/{view.node.name}", node=view.node.name)
        return
    if mine is None:
        if cilium.registered and view.ready("cilium"):
            writer.create("ciliumnodes", PATHS["ciliumnodes"], _cilium_node(view.node, pod_cidr), node=view.node.name)
        return
    if not pod_cidr:
        return
    wish.untaint.add(TAINT)
    wish.conditions["Ready"] = ("True", "KubeletReady", "kubelet is posting ready status")
    wish.conditions["NetworkUnavailable"] = ("False", "CiliumIsUp", "Cilium is running on this node")


def _cilium_node(node: Node, pod_cidr: str) -> Object:
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNode",
        "metadata": {
            "name": node.name,
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": node.name, "uid": node.uid}],
        },
        "spec": {
            "addresses": [{"type": "InternalIP", "ip": node.address}],
            "ipam": {"podCIDRs": [pod_cidr] if pod_cidr else []},
        },
        "status": {}
        if pod_cidr
        else {"ipam": {"operator-status": {"error": "no pod CIDR is left in the pool for this node"}}},
    }


def _crd() -> Object:
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": _CRD},
        "spec": {
            "group": "cilium.io",
            "scope": "Cluster",
            "names": {
                "kind": "CiliumNode",
                "listKind": "CiliumNodeList",
                "plural": "ciliumnodes",
                "singular": "ciliumnode",
                "shortNames": ["cn", "ciliumn"],
            },
            "versions": [
                {
                    "name": "v2",
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
                }
            ],
        },
    }
