"""The custom resources that make the operators act, built from the inventory entry."""

from __future__ import annotations

import json
from typing import Any

from . import bill
from .errors import InputError
from .inventory import Cluster
from .values import merge, own, tolerations

Object = dict[str, Any]

NIC_CLUSTER_POLICY = "nic-cluster-policy"
_MELLANOX = "15b3"


def custom_resources(cluster: Cluster) -> list[Object]:
    """What is applied after the Network Operator: a NicClusterPolicy where RDMA is expected, else nothing.

    Raises InputError where the expected rdma/* resources cannot be told apart.
    """
    return [nic_cluster_policy(cluster)] if cluster.wants_rdma else []


def nic_cluster_policy(cluster: Cluster) -> Object:
    """The NicClusterPolicy: the shared RDMA devices as inventory expects them, the OFED driver if it is ours.

    `charts_values/<cluster>/nic-cluster-policy.yaml` lies over the spec.
    """
    spec = bill.packaged(f"{NIC_CLUSTER_POLICY}.yaml")
    if cluster.ofed_owner != "operator":
        del spec["ofedDriver"]
    # The operator hands this text to the device plugin as it is.
    config = json.dumps({"configList": _shared_devices(cluster)}, indent=2)
    spec = merge(
        spec,
        {"rdmaSharedDevicePlugin": {"config": config}, "tolerations": tolerations(cluster)},
        own(NIC_CLUSTER_POLICY, cluster),
    )
    return {
        "apiVersion": "mellanox.com/v1alpha1",
        "kind": "NicClusterPolicy",
        "metadata": {"name": NIC_CLUSTER_POLICY},
        "spec": spec,
    }


def _shared_devices(cluster: Cluster) -> list[Object]:
    """One entry per rdma/* resource; a share of it gives a pod all NICs that the selectors match."""
    wanted: dict[str, int] = {}
    for group in cluster.groups:
        if len(group.rdma_resources) > 1:
            raise InputError(
                f"inventory, cluster {cluster.name!r}, group {group.name!r}: it expects several rdma/* resources; "
                "which NICs belong to which is not known, so give one"
            )
        for resource, count in group.rdma_resources.items():
            name = resource.removeprefix("rdma/")
            if wanted.setdefault(name, count) != count:
                raise InputError(
                    f"inventory, cluster {cluster.name!r}: groups expect different counts of {resource} "
                    f"({wanted[name]} and {count}); one NicClusterPolicy gives all nodes the same"
                )
    if len(wanted) > 1:
        raise InputError(
            f"inventory, cluster {cluster.name!r}: groups name their RDMA differently "
            f"({', '.join(sorted(wanted))}); both selectors would take the same NICs, so use one name"
        )
    return [
        {"resourceName": name, "rdmaHcaMax": count, "selectors": {"vendors": [_MELLANOX]}}
        for name, count in wanted.items()
    ]
