"""The simulated fleet: hardware profiles, and what follows from one.

A profile yields the truth of a node (``hardware``), from which the actors act, the node objects as they are
after joining (``nodes``), and the promise (``entry``), which is the rehearsal's entry in `inventory`. Faults
change the truth alone.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Literal

from gpuready.charts_values.errors import InputError
from gpuready.charts_values.kube import Object

from .profile import Machine, Nic, Profile, load_profile, profiles, read_profile

__all__ = [
    "CONDITIONS",
    "CONTROL_PLANE",
    "MOST_NODES",
    "Gpu",
    "Hardware",
    "Profile",
    "Trouble",
    "clique",
    "entry",
    "gpu_nodes",
    "hardware",
    "load_profile",
    "nodes",
    "profiles",
    "read_profile",
]

CONTROL_PLANE = "cp-0"
KUBELET = "v1.35.4"
MANAGED = {"kwok.x-k8s.io/node": "fake"}
MOST_NODES = 4000
# What the kubelet of a bare node posts: status, reason and message by type.
CONDITIONS = {
    "MemoryPressure": ("False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
    "DiskPressure": ("False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
    "PIDPressure": ("False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
    "Ready": (
        "False",
        "KubeletNotReady",
        "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady "
        "message:Network plugin returns error: cni plugin not initialized",
    ),
}

_NAMESPACE = uuid.UUID("6f1c2a1e-0d0b-5c0f-9f5e-6770757265a1")


@dataclass(frozen=True)
class Gpu:
    """One GPU of one node."""

    index: int
    uuid: str
    serial: str
    bus_id: str
    numa: int


@dataclass(frozen=True)
class Trouble:
    """What keeps a DaemonSet's pod from being ready on one node, and what its container or the kubelet says.

    ``crash``: its container ends whenever it is started; ``pull``: its image does not come; ``init``: its
    first init container never ends.
    """

    kind: Literal["crash", "pull", "init"]
    message: str = ""


@dataclass(frozen=True)
class Hardware:
    """The truth of one node.

    ``product`` is the name of its GPUs. ``rdma`` says whether NCCL can use the rails, ``gdr`` whether they
    reach GPU memory directly, ``host_driver`` is the version of a driver installed on the host, ``slow`` maps a
    rail to the share of its line rate that it still gives, ``nvlink`` is that share of its NVLinks, ``silent``
    names rails whose port is down and ``dying`` those whose port goes down under load. ``kubelet`` is why the
    kubelet is not ready (empty where it is), ``broken`` the trouble of pods by their role, and ``mofed_wait``
    says that the Network Operator never sees OFED ready here.
    """

    node: str
    gpus: tuple[Gpu, ...] = ()
    nics: tuple[Nic, ...] = ()
    rdma: bool = False
    gdr: bool = False
    host_driver: str | None = None
    slow: Mapping[str, float] = field(default_factory=dict)
    product: str = ""
    nvlink: float = 1.0
    silent: frozenset[str] = frozenset()
    dying: frozenset[str] = frozenset()
    kubelet: str = ""
    broken: Mapping[str, Trouble] = field(default_factory=dict)
    mofed_wait: bool = False

    def with_trouble(self, trouble: Mapping[str, Trouble]) -> Hardware:
        """The same node with more pods in trouble, by their role."""
        return replace(self, broken={**self.broken, **trouble})


def gpu_nodes(count: int) -> list[str]:
    """The names of ``count`` GPU nodes; raises InputError where that is no sensible number."""
    if not 1 <= count <= MOST_NODES:
        raise InputError(f"{count} nodes cannot be rehearsed; give 1 to {MOST_NODES}")
    return [f"gpu-{index:04d}" for index in range(count)]


def hardware(profile: Profile, node: str) -> Hardware:
    """The healthy truth of a node; the same name always gives the same serial numbers.

    The control-plane node has neither GPUs nor rails.
    """
    if node == CONTROL_PLANE:
        return Hardware(node)
    gpus = tuple(
        Gpu(
            index=index,
            uuid=f"GPU-{uuid.uuid5(_NAMESPACE, f'{node}/{slot.bus_id}')}",
            serial=str(1_650_000_000_000 + _number(f"{node}/{slot.bus_id}") % 9_999_999_999),
            bus_id=slot.bus_id,
            numa=slot.numa,
        )
        for index, slot in enumerate(profile.gpus.devices)
    )
    return Hardware(
        node=node,
        gpus=gpus,
        nics=profile.nics.devices if profile.nics else (),
        rdma=profile.nics is not None,
        gdr=profile.nics is not None and profile.nics.gdr,
        host_driver=profile.driver.version if profile.driver.owner == "host" else None,
        product=profile.gpus.name,
    )


def clique(profile: Profile, node: str) -> str:
    """The NVLink domain of a GPU node as feature discovery labels it, ``<cluster uuid>.<clique id>``; or nothing."""
    if not profile.nvlink_domain or node == CONTROL_PLANE:
        return ""
    domain = int(node.rpartition("-")[2]) // profile.nvlink_domain
    return f"{uuid.uuid5(_NAMESPACE, f'{profile.name}/nvlink/{domain}')}.0"


def nodes(profile: Profile, count: int, kubelet_port: int) -> list[Object]:
    """The Node objects of a fleet as they are after joining: one control-plane node and ``count`` GPU nodes.

    They are NotReady, for want of a network plugin. ``kubelet_port`` is where kwok answers for all of them.
    """
    names = [CONTROL_PLANE, *gpu_nodes(count)]
    addresses = ip_network(profile.network.nodes)
    pod_cidrs = ip_network(profile.network.pods).subnets(new_prefix=24)
    made = []
    # One /24 per node, as the controller-manager of a kubeadm cluster hands them out.
    for index, (name, pod_cidr) in enumerate(zip(names, pod_cidrs, strict=False)):
        made.append(_node(profile, name, str(addresses[257 + index]), str(pod_cidr), kubelet_port))
    return made


def entry(
    profile: Profile, count: int, state_dir: Path, kubeconfig: Path, uid: str, charts: str | None
) -> dict[str, Any]:
    """The promise: the cluster's entry of `inventory`, as JSON can hold it.

    ``uid`` is that of the namespace kube-system; ``charts`` the folder of the stand-in charts, or None where
    $GPUREADY_CHARTS is to decide.
    """
    group: dict[str, Any] = {
        "nodes": gpu_nodes(count),
        "gpu_product": profile.gpus.label,
        "resources": dict(profile.resources),
        "rdma": profile.rdma,
        "capacity": profile.capacity,
        "taints": [dict(taint) for taint in profile.taints],
    }
    if profile.nics:
        group |= {"nics": len(profile.nics.devices), "nic_gbits_s": profile.nics.gbits_s}
    if profile.nics and profile.rdma == "roce":
        # In the order of rail_cidrs.
        group["networks"] = {
            f"rail-{index}": {"interface": nic.interface} for index, nic in enumerate(profile.nics.devices)
        }
    return {
        "rehearsal": True,
        "state_dir": str(state_dir),
        "kubeconfig": str(kubeconfig),
        "cluster_uid": uid,
        "platform": "kubeadm",
        "charts": charts,
        "pod_cidr": profile.network.pods,
        "service_cidr": profile.network.services,
        "node_cidrs": [profile.network.nodes],
        "rail_cidrs": list(profile.network.rails),
        "management_nics": [profile.management.interface],
        "driver_version": profile.driver.version,
        "driver_owner": profile.driver.owner,
        "ofed_owner": profile.ofed,
        "dra": profile.dra,
        "groups": {profile.name: group},
    }


def _node(profile: Profile, name: str, address: str, pod_cidr: str, kubelet_port: int) -> Object:
    control_plane = name == CONTROL_PLANE
    machine = Machine(8, 32, 200, 110, "Intel", 6, 143) if control_plane else profile.machine
    labels = {
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": machine.arch,
        "node.kubernetes.io/instance-type": "control-plane" if control_plane else profile.instance_type,
    }
    taints = [dict(taint) for taint in profile.taints]
    if control_plane:
        labels["node-role.kubernetes.io/control-plane"] = ""
        taints = [{"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}]
    joined = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    room = {
        "cpu": str(machine.cpus),
        "memory": f"{machine.memory_gib}Gi",
        "ephemeral-storage": f"{machine.ephemeral_gib}Gi",
        "pods": str(machine.pods),
        "hugepages-1Gi": "0",
        "hugepages-2Mi": "0",
    }
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels, "annotations": dict(MANAGED)},
        "spec": {"taints": taints, "podCIDR": pod_cidr, "podCIDRs": [pod_cidr]},
        "status": {
            # The API server asks for logs at ExternalDNS first: kwok answers there, on loopback.
            "addresses": [
                {"type": "InternalIP", "address": address},
                {"type": "Hostname", "address": name},
                {"type": "ExternalDNS", "address": "127.0.0.1"},
            ],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": kubelet_port}},
            "capacity": room,
            "allocatable": room,
            "conditions": [
                {
                    "type": kind,
                    "status": status,
                    "reason": reason,
                    "message": message,
                    "lastHeartbeatTime": joined,
                    "lastTransitionTime": joined,
                }
                for kind, (status, reason, message) in CONDITIONS.items()
            ],
            "nodeInfo": {
                "architecture": machine.arch,
                "operatingSystem": "linux",
                "osImage": profile.os.image,
                "kernelVersion": profile.os.kernel,
                "containerRuntimeVersion": profile.os.runtime,
                "kubeletVersion": KUBELET,
                "kubeProxyVersion": "",
                "machineID": uuid.uuid5(_NAMESPACE, name).hex,
                "systemUUID": str(uuid.uuid5(_NAMESPACE, f"{name}/system")),
                "bootID": str(uuid.uuid5(_NAMESPACE, f"{name}/boot")),
            },
        },
    }


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
