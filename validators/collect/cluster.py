"""Reads the Kubernetes objects that checks need: a fixed number of requests, whatever the cluster's size."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from gpuready.charts_values.errors import ApiError, DeadlineError, GpureadyError
from gpuready.charts_values.kube import Api

from .. import fanout
from ..evidence import Evidence, Object, ReadFailure

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
DRA_GROUP = "resource.k8s.io"
DRA_KINDS = ("resourceslices", "deviceclasses")
_VERSION, _GROUPS = "version", "api groups"


def collect(
    api: Api, *, until: float, more: Iterable[Read] = (), on_read: Callable[[str], None] = lambda key: None
) -> Evidence:
    """Everything that the read-only checks judge, and ``more``; it ends at ``until`` (``time.monotonic``).

    A read that fails is kept in ``failures`` and the others go on. Ctrl-C ends it as the deadline does, and
    is noted as ``about["interrupted"]``. Raises UnreachableError where the server does not answer at all,
    DeadlineError where it is too slow for that, ApiError where it does not accept the credentials.
    """
    seconds = round(until - time.monotonic(), 1)
    evidence = Evidence(about={"server": api.server})
    reads = {read.key: partial(_read, api, read) for read in (*READS, *more)}
    open_keys = [*reads, *(f"{kind}.{DRA_GROUP}" for kind in DRA_KINDS)]
    evidence.failures = {key: ReadFailure("unreachable", f"no answer within {seconds:g} s") for key in open_keys}
    calls: dict[str, Callable[[], Any]] = {_VERSION: partial(api.get, "/version"), _GROUPS: partial(_dra, api, until)}
    try:
        for key, outcome in fanout.outcomes(calls | reads, until):
            if key == _VERSION:
                _note_version(evidence, outcome)
            elif key == _GROUPS:
                _note_dra(evidence, outcome)
            else:
                _note(evidence, key, outcome)
            on_read(key)
    except KeyboardInterrupt:
        if not evidence.cluster:
            raise
        evidence.about["interrupted"] = True
        for key, failure in evidence.failures.items():
            if failure.message.startswith("no answer within"):
                evidence.failures[key] = ReadFailure("interrupted", "Ctrl-C came before the answer")
    if not evidence.cluster and "server_version" not in evidence.about:
        raise DeadlineError(f"{api.server} did not answer within {seconds:g} s")
    namespaces = evidence.objects("namespaces")
    evidence.about["uid"] = namespaces[0]["metadata"]["uid"] if namespaces else None
    return evidence


def _note(evidence: Evidence, key: str, outcome: list[Object] | GpureadyError) -> None:
    if isinstance(outcome, GpureadyError):
        evidence.failures[key] = _failure(outcome)
    else:
        evidence.cluster[key] = outcome
        evidence.failures.pop(key, None)


def _note_version(evidence: Evidence, outcome: Object | GpureadyError) -> None:
    """Who does not tell its version is no API server, or none for us; one that forbids it may tell the rest."""
    if isinstance(outcome, ApiError) and outcome.status == 403:
        evidence.failures[_VERSION] = _failure(outcome)
    elif isinstance(outcome, GpureadyError):
        raise outcome
    else:
        evidence.about["server_version"] = outcome.get("gitVersion")


def _dra(api: Api, until: float) -> tuple[Object, dict[str, list[Object] | GpureadyError]]:
    """The API groups, and the DRA kinds under the version that this server serves: it differs from 1.32 to 1.34."""
    groups = {group["name"]: group for group in api.get("/apis")["groups"]}
    about: Object = {"api_groups": sorted(groups)}
    served = groups.get(DRA_GROUP)
    if served is None:
        absent = ApiError("the server serves no DRA API", 404)
        return about, {f"{kind}.{DRA_GROUP}": absent for kind in DRA_KINDS}
    about["dra_versions"] = [version["version"] for version in served["versions"]]
    best = served["preferredVersion"]["groupVersion"]
    reads = [Read(f"{kind}.{DRA_GROUP}", f"/apis/{best}/{kind}") for kind in DRA_KINDS]
    return about, dict(fanout.outcomes({read.key: partial(_read, api, read) for read in reads}, until))


def _note_dra(evidence: Evidence, outcome: Any) -> None:
    if isinstance(outcome, GpureadyError):
        for kind in DRA_KINDS:
            _note(evidence, f"{kind}.{DRA_GROUP}", outcome)
        return
    about, kinds = outcome
    evidence.about |= about
    for key, found in kinds.items():
        _note(evidence, key, found)


def _read(api: Api, read: Read) -> list[Object]:
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
