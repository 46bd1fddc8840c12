"""Runs that were killed before their cleanup: who they are, and what their searches knew."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass, replace

from gpuready.charts_values.errors import ApiError
from gpuready.charts_values.kube import Api

from ..checks.subjects import condition
from ..evidence import Object
from . import manifests
from .run import JOBS, NAMESPACE
from .verdicts import PROBE_LABEL, RUN_LABEL, WORKLOAD_LABEL


@dataclass(frozen=True)
class Killed:
    """Runs that were killed before their cleanup, by their anchors; ``search`` is what the newest of their searches
    knew, as text, empty where none got that far."""

    anchors: tuple[Object, ...] = ()
    search: str = ""

    @property
    def runs(self) -> set[str]:
        """The names of the runs."""
        return {one["metadata"]["labels"][RUN_LABEL] for one in self.anchors}

    def others(self, pods: Iterable[Object]) -> list[Object]:
        """The pods that are not theirs."""
        return [pod for pod in pods if (pod["metadata"].get("labels") or {}).get(RUN_LABEL) not in self.runs]


def killed_runs(api: Api) -> Killed:
    """The runs that were killed: those whose anchor failed by its deadline, and those whose process on this machine
    is gone. A run of another machine is left to its deadline, since it may be alive.
    """
    try:
        anchors = api.list(JOBS, labelSelector=f"{PROBE_LABEL}=anchor", resourceVersion="")
    except ApiError as error:
        if error.missing or error.forbidden:
            return Killed()
        raise
    killed = Killed(tuple(one for one in anchors if _failed(one) or _orphaned(one)))
    if not killed.anchors:
        return killed
    about = f"{WORKLOAD_LABEL}={manifests.SEARCH}"
    states = [
        (one["metadata"]["creationTimestamp"], text)
        for one in api.list(f"{NAMESPACE}/configmaps", labelSelector=about, resourceVersion="")
        if one["metadata"]["labels"].get(RUN_LABEL) in killed.runs
        and (text := (one.get("data") or {}).get(manifests.SEARCH_FILE))
    ]
    return replace(killed, search=max(states)[1] if states else "")


def _failed(job: Object) -> bool:
    return (condition(job, "Failed") or {}).get("status") == "True"


def _orphaned(anchor: Object) -> bool:
    """Whether the run's process was one of this machine and is gone. A pid in use again only delays it."""
    host, _, pid = (anchor["metadata"].get("annotations") or {}).get(manifests.OWNER_ANNOTATION, "").rpartition("/")
    if host != socket.gethostname() or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
