"""Reads the Kubernetes objects that checks need: a fixed number of requests, whatever the cluster's size.

Only a cluster in trouble is asked more: the pods of a few workloads that are not ready, and whether the
Services of admission webhooks answer.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from gpuready.charts_values.errors import ApiError, DeadlineError, GpureadyError
from gpuready.charts_values.kube import Api

from .. import fanout, webhooks, workloads
from ..evidence import RELEASES, Evidence, Object, ReadFailure
from ..webhooks import ENDPOINTS, MUTATING, VALIDATING

# What a bundle must not carry: bulky or private, and no check reads it.
_DROPPED_ANNOTATIONS = ("kubectl.kubernetes.io/last-applied-configuration", "objectset.rio.cattle.io/applied")
# Where people put passwords, in workloads and in the operators' policies.
_PRIVATE = ("env", "args", "command")


@dataclass(frozen=True)
class Read:
    """One request. ``key`` is the bundle's file, ``single`` says that the path names one object."""

    key: str
    path: str
    query: dict[str, str] = field(default_factory=dict)
    single: bool = False


# Pods are read only where they are in trouble: on 1,000 nodes the healthy ones are tens of thousands.
_UNSETTLED = {"fieldSelector": "status.phase!=Running,status.phase!=Succeeded"}
_RUNNING = "status.phase=Running"

READS = (
    Read("nodes", "/api/v1/nodes"),
    Read("namespaces", "/api/v1/namespaces"),
    Read("pods", "/api/v1/pods", _UNSETTLED),
    Read("configmaps", "/api/v1/namespaces/kube-system/configmaps/cilium-config", single=True),
    Read("daemonsets.apps", "/apis/apps/v1/daemonsets"),
    Read("deployments.apps", "/apis/apps/v1/deployments"),
    Read("ciliumnodes.cilium.io", "/apis/cilium.io/v2/ciliumnodes"),
    Read("clusterpolicies.nvidia.com", "/apis/nvidia.com/v1/clusterpolicies"),
    Read("nicclusterpolicies.mellanox.com", "/apis/mellanox.com/v1alpha1/nicclusterpolicies"),
    Read(VALIDATING, "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"),
    Read(MUTATING, "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"),
)
# Read only where inventory names networks of RoCE rails.
RAIL_READS = (
    Read("macvlannetworks.mellanox.com", "/apis/mellanox.com/v1alpha1/macvlannetworks"),
    Read("network-attachment-definitions.k8s.cni.cncf.io", "/apis/k8s.cni.cncf.io/v1/network-attachment-definitions"),
)
DRA_GROUP = "resource.k8s.io"
DRA_KINDS = ("resourceslices", "deviceclasses", "resourceclaims")
_VERSION, _GROUPS = "version", "api groups"
# Requests for the pods of workloads in trouble, and pods that one of them may bring beyond the first workload.
_MOST_POD_READS = 12
_BATCH_PODS = 500
# Few at a time, since each may bring a pod of every node.
_POD_READERS = 2


def collect(
    api: Api,
    *,
    until: float,
    more: Iterable[Read] = (),
    namespaces: Container[str] = (),
    on_read: Callable[[str], None] = lambda key: None,
) -> Evidence:
    """Everything that the read-only checks judge, and ``more``; it ends at ``until`` (``time.monotonic``).

    ``namespaces`` are those whose workloads are looked into where their pods are not ready. A read that
    fails is kept in ``failures`` and the others go on. Ctrl-C ends it as the deadline does, and is noted as
    ``about["interrupted"]``. Raises UnreachableError where the server does not answer at all, DeadlineError
    where it is too slow for that, ApiError where it does not accept the credentials.
    """
    seconds = round(until - time.monotonic(), 1)
    late = ReadFailure("unreachable", f"no answer within {seconds:g} s")
    evidence = Evidence(about={"server": api.server})
    reads = {read.key: partial(_read, api, read) for read in (*READS, *more)}
    calls: dict[str, Callable[[], Any]] = {
        _VERSION: partial(api.get, "/version"),
        _GROUPS: partial(_dra, api, until),
        RELEASES: partial(_releases, api),
        **reads,
    }
    open_keys = [*reads, RELEASES, ENDPOINTS, *(f"{kind}.{DRA_GROUP}" for kind in DRA_KINDS)]
    evidence.failures = dict.fromkeys(open_keys, late)
    try:
        for key, outcome in fanout.outcomes(calls, until):
            if key == _VERSION:
                _note_version(evidence, outcome)
            elif key == _GROUPS:
                _note_dra(evidence, outcome)
            else:
                _note(evidence, key, outcome)
            on_read(key)
        _look_closer(api, until, evidence, namespaces, late, on_read)
    except KeyboardInterrupt:
        if not evidence.cluster:
            raise
        evidence.about["interrupted"] = True
        for key, failure in evidence.failures.items():
            if failure is late:
                evidence.failures[key] = ReadFailure("interrupted", "Ctrl-C came before the answer")
    if not evidence.cluster and "server_version" not in evidence.about:
        raise DeadlineError(f"{api.server} did not answer within {seconds:g} s")
    system = evidence.find("namespaces", "kube-system")
    evidence.about["uid"] = system["metadata"]["uid"] if system else None
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


def _releases(api: Api) -> list[Object]:
    """Helm's records by name, status and revision. They are Secrets, whose content never leaves the server."""
    return [
        {
            "metadata": {
                "name": match[1],
                "namespace": item["metadata"]["namespace"],
                "labels": {key: labels[key] for key in ("status", "version") if key in labels},
            }
        }
        for item in api.list_metadata("/api/v1/secrets", labelSelector="owner=helm")
        if (match := re.fullmatch(r"sh\.helm\.release\.v1\.(.+)\.v\d+", item["metadata"]["name"]))
        and (labels := item["metadata"].get("labels") or {})
    ]


# -- the second round ---------------------------------------------------------------------------------------


def _look_closer(
    api: Api,
    until: float,
    evidence: Evidence,
    namespaces: Container[str],
    late: ReadFailure,
    on_read: Callable[[str], None],
) -> None:
    """Read the pods of platform workloads that are not ready, and the endpoints of webhooks."""
    calls: dict[str, Callable[[], list[Object]]] = {}
    services = sorted({name for _, name in webhooks.services(evidence)})
    if services:
        selector = {"labelSelector": f"{webhooks.SERVICE_LABEL} in ({','.join(services)})"}
        calls[ENDPOINTS] = partial(_read, api, Read(ENDPOINTS, "/apis/discovery.k8s.io/v1/endpointslices", selector))
    elif VALIDATING in evidence.cluster and MUTATING in evidence.cluster:
        _note(evidence, ENDPOINTS, [])
    for read in pod_reads(evidence, namespaces):
        calls[read.key] = partial(_read, api, read)
    evidence.failures |= dict.fromkeys(calls, late)
    for key, outcome in fanout.outcomes(calls, until, _POD_READERS):
        if key == ENDPOINTS or isinstance(outcome, GpureadyError):
            _note(evidence, key, outcome)
        else:
            _note(evidence, "pods", _once([*evidence.objects("pods"), *outcome]))
            del evidence.failures[key]
        on_read(key)


def pod_reads(evidence: Evidence, namespaces: Container[str]) -> list[Read]:
    """The requests for the running pods of workloads that are not ready; small workloads share one."""
    # By namespace and label: the values asked for in one request, and the pods that it may bring.
    shared: dict[tuple[str, str], list[tuple[list[str], int]]] = {}
    queries: list[tuple[str, str]] = []
    for key in workloads.KINDS:
        for one in evidence.objects(key):
            namespace, labels = one["metadata"]["namespace"], workloads.selector(one)
            if namespace not in namespaces or not labels or not workloads.unready(one):
                continue
            if len(labels) > 1:
                queries.append((namespace, ",".join(f"{label}={value}" for label, value in sorted(labels.items()))))
                continue
            ((label, value),) = labels.items()
            batches, count = shared.setdefault((namespace, label), [([], 0)]), workloads.counts(one)[1]
            values, sum_ = batches[-1]
            if values and sum_ + count > _BATCH_PODS:
                batches.append(([value], count))
            else:
                batches[-1] = ([*values, value], sum_ + count)
    queries[:0] = [
        (namespace, f"{label} in ({','.join(values)})")
        for (namespace, label), batches in shared.items()
        for values, _ in batches
    ]
    return [
        Read(
            f"pods of {namespace}, {text}",
            f"/api/v1/namespaces/{namespace}/pods",
            {"fieldSelector": _RUNNING, "labelSelector": text},
        )
        for namespace, text in queries[:_MOST_POD_READS]
    ]


def _once(pods: list[Object]) -> list[Object]:
    """A pod that changed between two requests may have come twice; the newer one counts."""
    return list({(pod["metadata"].get("namespace"), pod["metadata"]["name"]): pod for pod in pods}.values())


def _read(api: Api, read: Read) -> list[Object]:
    items = [api.get(read.path, **read.query)] if read.single else api.list(read.path, **read.query)
    return [kept for item in items if (kept := _trimmed(read, item)) is not None]


def _trimmed(read: Read, item: Object) -> Object | None:
    """What is kept of an object; None where it is not wanted at all."""
    return _TRIMS.get(read.path.rpartition("/")[2], _as_is)(_without_bulk(item))


def _without_bulk(item: Object) -> Object:
    annotations = item["metadata"].get("annotations") or {}
    for name in _DROPPED_ANNOTATIONS:
        annotations.pop(name, None)
    item["metadata"].pop("managedFields", None)
    return item


def _as_is(item: Object) -> Object:
    return item


def _trim_node(node: Object) -> Object:
    node.get("status", {}).pop("images", None)
    return node


def _trim_pod(pod: Object) -> Object:
    """A pod that is ready only says where it is; of the others the spec tells nothing that is judged."""
    kept = {key: pod["spec"][key] for key in ("nodeName", "hostname", "resourceClaims") if key in pod["spec"]}
    status = pod.get("status", {})
    if workloads.ready(pod):
        status = {key: status[key] for key in ("phase", "conditions") if key in status}
    return {**pod, "spec": kept, "status": status}


def _trim_workload(item: Object) -> Object:
    """Of a Deployment or DaemonSet: which pods, how many, where they may run and of which images."""
    spec = item["spec"]
    pod = spec["template"]["spec"]
    kept: Object = {key: pod[key] for key in ("nodeSelector", "tolerations") if key in pod}
    for key in ("initContainers", "containers"):
        if key in pod:
            kept[key] = [{field: one[field] for field in ("name", "image") if field in one} for one in pod[key]]
    few = {key: spec[key] for key in ("replicas", "selector") if key in spec}
    return {**item, "spec": {**few, "template": {"spec": kept}}}


def _trim_policy(item: Object) -> Object:
    """What an operator was asked for, without the environment and arguments of its operands."""
    return {**item, "spec": _public(item.get("spec") or {})}


def _public(part: Any) -> Any:
    if isinstance(part, dict):
        return {key: _public(value) for key, value in part.items() if key not in _PRIVATE}
    return [_public(value) for value in part] if isinstance(part, list) else part


def _trim_claim(claim: Object) -> Object | None:
    """A claim that has its devices is not judged, and there may be one for every running job."""
    return None if claim.get("status", {}).get("allocation") else claim


def _trim_webhooks(item: Object) -> Object:
    for hook in item.get("webhooks") or ():
        hook.get("clientConfig", {}).pop("caBundle", None)
    return item


_TRIMS: dict[str, Callable[[Object], Object | None]] = {
    "nodes": _trim_node,
    "pods": _trim_pod,
    "daemonsets": _trim_workload,
    "deployments": _trim_workload,
    "clusterpolicies": _trim_policy,
    "nicclusterpolicies": _trim_policy,
    "resourceclaims": _trim_claim,
    "validatingwebhookconfigurations": _trim_webhooks,
    "mutatingwebhookconfigurations": _trim_webhooks,
}


def _failure(error: GpureadyError) -> ReadFailure:
    if isinstance(error, ApiError):
        kind = "absent" if error.missing else "forbidden" if error.forbidden else "unreachable"
        return ReadFailure(kind, str(error))
    return ReadFailure("unreachable", str(error))
