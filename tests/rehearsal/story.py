"""The way from bare nodes to a GPU platform, part by part, with what was seen on it."""

from __future__ import annotations

import contextlib
import json
import threading
from pathlib import Path
from typing import Any

from gpuready.charts_values.errors import GpureadyError
from gpuready.charts_values.kube import Api, Object
from gpuready.rehearsal.fleet import hardware, load_profile
from gpuready.rehearsal.state import State

from .commands import until
from .platform import GPU_TAINT, NIC_POLICIES, Platform, ready

RDMA = "rdma/rdma_shared_device_a"


def nic_spec(**selectors: Any) -> Object:
    """The spec of a NicClusterPolicy whose device plugin takes the NICs that these selectors match."""
    pool = {"resourceName": "rdma_shared_device_a", "rdmaHcaMax": 63, "selectors": selectors}
    plugin = {
        "repository": "nvcr.io/nvidia/mellanox",
        "image": "k8s-rdma-shared-dev-plugin",
        "version": "network-operator-v26.4.1",
        "config": json.dumps({"configList": [pool]}),
    }
    return {"rdmaSharedDevicePlugin": plugin}


def nic_policy(name: str = "nic-cluster-policy") -> Object:
    """A NicClusterPolicy for every Mellanox NIC."""
    return {
        "apiVersion": "mellanox.com/v1alpha1",
        "kind": "NicClusterPolicy",
        "metadata": {"name": name},
        "spec": nic_spec(vendors=["15b3"]),
    }


def taints(node: Object) -> list[str]:
    """The keys of a node's taints."""
    return [taint["key"] for taint in node["spec"].get("taints", ())]


class Recorder:
    """Notes when the pods and devices of one node turn ready, by the order of resource versions."""

    def __init__(self, now: State, node: str) -> None:
        self._api, self._node = Api.connect(now.kubeconfig), node
        self._events: list[tuple[int, str]] = []
        self._seen: set[str] = set()
        self._lock = threading.Lock()
        for path, note in (("/api/v1/pods", self._pod), ("/api/v1/nodes", self._device)):
            _, version = self._api.list_with_version(path, resourceVersion="")
            threading.Thread(target=self._watch, args=(path, version, note), daemon=True).start()

    def order(self) -> list[str]:
        with self._lock:
            return [what for _, what in sorted(self._events)]

    def _watch(self, path: str, version: str, note: Any) -> None:
        with contextlib.suppress(GpureadyError):
            for event in self._api.watch(path, version):
                if event["type"] in ("ADDED", "MODIFIED"):
                    note(event["object"])

    def _note(self, what: str, body: Object) -> None:
        with self._lock:
            if what not in self._seen:
                self._seen.add(what)
                self._events.append((int(body["metadata"]["resourceVersion"]), what))

    def _pod(self, pod: Object) -> None:
        if pod["spec"].get("nodeName") != self._node:
            return
        app = pod["metadata"].get("labels", {}).get("app", "")
        if ready(pod) == "True":
            self._note(app, pod)

    def _device(self, node: Object) -> None:
        if node["metadata"]["name"] != self._node:
            return
        for resource, count in node["status"]["allocatable"].items():
            if "/" in resource and count != "0":
                self._note(resource, node)
        if "nvidia.com/gpu.product" in node["metadata"]["labels"]:
            self._note("product label", node)


class Story:
    """What was seen on the way from bare nodes to a GPU platform."""

    def __init__(self, platform: Platform, folder: Path) -> None:
        self.platform = platform
        self.bare = platform.node()
        platform.install("cilium", folder, operator={"replicas": 1})
        self.networked = until(platform.node, lambda node: ready(node) == "True" and len(taints(node)) == 1)
        platform.install("gpu-operator", folder, nfd={"enabled": False}, driver={"version": "580.173.02"})
        self.without_nfd = until(platform.verdict, lambda seen: seen[0] != "")
        platform.nfd(folder, pci={"deviceClassWhitelist": ["02"], "deviceLabelFields": ["vendor"]})
        until(platform.verdict, lambda seen: seen[1] != self.without_nfd[1])
        self.without_gpu_class = platform.verdict()
        self.labels_without_gpu_class = platform.labels()
        self.daemonsets_without_gpus = platform.daemonsets()
        recorder = Recorder(platform.now, "gpu-0000")
        platform.nfd(folder)
        platform.wait_ready()
        self.labels_without_rule = platform.labels()
        platform.install("network-operator", folder, nfd={"enabled": False})
        platform.api.create(NIC_POLICIES, nic_policy())
        until(lambda: platform.offers(RDMA), lambda seen: seen == "63")
        dra = {"resources": {"gpus": {"enabled": False}}, "nvidiaDriverRoot": "/run/nvidia/driver"}
        platform.install("dra-driver-nvidia-gpu", folder, **dra)
        until(lambda: len(platform.api.list("/apis/resource.k8s.io/v1/resourceslices")), lambda n: n == 2)
        self.order = recorder.order()


def claim_one_gpu(api: Api) -> None:
    """A pod with a claim sees the very device that was allocated to it."""
    gpu = hardware(load_profile("h100-ib"), "gpu-0001").gpus[5]
    expression = f"device.attributes['gpu.nvidia.com'].uuid == '{gpu.uuid}'"
    request = {"deviceClassName": "gpu.nvidia.com", "selectors": [{"cel": {"expression": expression}}]}
    claim: Object = {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaim",
        "metadata": {"name": "one"},
        "spec": {"devices": {"requests": [{"name": "gpu", "exactly": request}]}},
    }
    claims, pods = "/apis/resource.k8s.io/v1/namespaces/default/resourceclaims", "/api/v1/namespaces/default/pods"
    api.create(claims, claim)
    container = {
        "name": "smi",
        "image": "cuda",
        "command": ["nvidia-smi", "-L"],
        "resources": {"claims": [{"name": "gpu"}]},
    }
    pod: Object = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "claims"},
        "spec": {
            "restartPolicy": "Never",
            "tolerations": [GPU_TAINT],
            "containers": [container],
            "resourceClaims": [{"name": "gpu", "resourceClaimName": "one"}],
        },
    }
    api.create(pods, pod)
    until(lambda: api.get(f"{pods}/claims")["status"].get("phase"), lambda phase: phase == "Succeeded")
    assert api.text(f"{pods}/claims/log") == f"GPU 0: NVIDIA H100 80GB HBM3 (UUID: {gpu.uuid})\n"
    api.delete(f"{pods}/claims")
    api.delete(f"{claims}/one")
