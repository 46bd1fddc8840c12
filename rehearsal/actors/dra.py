"""The DRA driver's kubelet plugin: the ResourceSlices of a node.

Its init container waits until the driver is found under nvidiaDriverRoot, for ever if need be: a wrong root
shows as Init and nothing else. A driver that is too old lets the plugin end with an error.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpuready.charts_values.kube import Object

from ..profile import Profile
from .cache import Cache
from .gpu_operator import driver_version
from .informers import PATHS
from .pods import ALL_READY, Wish, crashing, waiting
from .scene import View, containers, roles
from .writes import Writer

ROLE = "dra"
GPUS = "gpu.nvidia.com"
DOMAINS = "compute-domain.nvidia.com"
# Where the driver container of the GPU Operator mounts its root.
_OPERATOR_ROOT = "/run/nvidia/driver"
_OLDEST = {GPUS: (565,), DOMAINS: (570, 158, 1)}


@dataclass(frozen=True)
class Dra:
    """What the installed DaemonSet says: ``root`` is nvidiaDriverRoot, ``drivers`` the DRA drivers it runs."""

    root: str
    drivers: tuple[str, ...]


def read(cache: Cache) -> Dra | None:
    """None where no kubelet plugin is installed."""
    for one in cache.objects("daemonsets"):
        if ROLE in roles([one]).values():
            names = {container["name"] for container in containers(one)}
            drivers = tuple(driver for name, driver in (("compute-domains", DOMAINS), ("gpus", GPUS)) if name in names)
            return Dra(_root(one), drivers)
    return None


def progress(dra: Dra | None, role: str, view: View) -> Wish | None:
    """How far the plugin's pod can be on its node; None where the pod is not the plugin's."""
    if role != ROLE or dra is None:
        return None
    version = _version_under(dra.root, view)
    if version is None:
        return waiting(0)
    for driver in dra.drivers:
        if _numbers(version) < _OLDEST[driver]:
            return crashing(f"driver {version} is too old for {driver}")
    return ALL_READY


def node(dra: Dra | None, view: View, profile: Profile, cache: Cache, writer: Writer) -> None:
    """The slices of a node: published while the plugin serves them, withdrawn when it no longer does."""
    served = dra.drivers if dra is not None and view.ready(ROLE) else ()
    # After a while the kubelet withdraws what a plugin that does not run had published.
    gone = ROLE not in view.pods or (ROLE in view.hardware.broken and not view.ready(ROLE))
    version = driver_version(view)
    for driver in (DOMAINS, GPUS):
        name = f"{view.node.name}-{driver}"
        known = cache.object("resourceslices", name)
        if driver in served and version is not None:
            devices = _gpus(view, profile, version) if driver == GPUS else _DOMAIN_DEVICES
            _publish(name, driver, devices, view, known, writer)
        elif known is not None and (gone or (served and driver not in served)):
            writer.delete("resourceslices", f"{PATHS['resourceslices']}/{name}", node=view.node.name)


# -- inside -------------------------------------------------------------------------------------------------


def _publish(name: str, driver: str, devices: list[Object], view: View, known: Object | None, writer: Writer) -> None:
    pool: Object = {"name": view.node.name, "generation": 1, "resourceSliceCount": 1}
    spec: Object = {"driver": driver, "nodeName": view.node.name, "pool": pool, "devices": devices}
    path = PATHS["resourceslices"]
    if known is None:
        body: Object = {
            "apiVersion": "resource.k8s.io/v1",
            "kind": "ResourceSlice",
            "metadata": {
                "name": name,
                "ownerReferences": [
                    {
                        "apiVersion": "v1",
                        "kind": "Node",
                        "name": view.node.name,
                        "uid": view.node.uid,
                        "controller": True,
                    }
                ],
            },
            "spec": spec,
        }
        writer.create("resourceslices", path, body, node=view.node.name)
    elif _facts(known["spec"].get("devices")) != _facts(devices):
        pool["generation"] = known["spec"]["pool"]["generation"] + 1
        writer.patch("resourceslices", f"{path}/{name}", {"spec": spec}, how="merge", node=view.node.name)


def _facts(devices: list[Object] | None) -> list[tuple[str, Object]]:
    """What is compared: the server rewrites quantities."""
    return [(one["name"], one.get("attributes", {})) for one in devices or ()]


def _gpus(view: View, profile: Profile, version: str) -> list[Object]:
    model = profile.gpus
    return [
        {
            "name": f"gpu-{gpu.index}",
            "attributes": {
                "type": {"string": "gpu"},
                "uuid": {"string": gpu.uuid},
                "productName": {"string": view.hardware.product or model.name},
                "brand": {"string": model.brand},
                "architecture": {"string": model.architecture},
                "cudaComputeCapability": {"version": f"{model.compute}.0"},
                "driverVersion": {"version": _semantic(version)},
                "cudaDriverVersion": {"version": _semantic(profile.driver.cuda)},
                "pcieBusID": {"string": gpu.bus_id[4:].lower()},
            },
            "capacity": {"memory": {"value": f"{model.memory_mib}Mi"}},
        }
        for gpu in view.hardware.gpus
    ]


_DOMAIN_DEVICES: list[Object] = [
    {"name": "channel-0", "attributes": {"type": {"string": "channel"}, "id": {"int": 0}}},
    {"name": "daemon-0", "attributes": {"type": {"string": "daemon"}, "id": {"int": 0}}},
]


def _version_under(root: str, view: View) -> str | None:
    """The driver's version where it is found under ``root``."""
    is_hosts = view.hardware.host_driver is not None
    if root.rstrip("/") == ("" if is_hosts else _OPERATOR_ROOT):
        return driver_version(view)
    return None


def _root(daemonset: Object) -> str:
    for one in (*containers(daemonset, "initContainers"), *containers(daemonset)):
        for variable in one.get("env") or ():
            if variable["name"] == "NVIDIA_DRIVER_ROOT":
                return str(variable.get("value") or "/")
    return "/"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _semantic(version: str) -> str:
    """A version as SemVer wants it: three numbers without leading zeros."""
    return ".".join(str(number) for number in (*_numbers(version), 0, 0, 0)[:3])
