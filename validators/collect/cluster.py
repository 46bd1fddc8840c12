"""Reads the Kubernetes objects that checks need: a fixed number of requests, whatever the cluster's size."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field
from typing import Any

from gpuready.charts_values.errors import ApiError, DeadlineError, GpureadyError, UnreachableError
from gpuready.charts_values.kube import Api

from ..evidence import Evidence, ReadFailure

# What a bundle must not carry: bulky or private, and no check reads it.
_DROPPED_ANNOTATIONS = ("kubectl.kubernetes.io/last-applied-configuration",)


@dataclass(frozen=True)
class Read:
    """One request. ``key`` is the bundle's file, ``single`` says that the path names one object."""

    key: str
    path: str
    query: dict[str, str] = field(default_factory=dict)
    single: bool = False


# Pods are read only where they are in trouble: on 1,000 nodes the healthy ones are tens of thousands.
_UNSETTLED = {"fieldSelector": "status.phase!=Running,status.phase!=Succeeded"}

READS = (
    Read("nodes", "/api/v1/nodes"),
    Read("namespaces", "/api/v1/namespaces/kube-system", single=True),
    Read("pods", "/api/v1/pods", _UNSETTLED),
    Read("configmaps", "/api/v1/namespaces/kube-system/configmaps/cilium-config", single=True),
    Read("daemonsets.apps", "/apis/apps/v1/daemonsets"),
    Read("deployments.apps", "/apis/apps/v1/deployments"),
    Read("ciliumnodes.cilium.io", "/apis/cilium.io/v2/ciliumnodes"),
    Read("clusterpolicies.nvidia.com", "/apis/nvidia.com/v1/clusterpolicies"),
    Read("nicclusterpolicies.mellanox.com", "/apis/mellanox.com/v1alpha1/nicclusterpolicies"),
)
DRA_KINDS = ("resourceslices", "deviceclasses")


def collect(api: Api, *, timeout: float, on_read: Callable[[str], None] = lambda key: None) -> Evidence:
    """Everything that the read-only checks judge, within ``timeout`` seconds.

    A read that fails is kept in ``failures`` and the others go on. Raises UnreachableError where the server
    does not answer at all, DeadlineError where it is too slow for that, ApiError where it knows no such user.
    """
    deadline = time.monotonic() + timeout
    evidence = Evidence(about={"server": api.server})
    evidence.about["server_version"] = api.get("/version").get("gitVersion")
    reads = READS + _dra_reads(api, evidence)
    pool = ThreadPoolExecutor(max_workers=6, thread_name_prefix="collect")
    try:
        running = {read.key: pool.submit(_read, api, read) for read in reads}
        for key, future in running.items():
            try:
                evidence.cluster[key] = future.result(timeout=max(0.0, deadline - time.monotonic()))
            except FutureTimeout:
                evidence.failures[key] = ReadFailure("unreachable", f"no answer within {timeout:g} s")
            except GpureadyError as error:
                evidence.failures[key] = _failure(error)
            on_read(key)
    finally:
        # A request that hangs ends by its own timeout; it must not hold the report back.
        pool.shutdown(wait=False, cancel_futures=True)
    namespaces = evidence.objects("namespaces")
    evidence.about["uid"] = namespaces[0]["metadata"]["uid"] if namespaces else None
    return evidence


def _dra_reads(api: Api, evidence: Evidence) -> tuple[Read, ...]:
    """The DRA kinds under the version that this server serves, which differs from 1.32 to 1.34."""
    try:
        groups = {group["name"]: group for group in api.get("/apis")["groups"]}
    except (ApiError, UnreachableError, DeadlineError) as error:
        for kind in DRA_KINDS:
            evidence.failures[f"{kind}.resource.k8s.io"] = _failure(error)
        return ()
    served = groups.get("resource.k8s.io")
    evidence.about["api_groups"] = sorted(groups)
    if served is None:
        for kind in DRA_KINDS:
            evidence.failures[f"{kind}.resource.k8s.io"] = ReadFailure("absent", "the server serves no DRA API")
        return ()
    evidence.about["dra_versions"] = [version["version"] for version in served["versions"]]
    best = served["preferredVersion"]["groupVersion"]
    return tuple(Read(f"{kind}.resource.k8s.io", f"/apis/{best}/{kind}") for kind in DRA_KINDS)


def _read(api: Api, read: Read) -> list[dict[str, Any]]:
    items = [api.get(read.path, **read.query)] if read.single else api.list(read.path, **read.query)
    for item in items:
        annotations = item["metadata"].get("annotations") or {}
        for name in _DROPPED_ANNOTATIONS:
            annotations.pop(name, None)
        item["metadata"].pop("managedFields", None)
        if "images" in item.get("status", {}):
            del item["status"]["images"]
    return items


def _failure(error: GpureadyError) -> ReadFailure:
    if isinstance(error, ApiError):
        kind = "absent" if error.missing else "forbidden" if error.forbidden else "unreachable"
        return ReadFailure(kind, str(error))
    return ReadFailure("unreachable", str(error))
