"""The simulated fleet: hardware profiles, and what follows from one.

A profile is data (``profiles/<name>.yaml``). It yields the truth of a node (``hardware``), from which the
actors act, the node objects as they are after joining (``nodes``), and the promise (``entry``), which is the
rehearsal's entry in `inventory`. Faults change the truth alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import types
import typing
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Literal

import yaml
from gpuready.charts_values.errors import InputError
from gpuready.charts_values.kube import Object

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

_FOLDER = Path(__file__).parent / "profiles"
_NAMESPACE = uuid.UUID("6f1c2a1e-0d0b-5c0f-9f5e-6770757265a1")


@dataclass(frozen=True)
class Machine:
    """The host without its GPUs."""

    cpus: int
    memory_gib: int
    ephemeral_gib: int
    pods: int
    cpu_vendor: str
    cpu_family: int
    cpu_model: int


@dataclass(frozen=True)
class System:
    """The operating system."""

    id: str
    version: str
    image: str
    kernel: str
    runtime: str


@dataclass(frozen=True)
class Slot:
    """Where a GPU sits."""

    bus_id: str
    numa: int


@dataclass(frozen=True)
class GpuModel:
    """The GPUs of a node: ``name`` as nvidia-smi prints it, ``label`` as GPU feature discovery does."""

    name: str
    label: str
    brand: str
    architecture: str
    compute: str
    memory_mib: int
    pci_class: str
    mig_capable: bool
    devices: tuple[Slot, ...]


@dataclass(frozen=True)
class Nic:
    """One rail."""

    name: str
    interface: str
    bus_id: str
    numa: int


@dataclass(frozen=True)
class NicModel:
    """The rails of a node; ``gbits_s`` is the line rate of one in Gb/s."""

    vendor: str
    device: str
    pci_class: str
    driver: str
    link: Literal["IB", "RoCE"]
    gbits_s: float
    gdr: bool
    devices: tuple[Nic, ...]


@dataclass(frozen=True)
class Management:
    """The NIC that carries the cluster's own traffic."""

    interface: str
    vendor: str
    pci_class: str
    gbits_s: float


@dataclass(frozen=True)
class Driver:
    """The GPU driver that is promised; with owner "host" it is installed already."""

    version: str
    cuda: str
    owner: Literal["operator", "host"]


@dataclass(frozen=True)
class Network:
    """CIDRs of pods, services, nodes and rails."""

    pods: str
    services: str
    nodes: str
    rails: tuple[str, ...]


@dataclass(frozen=True)
class Profile:
    """One kind of GPU node and what its owner promises of it. ``name`` is the name of its file."""

    name: str
    title: str
    instance_type: str
    machine: Machine
    os: System
    gpus: GpuModel
    management: Management
    driver: Driver
    ofed: Literal["operator", "host", "inbox"]
    dra: Literal["off", "compute-domains", "gpus"]
    rdma: Literal["ib", "roce", "none"]
    capacity: Literal["reserved", "spot"]
    resources: Mapping[str, int]
    taints: tuple[Mapping[str, str], ...]
    network: Network
    nics: NicModel | None = None


@dataclass(frozen=True)
class Gpu:
    """One GPU of one node."""

    index: int
    uuid: str
    serial: str
    bus_id: str
    numa: int


@dataclass(frozen=True)
class Hardware:
    """The truth of one node.

    ``rdma`` says whether NCCL can use the rails, ``gdr`` whether they reach GPU memory directly,
    ``host_driver`` is the version of a driver installed on the host, and ``slow`` maps a rail to the share
    of its line rate that it still gives.
    """

    node: str
    gpus: tuple[Gpu, ...] = ()
    nics: tuple[Nic, ...] = ()
    rdma: bool = False
    gdr: bool = False
    host_driver: str | None = None
    slow: Mapping[str, float] = field(default_factory=dict)


def profiles() -> list[str]:
    """The names of the profiles, sorted."""
    return sorted(file.stem for file in _FOLDER.glob("*.yaml"))


def load_profile(name: str) -> Profile:
    """Read and check a profile.

    Raises InputError: an unknown name, or the key that is wrong and what it should be.
    """
    if name not in profiles():
        raise InputError(f"no hardware profile {name!r}; there are {', '.join(profiles())}")
    return read_profile(_FOLDER / f"{name}.yaml")


def read_profile(file: Path) -> Profile:
    """Read and check the profile in ``file``; raises InputError."""
    where = f"profile {file.name}"
    try:
        data = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"{where} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise InputError(f"{where} must be a table")
    profile: Profile = _typed(where, "", {"name": file.stem, **data}, Profile)
    for key, value in dataclasses.asdict(profile.network).items():
        for cidr in [value] if isinstance(value, str) else value:
            try:
                ip_network(cidr)
            except ValueError as error:
                raise InputError(f"{where}: network.{key}: {error}") from error
    if (profile.nics is None) != (profile.rdma == "none"):
        raise InputError(f"{where}: `nics` describes RDMA rails: give it exactly when `rdma` is not none")
    return profile


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
    )


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
        "kubernetes.io/arch": "amd64",
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
                "architecture": "amd64",
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


def _typed(where: str, key: str, value: Any, kind: Any) -> Any:
    """``value`` as the annotation ``kind`` wants it: tables become dataclasses, lists tuples.

    Raises InputError that names the key.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        kind = next(one for one in arguments if one is not type(None))
        return _typed(where, key, value, kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _table(where, key, value, kind)
    if origin is Literal:
        if value not in arguments:
            raise InputError(f"{where}: {key} is {value!r}; it may be {', '.join(arguments)}")
        return value
    if origin is tuple:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise InputError(f"{where}: {key} must be a list")
        return tuple(_typed(where, f"{key}[{i}]", one, arguments[0]) for i, one in enumerate(value))
    if origin is Mapping:
        if not isinstance(value, dict):
            raise InputError(f"{where}: {key} must be a table")
        return {str(name): _typed(where, f"{key}.{name}", one, arguments[1]) for name, one in value.items()}
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise InputError(f"{where}: {key} is {value!r}; it must be of type {kind.__name__}")
    return value


def _table(where: str, key: str, value: Any, kind: type) -> Any:
    here = f"{key}." if key else ""
    if not isinstance(value, Mapping):
        raise InputError(f"{where}: {key} must be a table")
    fields = {one.name: one for one in dataclasses.fields(kind)}
    for name in value:
        if name not in fields:
            raise InputError(f"{where}: unknown key {here}{name}; known are {', '.join(fields)}")
    for name, one in fields.items():
        if name not in value and one.default is dataclasses.MISSING:
            raise InputError(f"{where}: {here}{name} is missing")
    hints = typing.get_type_hints(kind)
    return kind(**{name: _typed(where, here + name, one, hints[name]) for name, one in value.items()})
