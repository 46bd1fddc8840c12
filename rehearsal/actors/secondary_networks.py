"""Secondary networks: the address pools and attachments of rails, and which rails a pod really has.

nv-ipam hands each node a block of every pool; the Network Operator turns a MacvlanNetwork into a
NetworkAttachmentDefinition; Multus gives a pod the attachments that it names. Rules: Network Operator source 26.4.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from ipaddress import ip_address, ip_network

from gpuready.charts_values.kube import Object

from ..profile import Nic, Profile
from .cache import Cache
from .daemonsets import owner
from .informers import PATHS
from .network_operator import NetworkOperator, offered
from .outcomes import requested
from .records import Node
from .scene import View
from .writes import Writer

WANTED = "k8s.v1.cni.cncf.io/networks"
_POOLS_CRD = "ippools.nv-ipam.nvidia.com"
_MULTUS = "net.secondaryNetwork.multus"
_IPAM = "net.nvIpam"


def cluster(net: NetworkOperator, cache: Cache, writer: Writer) -> None:
    """The kind IPPool, the blocks of each pool, and the attachments with the status of their networks."""
    if not net.running or net.policy is None:
        return
    if net.section("nvIpam") is not None:
        if cache.object("crds", _POOLS_CRD) is None:
            writer.create("crds", PATHS["crds"], _pools_crd())
        for pool in cache.objects("ippools"):
            _allocate(pool, cache, writer)
    for network in cache.objects("macvlannetworks"):
        if "deletionTimestamp" not in network["metadata"]:
            _attach(network, cache, writer)


def rails(net: NetworkOperator, cache: Cache, view: View, profile: Profile, pod: Object) -> tuple[Nic, ...] | None:
    """The rails that a pod can use for RDMA, in order; None while its CNI cannot set the pod up.

    It needs the RDMA device, which a device plugin gives, and with RoCE the rail's network device as well: by an
    attachment, or with the node's own network. Without Multus on its node nobody reads what the pod asks for.
    """
    found = offered(net, view, profile, lambda resource: requested(pod, resource) > 0)
    if profile.nics is None or profile.nics.link == "IB" or pod["spec"].get("hostNetwork"):
        return found
    masters: set[str] = set()
    for namespace, name in _wanted(pod):
        if not _multus_acts(cache, view):
            break
        config = _config(cache.object("attachments", name, namespace))
        if config is None or not _has_address(config, net, cache, view):
            return None
        masters.add(str(config.get("master")))
    return tuple(nic for nic in found if nic.interface in masters)


# -- inside -------------------------------------------------------------------------------------------------


def _wanted(pod: Object) -> Iterator[tuple[str, str]]:
    """Namespace and name of each network in the pod's annotation, which may name a device behind an @."""
    text = (pod["metadata"].get("annotations") or {}).get(WANTED) or ""
    for one in text.split(","):
        namespace, _, name = one.strip().partition("@")[0].rpartition("/")
        if name:
            yield namespace or pod["metadata"]["namespace"], name


def _multus_acts(cache: Cache, view: View) -> bool:
    """Whether Multus runs here, and Cilium has not put its configuration aside."""
    config = cache.object("configmaps", "cilium-config", "kube-system")
    alone = config is not None and (config.get("data") or {}).get("cni-exclusive", "true") != "false"
    return view.ready(_MULTUS) and not alone


def _config(attachment: Object | None) -> Object | None:
    """The CNI configuration of an attachment; None where there is none that can be read."""
    try:
        found = json.loads(attachment["spec"]["config"]) if attachment else None
    except (KeyError, TypeError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _has_address(config: Object, net: NetworkOperator, cache: Cache, view: View) -> bool:
    """Whether the attachment's IPAM can give the pod an address on this node."""
    ipam = config.get("ipam") or {}
    if ipam.get("type") != "nv-ipam":
        return True
    pool = cache.object("ippools", ipam.get("poolName", ""), net.namespace)
    blocks = ((pool or {}).get("status") or {}).get("allocations") or ()
    return view.ready(_IPAM) and any(one["nodeName"] == view.node.name for one in blocks)


def _attach(network: Object, cache: Cache, writer: Writer) -> None:
    """The attachment of a MacvlanNetwork, and then its state."""
    name, spec = network["metadata"]["name"], network.get("spec") or {}
    namespace = spec.get("networkNamespace") or "default"
    config: Object = {"cniVersion": "0.3.1", "name": name, "type": "macvlan"}
    config |= {key: spec[key] for key in ("master", "mode", "mtu") if spec.get(key)}
    try:
        config["ipam"] = json.loads(spec.get("ipam") or "{}")
    except ValueError as error:
        _write_status(network, {"state": "error", "reason": f"ipam is no JSON: {error}"}, writer)
        return
    known = cache.object("attachments", name, namespace)
    # One that a deleted network of the same name left is taken over, or the garbage collector would take it later.
    if known is None or _config(known) != config or known["metadata"].get("ownerReferences") != [owner(network)]:
        body: Object = {
            "apiVersion": "k8s.cni.cncf.io/v1",
            "kind": "NetworkAttachmentDefinition",
            "metadata": {"name": name, "namespace": namespace, "ownerReferences": [owner(network)]},
            "spec": {"config": json.dumps(config)},
        }
        path = f"/apis/k8s.cni.cncf.io/v1/namespaces/{namespace}/network-attachment-definitions/{name}"
        writer.apply("attachments", path, body, "network-operator")
        _write_status(network, {"state": "notReady"}, writer)
    else:
        _write_status(network, {"state": "ready", "macvlanNetworkAttachmentDef": f"{namespace}/{name}"}, writer)


def _write_status(network: Object, status: Object, writer: Writer) -> None:
    if network.get("status", {}) | status != network.get("status"):
        path = f"{PATHS['macvlannetworks']}/{network['metadata']['name']}/status"
        writer.patch("macvlannetworks", path, {"status": status}, how="merge")


def _allocate(pool: Object, cache: Cache, writer: Writer) -> None:
    """A block for each node that the pool selects, as long as there are blocks; what was given stays."""
    spec = pool.get("spec") or {}
    try:
        network, size = ip_network(spec["subnet"]), int(spec["perNodeBlockSize"])
    except (KeyError, TypeError, ValueError):
        return
    known = {one["nodeName"]: one for one in (pool.get("status") or {}).get("allocations") or ()}
    wanted = {node.name for node in cache.nodes.values() if _selects(spec.get("nodeSelector"), node)}
    if "status" in pool and wanted == known.keys():
        return
    kept = {name: one for name, one in known.items() if name in wanted}
    taken = {one["startIP"] for one in kept.values()}
    blocks = (
        (str(network[first]), str(network[first + size - 1])) for first in range(1, network.num_addresses - size, size)
    )
    free = (block for block in blocks if block[0] not in taken)
    for name, (first, last) in zip(sorted(wanted - kept.keys()), free, strict=False):
        kept[name] = {"nodeName": name, "startIP": first, "endIP": last}
    if "status" in pool and kept.keys() == known.keys():
        return
    ordered = sorted(kept.values(), key=lambda one: int(ip_address(one["startIP"])))
    meta = pool["metadata"]
    path = f"/apis/nv-ipam.nvidia.com/v1alpha1/namespaces/{meta['namespace']}/ippools/{meta['name']}/status"
    writer.patch("ippools", path, {"status": {"allocations": ordered}}, how="merge")


def _selects(selector: Object | None, node: Node) -> bool:
    """A node selector as pods have it: any term, and every expression of it. Without one, every node."""
    if not selector:
        return True
    return any(
        all(_matches(one, node) for one in term.get("matchExpressions") or ())
        for term in selector.get("nodeSelectorTerms") or ()
    )


def _matches(expression: Object, node: Node) -> bool:
    value, kind = node.labels.get(expression["key"]), str(expression["operator"])
    if kind in ("Exists", "DoesNotExist"):
        return (value is not None) == (kind == "Exists")
    values: list[str] = expression.get("values") or []
    return (value in values) == (kind == "In")


def _pools_crd() -> Object:
    """nv-ipam's own definition has a schema; this one takes anything."""
    version: Object = {
        "name": "v1alpha1",
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
    }
    names = {"kind": "IPPool", "listKind": "IPPoolList", "plural": "ippools", "singular": "ippool"}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": _POOLS_CRD},
        "spec": {"group": "nv-ipam.nvidia.com", "scope": "Namespaced", "names": names, "versions": [version]},
    }
