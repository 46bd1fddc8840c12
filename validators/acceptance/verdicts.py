"""What probe pods say: termination messages, exit codes and why a pod did not start. Pure functions."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..evidence import Evidence, Object

NAMESPACE = "gpuready"
APP_LABEL = "app.kubernetes.io/name"
RUN_LABEL = "gpuready.io/run"
PROBE_LABEL = "gpuready.io/probe"
WORKLOAD_LABEL = "gpuready.io/workload"
NODE_LABEL = "gpuready.io/node"
INDEX_LABEL = "batch.kubernetes.io/job-completion-index"


@dataclass(frozen=True)
class PodVerdict:
    """One probe pod as the API shows it at the end.

    ``index`` is its number in an Indexed Job. ``message`` is its JSON termination message, empty where there was
    none; ``exit_code`` is None while the container has not ended; ``waiting`` says why it has not started or why it
    was ended, ``claims`` which ResourceClaims are its own.
    """

    pod: str
    node: str | None
    phase: str
    exit_code: int | None = None
    waiting: str = ""
    claims: tuple[str, ...] = ()
    index: int | None = None
    message: dict[str, Any] = field(default_factory=dict)


def verdict_of(pod: Object) -> PodVerdict:
    """Read a pod's status."""
    status = pod.get("status", {})
    containers = status.get("containerStatuses") or []
    state = containers[0].get("state", {}) if containers else {}
    ended = state.get("terminated")
    index = {**(pod["metadata"].get("annotations") or {}), **(pod["metadata"].get("labels") or {})}.get(INDEX_LABEL)
    return PodVerdict(
        pod=pod["metadata"]["name"],
        node=pod["spec"].get("nodeName"),
        phase=status.get("phase", "Unknown"),
        exit_code=ended.get("exitCode") if ended else None,
        waiting=_waiting(status, state),
        claims=tuple(
            one["resourceClaimName"]
            for one in status.get("resourceClaimStatuses") or ()
            if one.get("resourceClaimName")
        ),
        index=int(index) if index is not None and index.isdigit() else None,
        message=_json((ended or {}).get("message")),
    )


def probe_pods(evidence: Evidence, workload: str) -> list[PodVerdict]:
    """The verdicts of one workload's pods of this run, in the order of their names."""
    mine = {WORKLOAD_LABEL: workload, RUN_LABEL: evidence.about.get("run")}
    pods = [pod for pod in evidence.objects("pods") if mine.items() <= (pod["metadata"].get("labels") or {}).items()]
    return [verdict_of(pod) for pod in sorted(pods, key=lambda pod: str(pod["metadata"]["name"]))]


def not_started(pods: Sequence[PodVerdict]) -> tuple[int, ...]:
    """The indices of the pods that the others waited for in vain, as they say themselves."""
    found = {int(index) for one in pods for index in one.message.get("missing") or ()}
    return tuple(sorted(found - {one.index for one in pods if one.message}))


def refusals(evidence: Evidence) -> dict[str, str]:
    """Why pods of the run were refused, by the name of their Job."""
    found: dict[str, str] = evidence.about.get("refused") or {}
    return found


def refusal(message: str) -> str:
    """The API server's reason not to make a pod, without what is around it; one line."""
    words = re.sub(r"^(Error creating: )?(pods \S+ is forbidden: )?", "", " ".join(message.split()))
    return words if len(words) <= 240 else f"{words[:237]}..."


def cut_short(evidence: Evidence) -> str:
    """Why the run ended before its probes: Ctrl-C, an error, or its time was up; empty where it did not."""
    if evidence.about.get("interrupted"):
        return "interrupted by Ctrl-C"
    failure = evidence.failures.get("acceptance")
    return failure.message if failure else str(evidence.about.get("cut_short") or "")


def _waiting(status: Object, state: Object) -> str:
    waiting, ended = state.get("waiting") or {}, state.get("terminated") or {}
    if ended.get("reason") not in (None, "Completed", "Error"):
        # OOMKilled, ContainerCannotRun, StartError. The message may be the probe's own, which is JSON.
        said = str(ended.get("message") or "")
        return f"{ended['reason']}: {'' if said.startswith('{') else said}".strip(": ")
    if waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
        return f"{waiting['reason']}: {waiting.get('message', '')}".strip(": ")
    for one in status.get("conditions") or ():
        if one.get("type") == "PodScheduled" and one.get("status") == "False":
            return f"{one.get('reason', 'not scheduled')}: {one.get('message', '')}".strip(": ")
    if status.get("reason"):
        return f"{status['reason']}: {status.get('message', '')}".strip(": ")
    return str(waiting.get("reason", ""))


def _json(text: str | None) -> dict[str, Any]:
    try:
        data = json.loads(text or "{}")
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}
