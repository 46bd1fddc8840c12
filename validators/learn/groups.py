"""The groups of GPU nodes that a cluster shows: one for each machine type and product."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from gpuready.charts_values import quantities

from ..checks.gpu import GPU, PRODUCT
from ..checks.network import GPU_ON_PCI
from ..checks.subjects import labels_of, name_of
from ..evidence import Evidence, Object
from .rails import MACVLANS, networks

# Groups of more nodes than this are described by a label.
NAMED_NODES = 32
GPU_DRIVER = "gpu.nvidia.com"
SLICES = "resourceslices.resource.k8s.io"

_INSTANCE_TYPE = "node.kubernetes.io/instance-type"
_GPU_RESOURCES = (GPU, "nvidia.com/mig-")
_RESOURCES = ("nvidia.com/", "mellanox.com/", "rdma/")
# Labels that a platform puts on nodes which it may take away; some put a taint of the same key and value.
_SPOT = (
    ("karpenter.sh/capacity-type", "spot"),
    ("eks.amazonaws.com/capacityType", "SPOT"),
    ("cloud.google.com/gke-spot", "true"),
    ("cloud.google.com/gke-preemptible", "true"),
    ("kubernetes.azure.com/scalesetpriority", "spot"),
    ("node.kubernetes.io/lifecycle", "spot"),
    ("node-role.kubernetes.io/spot-worker", "true"),
)
# Others put these on and take them off; a platform does not tolerate them.
_PASSING_TAINTS = (
    *("node.kubernetes.io/", "node.cilium.io/", "node.cloudprovider.kubernetes.io/"),
    *("karpenter.sh/disrupt", "karpenter.sh/unregistered", "ToBeDeleted", "DeletionCandidate"),
)
_NIC_ON_PCI = re.compile(r"feature\.node\.kubernetes\.io/pci-(?:(\d{4})_)?15b3\.present")
_MODEL = re.compile(r"(?<![A-Z0-9])[A-Z]{1,2}\d{2,4}[A-Z]?(?![A-Z0-9])")
_SHOWN = 8

Comments = dict[str, str]


def has_gpus(node: Object, evidence: Evidence) -> bool:
    """Whether a node shows a GPU: by resource, ResourceSlice, or label of GFD or NFD."""
    labels = labels_of(node)
    return (
        any(key.startswith(_GPU_RESOURCES) for key in _extended(node))
        or labels.get("nvidia.com/gpu.present") == "true"
        or PRODUCT in labels
        or any(labels.get(key) == "true" for key in GPU_ON_PCI)
        or _sliced_gpus(node, evidence) > 0
    )


def groups_of(gpu_nodes: Sequence[Object], evidence: Evidence) -> dict[str, tuple[dict[str, Any], Comments]]:
    """The groups by a name made of the GPU's model, each with what is open about its keys."""
    products: dict[str, Counter[str]] = {}
    for one in gpu_nodes:
        products.setdefault(_machine(one), Counter()).update(filter(None, [labels_of(one).get(PRODUCT)]))
    members: dict[tuple[str, str, str], list[Object]] = {}
    for one in gpu_nodes:
        known = products[_machine(one)]
        # A node that lost its labels belongs to its like, where there is one kind only.
        product = labels_of(one).get(PRODUCT) or (next(iter(known)) if len(known) == 1 else "")
        members.setdefault((product, _machine(one), _spot(one)[0]), []).append(one)
    reserved = {product for product, _, spot in members if not spot}
    groups: dict[str, tuple[dict[str, Any], Comments]] = {}
    for (product, _, spot), nodes in sorted(members.items()):
        model = _MODEL.search(product)
        base = name = (model[0].lower() if model else "gpu") + ("-spot" if spot and product in reserved else "")
        number = 1
        while name in groups:
            number += 1
            name = f"{base}-{number}"
        groups[name] = _group(product, sorted(nodes, key=name_of), gpu_nodes, evidence)
    return groups


def _machine(node: Object) -> str:
    return labels_of(node).get(_INSTANCE_TYPE, "")


def _spot(node: Object) -> tuple[str, str]:
    """The label, or else the taint, by which a platform says that it may take a node away; empty without one."""
    labels = labels_of(node)
    taints = {(taint["key"], taint.get("value", "")) for taint in node["spec"].get("taints") or ()}
    for key, value in _SPOT:
        if labels.get(key) == value or (key, value) in taints:
            return key, value
    return "", ""


def _group(
    product: str, nodes: Sequence[Object], gpu_nodes: Sequence[Object], evidence: Evidence
) -> tuple[dict[str, Any], Comments]:
    group: dict[str, Any] = {}
    comments: Comments = {}
    key, value = _spot(nodes[0])
    selector = {_INSTANCE_TYPE: _machine(nodes[0])} if _machine(nodes[0]) else {}
    if key in labels_of(nodes[0]):
        selector |= {key: value}
    alike = sum(selector.items() <= labels_of(one).items() for one in gpu_nodes) == len(nodes)
    if selector and alike and (key or len(nodes) > NAMED_NODES):
        group |= {"count": len(nodes), "selector": selector}
    else:
        group["nodes"] = [name_of(one) for one in nodes]
        if key:
            comments["nodes"] = "check: spot nodes come under new names; `count` and `selector` (labels) would hold"
    group["gpu_product"] = product
    if not product:
        comments["gpu_product"] = f"fill in: no node has label {PRODUCT}, which GFD sets"
    group["resources"], comments["resources"] = _resources(nodes, evidence)
    shares = [key for key in group["resources"] if key.startswith("rdma/")]
    nics = {found[1] for one in nodes for label in labels_of(one) if (found := _NIC_ON_PCI.fullmatch(label))}
    if shares:
        group["rdma"], comments["rdma"] = _link(nics, evidence)
        rails = f"; {len(shares)} by its resources" if shares[1:] else ""
        comments["nics"] = f"fill in: how many rails a node has{rails}"
        comments["nic_gbits_s"] = "fill in: the line rate of one rail in Gb/s"
        if group["rdma"] == "roce":
            rails_there, comments["networks"] = networks(evidence, shares)
            if rails_there:
                group["networks"] = rails_there
    elif nics:
        comments["rdma"] = (
            "fill in: ib or roce where RDMA is wanted; there are NVIDIA NICs (pci-15b3) and no rdma/* resource"
        )
    if key:
        group["capacity"] = "spot"
        comments["capacity"] = f"check: by {key}={value}; the platform may take these nodes away"
    if taints := _taints(nodes):
        group["taints"] = taints
    return group, {key: text for key, text in comments.items() if text}


def _extended(node: Object) -> dict[str, int]:
    """GPU and RDMA resources by capacity, which a GPU that just failed does not lower."""
    status = node.get("status", {})
    return {
        key: number
        for key, value in (status.get("capacity") or status.get("allocatable") or {}).items()
        if key.startswith(_RESOURCES) and (number := quantities.count(value)) > 0
    }


def _sliced_gpus(node: Object, evidence: Evidence) -> int:
    """Whole GPUs of a node that the DRA driver offers."""
    return sum(
        "-mig-" not in device["name"]
        for one in evidence.objects(SLICES)
        if one["spec"].get("driver") == GPU_DRIVER and one["spec"].get("nodeName") == name_of(node)
        for device in one["spec"].get("devices") or ()
    )


def _resources(nodes: Sequence[Object], evidence: Evidence) -> tuple[dict[str, int], str]:
    """What most of the nodes have; the others are named, since a draft must not promise a defect."""
    seen = {name_of(one): _extended(one) for one in nodes}
    for one in nodes:
        if sliced := _sliced_gpus(one, evidence):
            seen[name_of(one)][GPU] = sliced
    usual: dict[str, int] = {}
    for key in sorted({key for found in seen.values() for key in found}):
        number = Counter(found.get(key, 0) for found in seen.values()).most_common(1)[0][0]
        if number:
            usual[key] = number
    if not any(key.startswith(_GPU_RESOURCES) for key in usual):
        return {GPU: 0, **usual}, "fill in: how many GPUs a node has; none offers any yet"
    others = [
        f"{name} has {found.get(key, 0)} {key}"
        for name, found in seen.items()
        for key, number in usual.items()
        if found.get(key, 0) != number
    ]
    more = f" and {len(others) - _SHOWN} more" if others[_SHOWN:] else ""
    return usual, f"check: {', '.join(others[:_SHOWN])}{more}" if others else ""


def _link(classes: Iterable[str | None], evidence: Evidence) -> tuple[str, str]:
    """By the PCI class of the NICs where NFD labels it: 0207 is InfiniBand, 0200 Ethernet."""
    known = set(classes)
    if "0207" in known:
        return "ib", "guess: by the PCI class 0207 of its NICs"
    if "0200" in known:
        return "roce", "guess: by the PCI class 0200 of its NICs"
    if evidence.objects(MACVLANS):
        return "roce", "guess: by its MacvlanNetworks, which Ethernet rails have"
    return "ib", "fill in: ib or roce; the labels do not tell the link layer"


def _taints(nodes: Sequence[Object]) -> list[dict[str, str]]:
    """The lasting taints that all nodes have."""
    of_each = [
        [
            {key: taint[key] for key in ("key", "value", "effect") if taint.get(key)}
            for taint in node["spec"].get("taints") or ()
            if not taint["key"].startswith(_PASSING_TAINTS)
        ]
        for node in nodes
    ]
    return [taint for taint in of_each[0] if all(taint in taints for taints in of_each)]
