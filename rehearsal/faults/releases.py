"""Faults of Helm releases and of what they installed."""

from __future__ import annotations

import base64
import gzip
import json
from functools import partial

from gpuready.charts_values.errors import InputError
from gpuready.charts_values.kube import Api, Object

from .edits import Edit, drop, patch
from .model import Fault, Site

_RELEASE = "network-operator"
_NAMESPACE = "/api/v1/namespaces/gpu-operator"
_WORKLOADS = "/apis/apps/v1/namespaces/gpu-operator"
_OPERATOR = f"{_WORKLOADS}/deployments/gpu-operator"
_EXPORTER = f"{_WORKLOADS}/daemonsets/nvidia-dcgm-exporter"
_ENFORCE = "pod-security.kubernetes.io/enforce"


def restated(api: Api, release: str, status: str) -> tuple[str, Object, Object]:
    """Helm's newest record of a release: its path, the merge patch that makes it say ``status``, and as it is.

    Helm keeps the status twice: in a label, and in the packed record. Raises InputError where there is no record.
    """
    found = api.list("/api/v1/secrets", labelSelector=f"owner=helm,name={release}", resourceVersion="")
    if not found:
        raise InputError(f"Helm has no record of release {release}: install the platform first")
    newest = max(found, key=lambda one: int(one["metadata"]["labels"]["version"]))
    record = json.loads(gzip.decompress(base64.b64decode(base64.b64decode(newest["data"]["release"]))))
    record["info"]["status"] = status
    packed = base64.b64encode(base64.b64encode(gzip.compress(json.dumps(record).encode()))).decode()
    body: Object = {"metadata": {"labels": {"status": status}}, "data": {"release": packed}}
    meta = newest["metadata"]
    return f"/api/v1/namespaces/{meta['namespace']}/secrets/{meta['name']}", body, newest


def _set_status(status: str, site: Site) -> list[Edit]:
    return [patch(*restated(site.api, _RELEASE, status))]


def _stop_operator(site: Site) -> list[Edit]:
    return [patch(_OPERATOR, {"spec": {"replicas": 0}}, site.get(_OPERATOR))]


def _restrict(site: Site) -> list[Edit]:
    """The mark on the DaemonSet goes last when this is taken back: its controller then looks again at once."""
    mark = {"metadata": {"annotations": {"rehearsal.gpuready.io/restricted": "true"}}}
    pods = site.api.list(f"{_NAMESPACE}/pods", labelSelector="app=nvidia-dcgm-exporter", resourceVersion="")
    edits = [
        patch(_EXPORTER, mark, site.get(_EXPORTER)),
        patch(_NAMESPACE, {"metadata": {"labels": {_ENFORCE: "restricted"}}}, site.get(_NAMESPACE)),
    ]
    last = max(
        (one["metadata"]["name"] for one in pods if one["spec"].get("nodeName") == site.now.nodes[-1]), default=""
    )
    return [*edits, drop(f"{_NAMESPACE}/pods/{last}")] if last else edits


FAULTS = (
    Fault(
        name="release-failed",
        title="the last upgrade of a release failed",
        breaks=f"Helm's newest record of {_RELEASE} has status failed",
        finding="release.status",
        scope="cluster",
        needs=("rdma",),
        edits=partial(_set_status, "failed"),
    ),
    Fault(
        name="release-pending",
        title="an upgrade of a release never ended",
        breaks=f"Helm's newest record of {_RELEASE} has status pending-upgrade: whoever ran it was killed",
        finding="release.status",
        scope="cluster",
        needs=("rdma",),
        edits=partial(_set_status, "pending-upgrade"),
    ),
    Fault(
        name="operator-stopped",
        title="the GPU Operator does not run",
        breaks="its Deployment is scaled to 0; the ClusterPolicy goes on saying ready",
        finding="release.installed",
        scope="cluster",
        edits=_stop_operator,
    ),
    Fault(
        name="psa-restricted",
        title="pod security refuses the operands' pods",
        breaks="namespace gpu-operator enforces `restricted`; a pod of the DCGM exporter is not made again",
        finding="release.namespace",
        follows=("gpu.policy", "gpu.operands"),
        scope="cluster",
        edits=_restrict,
    ),
)
