"""A rehearsal cluster on which the platform's parts are installed one by one, with helm alone."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpuready.charts_values.kube import Api, Object
from gpuready.rehearsal.state import State

from .commands import ROOT, until

CHARTS = ROOT / "rehearsal" / "charts"
NAMESPACES = {
    "cilium": "kube-system",
    "node-feature-discovery": "node-feature-discovery",
    "network-operator": "nvidia-network-operator",
    "gpu-operator": "gpu-operator",
    "dra-driver-nvidia-gpu": "dra-driver-nvidia-gpu",
}
GPU_TAINT = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
PCI = {"deviceClassWhitelist": ["02", "0200", "0207", "0300", "0302"], "deviceLabelFields": ["vendor"]}
POLICY = "/apis/nvidia.com/v1/clusterpolicies/cluster-policy"
NIC_POLICIES = "/apis/mellanox.com/v1alpha1/nicclusterpolicies"


class Platform:
    """What tests do to a cluster, and what they see of it."""

    def __init__(self, now: State) -> None:
        self.now = now
        self.api = Api.connect(now.kubeconfig)

    def install(self, chart: str, folder: Path, **values: Any) -> None:
        """`helm upgrade --install` of a stand-in chart under its own name; waits for nothing."""
        file = folder / f"{chart}.json"
        file.write_text(json.dumps(values))
        helm = [str(self.now.bin / "helm"), "upgrade", "--install", chart, str(CHARTS / chart)]
        helm += ["--namespace", NAMESPACES[chart], "--create-namespace", "--values", str(file)]
        helm += ["--kubeconfig", str(self.now.kubeconfig)]
        subprocess.run(helm, check=True, capture_output=True, timeout=60)

    def nfd(self, folder: Path, pci: Object = PCI) -> None:
        """Node Feature Discovery with these PCI settings."""
        worker = {"config": {"sources": {"pci": pci}}, "tolerations": [GPU_TAINT]}
        self.install("node-feature-discovery", folder, worker=worker)

    def node(self, name: str = "gpu-0000") -> Object:
        """A node."""
        return self.api.get(f"/api/v1/nodes/{name}")

    def labels(self, name: str = "gpu-0000") -> dict[str, str]:
        """A node's labels."""
        return dict(self.node(name)["metadata"]["labels"])

    def offers(self, resource: str, name: str = "gpu-0000") -> str | None:
        """How much of a resource a node has allocatable, None where it does not know it."""
        found = self.node(name)["status"]["allocatable"].get(resource)
        return None if found is None else str(found)

    def verdict(self) -> tuple[str, str]:
        """The ClusterPolicy's state, and the reason of the condition that holds."""
        status = (self.api.find(POLICY) or {}).get("status", {})
        reason = next((one["reason"] for one in status.get("conditions", ()) if one["status"] == "True"), "")
        return status.get("state", ""), reason

    def daemonsets(self, namespace: str = "gpu-operator") -> dict[str, Object]:
        """The DaemonSets of a namespace."""
        path = f"/apis/apps/v1/namespaces/{namespace}/daemonsets"
        return {one["metadata"]["name"]: one for one in self.api.list(path, resourceVersion="")}

    def pods(self, app: str, namespace: str = "gpu-operator") -> list[Object]:
        """The pods with a label app."""
        path = f"/api/v1/namespaces/{namespace}/pods"
        return self.api.list(path, labelSelector=f"app={app}", resourceVersion="")

    def set_policy(self, **spec: Any) -> None:
        """Merge into the spec of the ClusterPolicy."""
        self.api.patch(POLICY, {"spec": spec})

    def wait_ready(self) -> None:
        """Until the GPU Operator is done and every node offers its GPUs."""
        until(self._pods_of_operands, lambda seen: set(seen.values()) == {len(self.now.nodes)})
        until(self.verdict, lambda seen: seen == ("ready", "Reconciled"))
        for name in self.now.nodes:
            until(lambda name=name: self.offers("nvidia.com/gpu", name), lambda seen: seen == "8")

    def _pods_of_operands(self) -> dict[str, int]:
        """How many pods of each operand's newest template are ready; none while that is not known."""
        found = {}
        for name, one in self.daemonsets().items():
            status = one["status"]
            current = status.get("observedGeneration") == one["metadata"]["generation"]
            ready = min(status["numberReady"], status.get("updatedNumberScheduled", 0))
            found[name] = ready if current else 0
        return found

    @contextmanager
    def policy(self, **spec: Any) -> Iterator[None]:
        """The ClusterPolicy with another spec for a while; afterwards all is as before."""
        before = self.api.get(POLICY)["spec"]
        self.set_policy(**spec)
        try:
            yield
        finally:
            self.set_policy(**{key: before.get(key) for key in spec})
            self.wait_ready()


def ready(thing: Object) -> str:
    """The status of the condition Ready of a node or a pod."""
    conditions = thing["status"].get("conditions", ())
    return next((one["status"] for one in conditions if one["type"] == "Ready"), "")


def waits_in_init(pod: Object) -> list[str]:
    """The init containers of a pod that have not ended."""
    statuses = pod["status"].get("initContainerStatuses", ())
    return [one["name"] for one in statuses if "terminated" not in one["state"]]
