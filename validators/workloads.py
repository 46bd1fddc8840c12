"""DaemonSets and Deployments: are their pods ready, which pods are theirs, where, and why not. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .evidence import Evidence, Object

KINDS = ("daemonsets.apps", "deployments.apps")
_LONGEST = 240
# The DaemonSet controller lets its pods bear these, whatever their template says.
_ALWAYS_TOLERATED = (
    *("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable", "node.kubernetes.io/unschedulable"),
    *("node.kubernetes.io/disk-pressure", "node.kubernetes.io/memory-pressure", "node.kubernetes.io/pid-pressure"),
    "node.kubernetes.io/network-unavailable",
)
# What a container that simply waits for its turn says.
_PATIENT = ("ContainerCreating", "PodInitializing")


def counts(workload: Object) -> tuple[int, int]:
    """Pods ready, and pods wanted."""
    status = workload.get("status", {})
    if workload["kind"] == "DaemonSet":
        return status.get("numberReady", 0), status.get("desiredNumberScheduled", 0)
    return status.get("readyReplicas", 0), workload["spec"].get("replicas", 1)


def unready(workload: Object) -> bool:
    """Whether a pod that it wants is not ready."""
    ready, wanted = counts(workload)
    return ready < wanted


def selector(workload: Object) -> dict[str, str]:
    """The labels by which a workload finds its pods; empty where it says it with expressions."""
    found: dict[str, str] = (workload["spec"].get("selector") or {}).get("matchLabels") or {}
    return found


def pods_of(evidence: Evidence, workload: Object) -> list[Object]:
    """Its pods, as far as they were read: those that do not run, and all of a workload in trouble."""
    wanted, namespace = selector(workload).items(), workload["metadata"].get("namespace")
    if not wanted:
        return []
    return [
        pod
        for pod in evidence.objects("pods")
        if pod["metadata"].get("namespace") == namespace and wanted <= (pod["metadata"].get("labels") or {}).items()
    ]


def stuck(evidence: Evidence, workload: Object) -> dict[str, str]:
    """Why the workload's pod is not ready, by the node; the name is empty for a pod without a node.

    A node on which a DaemonSet wants a pod that does not exist is named too.
    """
    pods = [pod for pod in pods_of(evidence, workload) if pod.get("status", {}).get("phase") != "Failed"]
    found = {str(pod["spec"].get("nodeName") or ""): why(pod) for pod in pods if not ready(pod)}
    have = {pod["spec"].get("nodeName") for pod in pods} - {None}
    running, wanted = counts(workload)
    if workload["kind"] == "DaemonSet" and len(have) >= running:
        names = (node["metadata"]["name"] for node in evidence.objects("nodes") if kept_out(workload, node) is None)
        without = [name for name in names if name not in have]
        # Affinity may keep it from some of them; then nobody can tell from here which.
        if len(without) == wanted - len(have):
            found |= dict.fromkeys(without, found.pop("", "it has no pod"))
    return found


def ready(pod: Object) -> bool:
    """Condition Ready."""
    conditions: Iterable[Object] = pod.get("status", {}).get("conditions") or ()
    return any(one.get("type") == "Ready" and one.get("status") == "True" for one in conditions)


def why(pod: Object) -> str:
    """Why a pod is not ready, on one line: kubectl's word for it, and the message behind that."""
    status = pod.get("status", {})
    if pod["metadata"].get("deletionTimestamp"):
        return "Terminating"
    text = _init(status) or _containers(status) or _condition(status, "PodScheduled")
    if not text and status.get("reason"):
        text = _words(status["reason"], status.get("message"))
    return text or _patience(status) or _condition(status, "Ready") or f"phase {status.get('phase', 'unknown')}"


def kept_out(daemonset: Object, node: Object) -> str | None:
    """What of a node keeps a DaemonSet's pods away: a label that differs, or a taint; None where nothing does."""
    spec = daemonset["spec"]["template"]["spec"]
    labels = node["metadata"].get("labels") or {}
    for key, value in (spec.get("nodeSelector") or {}).items():
        if labels.get(key) != value:
            return f"label {key} is {labels[key]}" if key in labels else f"it has no label {key}"
    for taint in node.get("spec", {}).get("taints") or ():
        if taint["effect"] != "PreferNoSchedule" and not _tolerated(taint, spec.get("tolerations") or ()):
            return f"taint {taint_text(taint)}"
    return None


def taint_text(taint: Mapping[str, Any]) -> str:
    """A taint as kubectl writes it."""
    value = f"={taint['value']}" if taint.get("value") else ""
    return f"{taint['key']}{value}:{taint['effect']}"


def _tolerated(taint: Mapping[str, Any], tolerations: Iterable[Mapping[str, Any]]) -> bool:
    if taint["key"] in _ALWAYS_TOLERATED:
        return True
    return any(
        one.get("key") in (None, taint["key"])
        and one.get("effect") in (None, "", taint["effect"])
        and (one.get("operator") == "Exists" or one.get("value", "") == taint.get("value", ""))
        for one in tolerations
    )


def _init(status: Object) -> str:
    """The init container that holds the pod up."""
    every = status.get("initContainerStatuses") or ()
    for number, one in enumerate(every):
        state = one.get("state") or {}
        ended = state.get("terminated")
        if (ended and ended.get("exitCode") == 0) or one.get("ready"):
            continue
        text = _state(one)
        return f"Init:{text}" if text else f"Init:{number}/{len(every)}"
    return ""


def _containers(status: Object) -> str:
    return next((text for one in status.get("containerStatuses") or () if (text := _state(one))), "")


def _state(container: Object) -> str:
    """What is wrong with a container; empty where it runs or waits for its turn."""
    state = container.get("state") or {}
    waiting, ended = state.get("waiting") or {}, state.get("terminated")
    last = (container.get("lastState") or {}).get("terminated") or {}
    if waiting.get("reason") and waiting["reason"] not in _PATIENT:
        # Of a container that is started again and again, its own last words tell more than the back-off.
        return _words(waiting["reason"], last.get("message") or waiting.get("message"))
    if ended and ended.get("exitCode"):
        return _words(ended.get("reason") or "Error", ended.get("message") or f"exit {ended['exitCode']}")
    return ""


def _patience(status: Object) -> str:
    states = (one.get("state") or {} for one in status.get("containerStatuses") or ())
    return next((reason for one in states if (reason := (one.get("waiting") or {}).get("reason"))), "")


def _condition(status: Object, kind: str) -> str:
    for one in status.get("conditions") or ():
        if one.get("type") == kind and one.get("status") == "False":
            return _words(one.get("reason") or f"not {kind}", one.get("message"))
    return ""


def _words(reason: Any, message: Any) -> str:
    text = " ".join(f"{reason}: {message or ''}".split()).removesuffix(":")
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
