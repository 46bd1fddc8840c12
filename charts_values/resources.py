"""The custom resources that make the operators act, built from the inventory entry."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from itertools import combinations
from typing import Any

from . import bill
from .errors import InputError
from .groups import ADDRESSES_PER_NODE, RailNetwork
from .inventory import Cluster
from .values import merge, tolerations, with_own

Object = dict[str, Any]

NIC_CLUSTER_POLICY = "nic-cluster-policy"
# NFD's label of nodes with NVIDIA NICs, by the Network Operator's own rule.
NIC_LABEL = "feature.node.kubernetes.io/pci-15b3.present"
_MELLANOX = "15b3"
_INFINIBAND = "infiniband"


def custom_resources(cluster: Cluster) -> list[Object]:
    """What is applied after the Network Operator, in this order; nothing where no RDMA is expected.

    The NicClusterPolicy, then for each RoCE rail its address pool and its network. Raises InputError where the
    expected rdma/* resources cannot be told apart.
    """
    if not cluster.wants_rdma:
        return []
    made = [one for one in cluster.networks if one.interface]
    return [
        nic_cluster_policy(cluster),
        *(address_pool(one, operator_namespace(cluster)) for one in made),
        *map(rail_network, made),
    ]


def address_pool(network: RailNetwork, namespace: str) -> Object:
    """The nv-ipam pool of a rail: an equal block of addresses for each node with NICs."""
    label = {"key": NIC_LABEL, "operator": "In", "values": ["true"]}
    spec: Object = {
        "subnet": network.cidr,
        "perNodeBlockSize": ADDRESSES_PER_NODE,
        "nodeSelector": {"nodeSelectorTerms": [{"matchExpressions": [label]}]},
    }
    if network.gateway:
        spec["gateway"] = network.gateway
    return {
        "apiVersion": "nv-ipam.nvidia.com/v1alpha1",
        "kind": "IPPool",
        "metadata": {"name": network.name, "namespace": namespace},
        "spec": spec,
    }


def rail_network(network: RailNetwork) -> Object:
    """The MacvlanNetwork of a rail, from which the operator makes the NetworkAttachmentDefinition."""
    namespace, name = network.attachment
    spec: Object = {
        "networkNamespace": namespace,
        "master": network.interface,
        "mode": "bridge",
        "ipam": json.dumps({"type": "nv-ipam", "poolName": network.name}),
    }
    if network.mtu:
        spec["mtu"] = network.mtu
    return {"apiVersion": "mellanox.com/v1alpha1", "kind": "MacvlanNetwork", "metadata": {"name": name}, "spec": spec}


def nic_cluster_policy(cluster: Cluster) -> Object:
    """The NicClusterPolicy: the shared RDMA devices as inventory expects them, the OFED driver if it is ours.

    Multus, CNI plugins and nv-ipam only where gpuready makes networks for rails.

    `charts_values/<cluster>/nic-cluster-policy.yaml` lies over the spec.
    """
    spec = bill.packaged(f"{NIC_CLUSTER_POLICY}.yaml")
    if cluster.ofed_owner != "operator":
        del spec["ofedDriver"]
    if not any(one.interface for one in cluster.networks):
        del spec["secondaryNetwork"], spec["nvIpam"]
    # The operator hands this text to the device plugin as it is.
    config = json.dumps({"configList": _shared_devices(cluster)}, indent=2)
    made = {"rdmaSharedDevicePlugin": {"config": config}, "tolerations": tolerations(cluster)}
    spec = with_own(NIC_CLUSTER_POLICY, cluster, merge(spec, made))
    return {
        "apiVersion": "mellanox.com/v1alpha1",
        "kind": "NicClusterPolicy",
        "metadata": {"name": NIC_CLUSTER_POLICY},
        "spec": spec,
    }


def _shared_devices(cluster: Cluster) -> list[Object]:
    """One entry per rdma/* resource; a share of it gives a pod all NICs that the selectors match.

    The selectors are the rails' devices where `networks` names them, else every NIC of the vendor; where all of a
    resource is InfiniBand, without an Ethernet NIC of the same vendor, such as the management NIC.
    """
    counts: dict[str, int] = {}
    kinds: dict[str, set[str]] = {}
    interfaces: dict[str, set[str]] = {}
    everywhere: set[str] = set()
    for group in cluster.groups:
        where = f"inventory, cluster {cluster.name!r}, group {group.name!r}"
        for resource, count in group.rdma_resources.items():
            mine = group.interfaces(resource)
            if not mine and len(group.rdma_resources) > 1:
                raise InputError(
                    f"{where}: it expects several rdma/* resources; which NICs belong to which is not known, so give "
                    "one, or name the `interface` and `resource` of each rail in `networks`"
                )
            name = resource.removeprefix("rdma/")
            if counts.setdefault(name, count) != count:
                raise InputError(
                    f"inventory, cluster {cluster.name!r}: groups expect different counts of {resource} "
                    f"({counts[name]} and {count}); one NicClusterPolicy gives all nodes the same"
                )
            interfaces.setdefault(name, set()).update(mine)
            kinds.setdefault(name, set()).add(group.rdma)
            if not mine:
                everywhere.add(name)
    if clash := _clash(counts, interfaces, everywhere):
        raise InputError(
            f"inventory, cluster {cluster.name!r}: groups name their RDMA differently "
            f"({' and '.join(clash)}); both selectors would take the same NICs, so use one name"
        )
    return [
        {
            "resourceName": name,
            "rdmaHcaMax": count,
            "selectors": {"vendors": [_MELLANOX]}
            | ({} if name in everywhere else {"ifNames": sorted(interfaces[name])})
            | ({"linkTypes": [_INFINIBAND]} if kinds[name] == {"ib"} and _has_ipoib(cluster) else {}),
        }
        for name, count in counts.items()
    ]


def _has_ipoib(cluster: Cluster) -> bool:
    """Whether InfiniBand ports have a network device, of which the plugin reads the link type.

    OFED loads IPoIB by default; the kernel's own modules come without, and a selector by link type finds no NIC then.
    """
    return cluster.ofed_owner != "inbox"


def _clash(
    names: Iterable[str], interfaces: Mapping[str, set[str]], everywhere: Collection[str]
) -> tuple[str, str] | None:
    """Two resources whose selectors may match the same NIC."""
    for one, other in combinations(sorted(names), 2):
        if one in everywhere or other in everywhere or interfaces[one] & interfaces[other]:
            return one, other
    return None


def operator_namespace(cluster: Cluster) -> str:
    """Where nv-ipam looks for its pools: beside the Network Operator."""
    return next(release.namespace for release in bill.releases(cluster) if release.key == "network-operator")
