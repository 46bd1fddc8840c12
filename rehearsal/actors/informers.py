"""Informers: one thread per kind keeps the cache as the API server has it.

A kind that a CRD defines is asked for only while that CRD is established, which the informer of the CRDs
tells: nothing polls for what is not there.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from gpuready.charts_values.errors import ApiError, GpureadyError
from gpuready.charts_values.kube import Api, Object

from .cache import Cache

log = logging.getLogger(__name__)

_PAGE = 500
# Seconds before the next try after a failure, at first and at most.
_PAUSE = 0.1
_MOST_PAUSE = 2.0
# The status of a watch whose resourceVersion the server no longer has.
_FORGOTTEN = 410


def _whole(body: Object) -> Object:
    body["metadata"].pop("managedFields", None)
    return body


def _bare(*keys: str) -> Callable[[Object], Object]:
    """Keeps the identity of an object and the named top-level keys."""

    def strip(body: Object) -> Object:
        meta = body["metadata"]
        kept: Object = {"kind": body.get("kind", "")}
        kept["metadata"] = {
            key: meta[key]
            for key in ("name", "namespace", "uid", "resourceVersion", "labels", "ownerReferences")
            if key in meta
        }
        kept |= {key: body[key] for key in keys if key in body}
        return kept

    return strip


def _crd(body: Object) -> Object:
    kept = _bare()(body)
    kept["established"] = any(
        one["type"] == "Established" and one["status"] == "True"
        for one in body.get("status", {}).get("conditions") or ()
    )
    return kept


def _config_map(body: Object) -> Object:
    """The data of those that the actors read: Cilium's, NFD's and NCCL's settings. Others may be large."""
    data = body.get("data") or {}
    read = body["metadata"]["name"] == "cilium-config" or "nfd-worker.conf" in data
    return _bare("data")(body) if read or any(key.startswith("NCCL_") for key in data) else _bare()(body)


@dataclass(frozen=True)
class Kind:
    """A kind to watch; ``crd`` names the definition that must be there first."""

    name: str
    path: str
    strip: Callable[[Object], Object] = _whole
    crd: str | None = None


KINDS = (
    Kind("crds", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", _crd),
    Kind("nodes", "/api/v1/nodes"),
    Kind("pods", "/api/v1/pods"),
    Kind("configmaps", "/api/v1/configmaps", _config_map),
    Kind("daemonsets", "/apis/apps/v1/daemonsets"),
    Kind("deployments", "/apis/apps/v1/deployments"),
    Kind("jobs", "/apis/batch/v1/jobs", _bare("spec")),
    Kind("runtimeclasses", "/apis/node.k8s.io/v1/runtimeclasses", _bare()),
    Kind("resourceslices", "/apis/resource.k8s.io/v1/resourceslices", _bare("spec")),
    Kind("resourceclaims", "/apis/resource.k8s.io/v1/resourceclaims", _bare("status")),
    Kind("resourceclaimtemplates", "/apis/resource.k8s.io/v1/resourceclaimtemplates", _bare()),
    Kind(
        "computedomains",
        "/apis/resource.nvidia.com/v1beta1/computedomains",
        _whole,
        "computedomains.resource.nvidia.com",
    ),
    Kind("logs", "/apis/kwok.x-k8s.io/v1alpha1/logs", _bare(), "logs.kwok.x-k8s.io"),
    Kind("ciliumnodes", "/apis/cilium.io/v2/ciliumnodes", _bare("spec"), "ciliumnodes.cilium.io"),
    Kind(
        "nodefeaturerules",
        "/apis/nfd.k8s-sigs.io/v1alpha1/nodefeaturerules",
        _bare("spec"),
        "nodefeaturerules.nfd.k8s-sigs.io",
    ),
    Kind("clusterpolicies", "/apis/nvidia.com/v1/clusterpolicies", _whole, "clusterpolicies.nvidia.com"),
    Kind(
        "nicclusterpolicies",
        "/apis/mellanox.com/v1alpha1/nicclusterpolicies",
        _whole,
        "nicclusterpolicies.mellanox.com",
    ),
    Kind("macvlannetworks", "/apis/mellanox.com/v1alpha1/macvlannetworks", _whole, "macvlannetworks.mellanox.com"),
    Kind(
        "attachments",
        "/apis/k8s.cni.cncf.io/v1/network-attachment-definitions",
        _bare("spec"),
        "network-attachment-definitions.k8s.cni.cncf.io",
    ),
    Kind("ippools", "/apis/nv-ipam.nvidia.com/v1alpha1/ippools", _bare("spec", "status"), "ippools.nv-ipam.nvidia.com"),
)
PATHS = {kind.name: kind.path for kind in KINDS}


class Informers:
    """All of them. ``synced`` is set once every kind that exists has been listed."""

    def __init__(self, api: Api, cache: Cache, kinds: tuple[Kind, ...] = KINDS) -> None:
        self._api = api
        self._cache = cache
        self._kinds = kinds
        self._stop = threading.Event()
        self._waiting = {kind.name for kind in kinds}
        self._lock = threading.Lock()
        self._crds: dict[str, threading.Event] = {kind.crd: threading.Event() for kind in kinds if kind.crd}
        self.synced = threading.Event()

    def start(self) -> None:
        """Start the threads; they end with the process, or soon after ``stop``."""
        for kind in self._kinds:
            threading.Thread(target=self._run, args=(kind,), name=f"watch {kind.name}", daemon=True).start()

    def stop(self) -> None:
        """Ask the threads to end; a watch under way ends with its connection."""
        self._stop.set()

    def _run(self, kind: Kind) -> None:
        pause = _PAUSE
        while not self._stop.is_set():
            # In this order: once the CRDs are listed, the flags of those that exist are set.
            listed = "crds" not in self._waiting
            if kind.crd and not self._crds[kind.crd].is_set():
                if listed:
                    self._is_synced(kind)
                self._crds[kind.crd].wait(1.0)
                continue
            try:
                for _ in self._follow(kind):
                    pause = _PAUSE
            except GpureadyError as error:
                if isinstance(error, ApiError) and error.missing and kind.crd:
                    self._cache.replace(kind.name, [])
                elif not (isinstance(error, ApiError) and error.status == _FORGOTTEN):
                    # Once per outage, and only where it lasts: fifteen threads would fill the log.
                    level = logging.WARNING if pause < _MOST_PAUSE <= pause * 2 else logging.DEBUG
                    log.log(level, "watching %s: %s", kind.name, error)
            self._stop.wait(pause)
            pause = min(pause * 2, _MOST_PAUSE)

    def _follow(self, kind: Kind) -> Iterator[None]:
        """List, then watch until the server says that it has forgotten where we were."""
        items, version = self._list(kind)
        self._cache.replace(kind.name, items)
        if kind.name == "crds":
            self._note_crds(items)
        self._is_synced(kind)
        yield
        while not self._stop.is_set():
            for event in self._api.watch(kind.path, version):
                what, body = event["type"], event["object"]
                if what == "ERROR":
                    raise ApiError(str(body.get("message", "")), int(body.get("code", _FORGOTTEN)))
                version = body["metadata"]["resourceVersion"]
                if what == "BOOKMARK":
                    continue
                body = kind.strip(body)
                if what == "DELETED":
                    self._cache.remove(kind.name, body)
                else:
                    self._cache.put(kind.name, body)
                if kind.name == "crds":
                    self._note_crd(body, gone=what == "DELETED")
                yield

    def _list(self, kind: Kind) -> tuple[list[Object], str]:
        """All objects, stripped page by page: a whole answer could take a gigabyte."""
        items: list[Object] = []
        query: dict[str, object] = {"limit": _PAGE}
        while True:
            answer = self._api.get(kind.path, **query)
            single = answer["kind"].removesuffix("List")
            for body in answer.get("items") or ():
                body.setdefault("kind", single)
                items.append(kind.strip(body))
            meta = answer["metadata"]
            if not meta.get("continue"):
                return items, meta["resourceVersion"]
            query["continue"] = meta["continue"]

    def _note_crds(self, bodies: list[Object]) -> None:
        names = {body["metadata"]["name"] for body in bodies if body["established"]}
        for name, there in self._crds.items():
            if name in names:
                there.set()
            else:
                there.clear()

    def _note_crd(self, body: Object, *, gone: bool) -> None:
        there = self._crds.get(body["metadata"]["name"])
        if there is None:
            return
        if gone:
            there.clear()
        elif body["established"]:
            there.set()

    def _is_synced(self, kind: Kind) -> None:
        with self._lock:
            self._waiting.discard(kind.name)
            if not self._waiting:
                self.synced.set()
