"""Groups of GPU nodes in an inventory entry, and the rail networks of those with RoCE."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

from . import fields
from .errors import InputError

# Where the NetworkAttachmentDefinitions of the rails are made. Pods elsewhere name them as namespace/name.
ATTACHMENT_NAMESPACE = "default"
# How many addresses of a rail's network each node gets for its pods.
ADDRESSES_PER_NODE = 32
_CHOICES: dict[str, tuple[str, ...]] = {
    "rdma": ("ib", "roce", "none"),
    "capacity": ("reserved", "spot"),
}
_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


@dataclass(frozen=True)
class RailNetwork:
    """The secondary network that brings one RoCE rail into pods.

    ``interface`` is the rail's device on the nodes and ``cidr`` the addresses of pods on it; gpuready makes the
    network from them. Without an interface the NetworkAttachmentDefinition ``name`` exists already, and gpuready
    uses it as it is. ``resource`` is the rdma/* resource of the rail, where the group has several.
    """

    name: str
    interface: str = ""
    cidr: str = ""
    gateway: str = ""
    mtu: int = 0
    resource: str = ""

    @property
    def attachment(self) -> tuple[str, str]:
        """Namespace and name of its NetworkAttachmentDefinition."""
        namespace, _, name = self.name.rpartition("/")
        return namespace or ATTACHMENT_NAMESPACE, name


@dataclass(frozen=True)
class Group:
    """Nodes that are promised to be alike.

    ``resources`` maps extended resources to the count that each node must offer. ``nic_gbits_s`` is the
    line rate of one NIC in Gb/s. A node belongs to the group when ``nodes`` names it or, where ``nodes`` is
    empty, when it carries every label of ``selector``. ``networks`` are the secondary networks of RoCE rails;
    with ``host_network`` pods share the node's network instead. ``node`` is how its machines shall be set, on top of
    the cluster's own table; ``node_settings.parse`` reads both.
    """

    name: str
    count: int
    gpu_product: str
    resources: Mapping[str, int]
    nodes: tuple[str, ...] = ()
    selector: Mapping[str, str] = field(default_factory=dict)
    nics: int = 0
    nic_gbits_s: float = 0.0
    rdma: str = "none"
    capacity: str = "reserved"
    taints: tuple[Mapping[str, str], ...] = ()
    networks: tuple[RailNetwork, ...] = ()
    host_network: bool = False
    node: Mapping[str, Any] = field(default_factory=dict)

    @property
    def gpus(self) -> int:
        """GPUs of one node."""
        return self.resources.get("nvidia.com/gpu", 0)

    @property
    def rdma_resources(self) -> dict[str, int]:
        """The resources that give a pod its RDMA devices."""
        return {key: count for key, count in self.resources.items() if key.startswith("rdma/")}

    def interfaces(self, resource: str) -> tuple[str, ...]:
        """The rails' devices behind one of ``rdma_resources``; empty where the networks do not tell."""
        only = len(self.rdma_resources) == 1
        return tuple(one.interface for one in self.networks if one.interface and (only or one.resource == resource))

    def away(self, node: Mapping[str, Any]) -> bool:
        """Whether a Node object of this group is a spot node that its platform takes away: it is cordoned.

        A spot node that is not Ready without a cordon is broken, not preempted.
        """
        return self.capacity == "spot" and bool(node.get("spec", {}).get("unschedulable"))

    def gone(self, node: Mapping[str, Any]) -> bool:
        """Whether a spot node that is ``away`` has stopped already: its pods are listed and will not be ready."""
        conditions = node.get("status", {}).get("conditions") or ()
        return self.away(node) and not any((one["type"], one["status"]) == ("Ready", "True") for one in conditions)

    def holds(self, node: Mapping[str, Any]) -> bool:
        """Whether a Node object belongs to this group."""
        meta = node.get("metadata", {})
        if self.nodes:
            return meta.get("name") in self.nodes
        labels = meta.get("labels", {})
        return bool(self.selector) and all(labels.get(key) == value for key, value in self.selector.items())


def parse_group(where: str, name: str, value: Any, rail_cidrs: Sequence[str]) -> Group:
    """Check one group of an entry and give it its types; raises InputError."""
    here = f"{where}, group {name!r}"
    if not isinstance(value, Mapping):
        raise InputError(f"{here} is no table")
    fields.known(here, value, {one.name for one in dataclasses.fields(Group)} - {"name"})
    fields.choices(here, value, _CHOICES)
    fields.texts(here, value, ("gpu_product",))
    fields.whole(here, value, ("count", "nics"))
    fields.numbers(here, value, ("nic_gbits_s",))
    fields.flags(here, value, ("host_network",))
    nodes = fields.strings(here, "nodes", value.get("nodes", ()))
    selector = fields.labels(here, value, "selector")
    count = value.get("count", len(nodes))
    if count < 1:
        raise InputError(f"{here}: it has no nodes; give `nodes` (names) or `count` with `selector` (labels)")
    if nodes and count != len(nodes):
        raise InputError(f"{here}: `count` says {count} and `nodes` names {len(nodes)}")
    if not nodes and not selector:
        raise InputError(f"{here}: say which nodes belong to it, by `nodes` (names) or `selector` (labels)")
    for key in ("gpu_product", "resources"):
        if not value.get(key):
            raise InputError(f"{here}: `{key}` is missing")
    resources = fields.named(here, value, "resources")
    if not all(isinstance(one, int) and not isinstance(one, bool) and one > 0 for one in resources.values()):
        raise InputError(f"{here}: `resources` maps names to whole numbers above 0, such as nvidia.com/gpu: 8")
    plain = ("nics", "nic_gbits_s", "rdma", "capacity", "host_network")
    group = Group(
        name=name,
        count=count,
        gpu_product=value["gpu_product"],
        resources=dict(resources),
        nodes=nodes,
        selector=dict(selector),
        taints=_taints(here, value.get("taints", ())),
        networks=_networks(here, fields.named(here, value, "networks"), rail_cidrs),
        node=fields.table(here, value, "node"),
        **{key: value[key] for key in plain if key in value},
    )
    _check_rails(here, group)
    return group


def check_networks(where: str, groups: Sequence[Group]) -> None:
    """Groups may share a rail network, which then is the same for all of them; raises InputError."""
    seen: dict[str, RailNetwork] = {}
    for group in groups:
        for one in group.networks:
            if seen.setdefault(one.name, one) != one:
                raise InputError(f"{where}: groups describe network {one.name!r} differently; give each its own name")


def _networks(where: str, table: Mapping[str, Any], rail_cidrs: Sequence[str]) -> tuple[RailNetwork, ...]:
    """The rail networks; the first one takes the first of ``rail_cidrs`` where it names no `cidr`, and so on."""
    found = []
    for index, (name, value) in enumerate(table.items()):
        here = f"{where}, network {name!r}"
        if not isinstance(value, Mapping):
            raise InputError(f"{here} is no table; write {{'interface': 'ens1f0np0'}}")
        fields.known(here, value, {one.name for one in dataclasses.fields(RailNetwork)} - {"name"})
        fields.texts(here, value, ("interface", "cidr", "gateway", "resource"))
        fields.whole(here, value, ("mtu",))
        given = dict(value)
        if given.get("interface") and len(rail_cidrs) == len(table):
            given.setdefault("cidr", rail_cidrs[index])
        one = RailNetwork(name=name, **given)
        _check_network(here, one)
        found.append(one)
    return tuple(found)


def _check_network(here: str, one: RailNetwork) -> None:
    if not all(_NAME.fullmatch(part) for part in one.attachment) or one.name.count("/") > 1:
        raise InputError(f"{here}: the name must be one of Kubernetes, such as rail-0, or namespace/name")
    if not one.interface:
        if one.cidr or one.gateway or one.mtu:
            raise InputError(f"{here}: give `interface`, the rail's device on the nodes; without it nothing is made")
        return
    if "/" in one.name:
        raise InputError(f"{here}: gpuready makes it in namespace {ATTACHMENT_NAMESPACE}; leave the namespace out")
    if not one.cidr:
        raise InputError(f"{here}: `cidr` is missing: give it, or one network per rail in `rail_cidrs`")
    fields.cidr(here, "cidr", one.cidr)
    if one.gateway:
        try:
            inside = ip_address(one.gateway) in ip_network(one.cidr)
        except ValueError:
            inside = False
        if not inside:
            raise InputError(f"{here}: `gateway` {one.gateway!r} is no address of {one.cidr}")


def _check_rails(here: str, group: Group) -> None:
    """What a group says of its rails goes together."""
    if (group.networks or group.host_network) and group.rdma != "roce":
        raise InputError(f"{here}: `networks` and `host_network` are for RoCE; `rdma` is {group.rdma!r}")
    if group.networks and group.host_network:
        raise InputError(f"{here}: give `networks` or `host_network`, not both")
    if group.networks and group.nics and len(group.networks) != group.nics:
        raise InputError(f"{here}: `networks` names {len(group.networks)} rails and `nics` says {group.nics}")
    for one in group.networks:
        if one.resource and one.resource not in group.rdma_resources:
            raise InputError(f"{here}, network {one.name!r}: `resource` {one.resource!r} is no rdma/* of `resources`")
        if one.cidr and (room := room_for(one)) < group.count:
            raise InputError(
                f"{here}, network {one.name!r}: {one.cidr} has {ADDRESSES_PER_NODE} pod addresses each for {room} "
                f"nodes, the group has {group.count}; give a wider `cidr`"
            )


def room_for(network: RailNetwork) -> int:
    """How many nodes a rail network has addresses for."""
    found = ip_network(network.cidr)
    return (found.num_addresses - 2) // ADDRESSES_PER_NODE


def _taints(here: str, value: Any) -> tuple[Mapping[str, str], ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise InputError(f"{here}: `taints` must be a list of tables with `key` and `effect`")
    for taint in value:
        if not isinstance(taint, Mapping) or not taint.get("key"):
            raise InputError(
                f"{here}: `taints`: a taint is a table with `key`, `effect` and, where it has one, `value`"
            )
        fields.known(f"{here}, `taints`", taint, {"key", "value", "effect"})
        fields.texts(f"{here}, `taints`", taint, ("key", "value"))
        if taint.get("effect") not in _EFFECTS:
            effect = taint.get("effect")
            raise InputError(f"{here}: taint {taint['key']!r} has `effect` {effect!r}; it may be {', '.join(_EFFECTS)}")
    return tuple(dict(taint) for taint in value)
