"""Faults of dynamic resource allocation (DRA)."""

from __future__ import annotations

import dataclasses

from gpuready.charts_values.kube import Object

from ..fleet import Hardware, Trouble
from .edits import Edit, create
from .model import Fault, Site

_OLD_DRIVER = "560.35.03"
_PLUGIN = "dra"
_SLICES = "/apis/resource.k8s.io/v1/resourceslices"
_CLASS = "h100.gpu.nvidia.com"


def _install_old_driver(truth: Hardware) -> Hardware:
    return dataclasses.replace(truth, host_driver=_OLD_DRIVER)


def _hang_plugin(truth: Hardware) -> Hardware:
    return truth.with_trouble({_PLUGIN: Trouble("init")})


def _second_owner(site: Site) -> list[Edit]:
    node = site.get(f"/api/v1/nodes/{site.node}")["metadata"]
    count = len(site.profile.gpus.devices)
    devices = [{"name": f"gpu-{index}", "attributes": {"type": {"string": "gpu"}}} for index in range(count)]
    name = f"{site.node}-gpu.nvidia.com-6kz2w"
    owner = {"apiVersion": "v1", "kind": "Node", "name": site.node, "uid": node["uid"]}
    body: Object = {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceSlice",
        "metadata": {"name": name, "ownerReferences": [owner]},
        "spec": {
            "driver": "gpu.nvidia.com",
            "nodeName": site.node,
            "pool": {"name": site.node, "generation": 1, "resourceSliceCount": 1},
            "devices": devices,
        },
    }
    return [create(f"{_SLICES}/{name}", body)]


def _wait_for_class(site: Site) -> list[Edit]:
    name = "training"
    claim: Object = {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaim",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"devices": {"requests": [{"name": "gpu", "exactly": {"deviceClassName": _CLASS}}]}},
    }
    container = {
        "name": "main",
        "image": "nvcr.io/nvidia/pytorch:25.10-py3",
        "resources": {"claims": [{"name": "gpu"}]},
    }
    pod: Object = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "restartPolicy": "Never",
            "tolerations": [{"operator": "Exists"}],
            "resourceClaims": [{"name": "gpu", "resourceClaimName": name}],
            "containers": [container],
        },
    }
    return [
        create(f"/apis/resource.k8s.io/v1/namespaces/default/resourceclaims/{name}", claim),
        create(f"/api/v1/namespaces/default/pods/{name}", pod),
    ]


FAULTS = (
    Fault(
        name="dra-too-old",
        title="one node's driver is too old for DRA",
        breaks=f"driver {_OLD_DRIVER} is installed on the host of the node, and wins over the promised one",
        finding="versions.driver",
        follows=("dra.rules",),
        needs=("dra",),
        truth=_install_old_driver,
    ),
    Fault(
        name="dra-slices-missing",
        title="one node publishes no ResourceSlices",
        breaks="the DRA kubelet plugin on the node hangs in Init, as with a wrong nvidiaDriverRoot; its slices go",
        finding="dra.slices",
        needs=("dra",),
        truth=_hang_plugin,
    ),
    Fault(
        name="dra-two-owners",
        title="one node's GPUs are offered twice",
        breaks="a ResourceSlice of gpu.nvidia.com lists the GPUs that the device plugin offers, too",
        finding="dra.owner",
        needs=("dra", "device-plugin"),
        edits=_second_owner,
    ),
    Fault(
        name="dra-claim-pending",
        title="a pod waits for a claim that nothing can fulfil",
        breaks=f"a ResourceClaim names DeviceClass {_CLASS}, which does not exist; its pod is Pending",
        finding="dra.pending",
        scope="cluster",
        needs=("dra",),
        edits=_wait_for_class,
    ),
)
