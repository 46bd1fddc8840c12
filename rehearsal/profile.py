"""Hardware profiles: what a kind of GPU node is, and what its owner promises of it.

A profile is data, ``profiles/<name>.yaml``, checked against the types below when it is read.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Literal

import yaml
from gpuready.charts_values.errors import InputError

_FOLDER = Path(__file__).parent / "profiles"


@dataclass(frozen=True)
class Machine:
    """The host without its GPUs. Family and model are left out where NFD does not label them."""

    cpus: int
    memory_gib: int
    ephemeral_gib: int
    pods: int
    cpu_vendor: str
    cpu_family: int | None = None
    cpu_model: int | None = None
    arch: Literal["amd64", "arm64"] = "amd64"


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
    """One kind of GPU node and what its owner promises of it. ``name`` is the name of its file.

    ``nvlink_domain`` is how many nodes share one NVLink domain; 0 where NVLink ends inside the node.
    """

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
    nvlink_domain: int = 0


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
    if profile.nics and profile.rdma == "roce" and len(profile.network.rails) != len(profile.nics.devices):
        raise InputError(f"{where}: network.rails has one network for each rail where `rdma` is roce")
    return profile


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
