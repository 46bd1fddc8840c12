"""Runs the probe pods of an acceptance and brings their evidence home; leaves nothing behind."""

from __future__ import annotations

import os
import re
import secrets
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from gpuready.charts_values.errors import ApiError, DeadlineError, GpureadyError, UnreachableError
from gpuready.charts_values.inventory import Cluster
from gpuready.charts_values.kube import Api

from .. import fanout
from ..evidence import Evidence, Object, ReadFailure
from . import manifests
from . import plan as planning
from .plan import Plan, Target
from .verdicts import RUN_LABEL, WORKLOAD_LABEL, refusal

if TYPE_CHECKING:
    from .killed import Killed

JOBS = f"/apis/batch/v1/namespaces/{manifests.NAMESPACE}/jobs"
PODS = f"/api/v1/namespaces/{manifests.NAMESPACE}/pods"
NAMESPACE = f"/api/v1/namespaces/{manifests.NAMESPACE}"
_COLLECTIONS = {
    "Job": JOBS,
    "ConfigMap": f"{NAMESPACE}/configmaps",
    "Service": f"{NAMESPACE}/services",
}
_DOMAINS = f"/apis/resource.nvidia.com/v1beta1/namespaces/{manifests.NAMESPACE}/computedomains"
POLL_SECONDS = 0.5
CLEANUP_SECONDS = 60.0
LAST_SECONDS = 5.0
LOG_SECONDS = 20.0
SMI_SECONDS = 300
NCCL_SECONDS = 900
# Images are there by then, and each run of a search takes seconds.
SEARCH_SECONDS = 300
# We stop waiting before the Job ends what hangs, and so see that it hangs.
OVERTIME_SECONDS = 30
# How long the pods of a killed run may take to go.
STALE_SECONDS = 60.0
# A run outlives an API server that restarts.
SILENCE_SECONDS = 60.0
# How long the Job controller may take to make pods before its events are asked why it does not.
ADMISSION_SECONDS = 10.0
JOB_LABEL = "batch.kubernetes.io/job-name"

Progress = Callable[[str], None]
T = TypeVar("T")


class Part(NamedTuple):
    """One run of a search: its Job's name, its nodes, the NICs to measure each by itself, and how often."""

    name: str
    targets: tuple[Target, ...]
    rails: tuple[str, ...]
    repeats: int


class Wave(NamedTuple):
    """The pods of each run, in the order of the runs; ``in_full`` says that the time did not run out on them."""

    pods: list[list[Object]]
    in_full: bool


class Acceptance:
    """One run: ``start``, ``smi`` and ``nccl`` in this order, ``clean`` always.

    ``seconds`` is the time of the whole command, which is up at ``end`` (``time.monotonic``); the probes leave
    some of it to the cleanup. The anchor's deadline lies a minute behind it.
    """

    def __init__(self, api: Api, cluster: Cluster, *, seconds: float, end: float, progress: Progress) -> None:
        self.api = api
        self.cluster = cluster
        self.run = secrets.token_hex(3)
        self._end = end
        self._deadline = api.deadline = end - min(CLEANUP_SECONDS, seconds / 4)
        self._seconds = seconds
        self._progress = progress
        self._started = False
        self._anchor: Object = {}
        self._search_kept = False
        self._collections = dict(_COLLECTIONS)

    def start(self, evidence: Evidence) -> None:
        """Namespace, priority class, anchor, and the template of GPU claims where DRA serves the GPUs.

        Raises ApiError where a permission is missing.
        """
        self._ensure("/api/v1/namespaces", manifests.namespace())
        self._ensure("/apis/scheduling.k8s.io/v1/priorityclasses", manifests.priority_class())
        anchor = manifests.anchor(self.run, int(self._seconds) + 60, _this_process())
        self._started = True
        self._anchor = self.api.create(JOBS, anchor)
        if self.cluster.dra == "gpus":
            version = evidence.about.get("dra_versions", ["v1"])[0]
            template = manifests.claim_template(self.run, f"resource.k8s.io/{version}", self._anchor)
            path = f"/apis/{template['apiVersion']}/namespaces/{manifests.NAMESPACE}/resourceclaimtemplates"
            self.api.create(path, template)

    def take_over(self, stale: Killed) -> None:
        """Keep what the searches of killed runs knew, delete these runs, and wait for their pods to free the GPUs."""
        if not stale.anchors:
            return
        if stale.search:
            self.keep_search({manifests.SEARCH_FILE: stale.search})
        self._progress("removing what a killed run left")
        for one in stale.anchors:
            self.api.delete(f"{JOBS}/{one['metadata']['name']}")
        selector = f"{RUN_LABEL} in ({','.join(sorted(stale.runs))})"
        deadline = min(time.monotonic() + STALE_SECONDS, self._deadline)
        while self.api.list(PODS, labelSelector=selector, resourceVersion="") and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)

    def smi(self, plan: Plan, evidence: Evidence) -> None:
        """nvidia-smi on every target at once; pods, logs and XML go into the evidence."""
        if not plan.targets:
            return
        seconds = self._time_for("nvidia-smi", SMI_SECONDS)
        jobs = [
            manifests.smi_job(self.run, number, target, self.cluster, self._anchor, seconds)
            for number, target in enumerate(plan.targets)
        ]
        planned = {job["metadata"]["name"]: t.node for job, t in zip(jobs, plan.targets, strict=True)}
        evidence.about.setdefault("planned", {}).update(planned)
        self._create(jobs)
        pods = self._wait("nvidia-smi", dict.fromkeys(planned, 1), seconds, "nvidia-smi", evidence)
        if evidence.about.get("refused") and not pods:
            evidence.about["nccl_off"] = "the cluster refuses the probe pods"
        evidence.logs["nvidia-smi"] = logs = self._logs(pods)
        for pod in pods:
            xml = _xml(logs.get(pod["metadata"]["name"], ""))
            if xml and pod["spec"].get("nodeName"):
                evidence.nodes.setdefault(pod["spec"]["nodeName"], {})["nvidia-smi.xml"] = xml
        self._drop(jobs)

    def nccl(self, workload: str, targets: Sequence[Target], evidence: Evidence) -> None:
        """One all-reduce over the targets; pods and logs go into the evidence.

        It does not take place where the pods of ``smi`` were all refused.
        """
        if evidence.about.get("nccl_off"):
            return
        what = f"NCCL all-reduce on {len(targets)} nodes"
        seconds = self._time_for(what, NCCL_SECONDS)
        objects = manifests.nccl_objects(
            self.run, workload, targets, self.cluster, self._anchor, seconds + OVERTIME_SECONDS
        )
        joined = any(item["kind"] == "ComputeDomain" for item in objects)
        if joined:
            self._collections["ComputeDomain"] = _DOMAINS
        self._create(objects)
        jobs = {item["metadata"]["name"]: len(targets) for item in objects if item["kind"] == "Job"}
        pods = self._wait(workload, jobs, seconds, what, evidence)
        evidence.logs[workload] = self._logs(pods)
        domain = planning.domain_of(targets) if joined else ""
        nodes = [target.node for target in targets]
        evidence.about.setdefault("nccl", {})[workload] = {"nodes": nodes, "nvlink_domain": domain}
        # The next run needs these GPUs.
        self._drop(objects)

    def open_search(self) -> None:
        """Make what the runs of a search share; it goes with the anchor."""
        self._create(manifests.search_objects(self.run, self._anchor))

    def keep_search(self, texts: Mapping[str, str]) -> None:
        """Write down what a search knows, so that an interrupted one can be read: ConfigMap ``search-RUN``."""
        state = manifests.search_state(self.run, texts, self._anchor)
        path = self._collections["ConfigMap"]
        if self._search_kept:
            self.api.patch(f"{path}/{state['metadata']['name']}", {"data": state["data"]})
        else:
            self.api.create(path, state)
            self._search_kept = True

    def wave(self, workload: str, parts: Sequence[Part], what: str, evidence: Evidence) -> Wave:
        """Runs of a search side by side: all start at once, on nodes of their own."""
        seconds = self._time_for(what, SEARCH_SECONDS)
        jobs = [
            manifests.search_job(
                self.run,
                name,
                workload,
                targets,
                rails,
                repeats,
                self.cluster,
                self._anchor,
                seconds + OVERTIME_SECONDS,
            )
            for name, targets, rails, repeats in parts
        ]
        self._create(jobs)
        counts = {job["metadata"]["name"]: job["spec"]["completions"] for job in jobs}
        pods = self._wait(workload, counts, seconds, what, evidence)
        failed = [pod for pod in pods if pod["status"].get("phase") == "Failed"]
        if failed:
            evidence.logs[workload] = self._logs(failed)
        self._drop(jobs)
        by_job: dict[str, list[Object]] = {name: [] for name in counts}
        for pod in pods:
            by_job.setdefault((pod["metadata"].get("labels") or {}).get(JOB_LABEL, ""), []).append(pod)
        cut = self._left() < POLL_SECONDS
        return Wave([by_job[name] for name in counts], in_full=not cut)

    def clean(self, evidence: Evidence) -> None:
        """Delete what the run made and wait until it is gone; what stays is recorded for the report."""
        if not self._started:
            return
        self._progress("cleaning up")
        now = time.monotonic()
        # Even when the time is up, what was made must be taken back.
        self.api.deadline = deadline = min(now + CLEANUP_SECONDS, max(self._end, now + LAST_SECONDS))
        try:
            self.api.delete(f"{JOBS}/{manifests.anchor_name(self.run)}")
            while True:
                evidence.about["leftovers"] = self._leftovers()
                if not evidence.about["leftovers"] or time.monotonic() + POLL_SECONDS > deadline:
                    return
                time.sleep(POLL_SECONDS)
        except GpureadyError as error:
            evidence.about["cleanup_failed"] = str(error)

    # -- details ------------------------------------------------------------------------------------------

    def _left(self) -> float:
        return self._deadline - time.monotonic()

    def _time_for(self, what: str, seconds: int) -> int:
        """The seconds that a workload may take; raises DeadlineError where none are left."""
        left = int(min(seconds, self._left()))
        if left < 1:
            raise DeadlineError(f"the {self._seconds:g} s of --timeout were up before {what}")
        return left

    def _ensure(self, path: str, item: Object) -> None:
        if self.api.find(f"{path}/{item['metadata']['name']}") is None:
            try:
                self.api.create(path, item)
            except ApiError as error:
                if not error.conflict:
                    raise

    def _create(self, items: Sequence[Object]) -> None:
        self._all(partial(self.api.create, self._collections[item["kind"]], item) for item in items)

    def _drop(self, items: Sequence[Object]) -> None:
        self._all(
            partial(self.api.delete, f"{self._collections[item['kind']]}/{item['metadata']['name']}") for item in items
        )

    def _all(self, calls: Iterable[Callable[[], T]]) -> list[T]:
        """Calls to the API side by side, which Ctrl-C and a hanging API end."""
        until = self.api.deadline or self._end
        return fanout.all_of(calls, until, f"{self.api.server} did not answer in time", workers=8)

    def _pods(self, workload: str) -> list[Object]:
        selector = f"{RUN_LABEL}={self.run},{WORKLOAD_LABEL}={workload}"
        # Not from the watch cache: a pod that just ended must be seen.
        return self.api.list(PODS, labelSelector=selector, resourceVersion="")

    def _wait(
        self, workload: str, jobs: Mapping[str, int], seconds: float, what: str, evidence: Evidence
    ) -> list[Object]:
        """The workload's pods once all have ended, or as they are when the time is up; ``jobs`` says how many each has.

        They are evidence however the waiting ends. An API that is silent for a while is borne. Where nothing
        moves and the missing pods are refused by the cluster, there is nothing to wait for.
        """
        deadline = min(time.monotonic() + seconds, self._deadline)
        heard = time.monotonic()
        count = sum(jobs.values())
        pods: list[Object] = []
        moved, look = (0, 0), heard + ADMISSION_SECONDS
        try:
            while True:
                try:
                    pods, heard = self._pods(workload), time.monotonic()
                except (UnreachableError, DeadlineError):
                    if time.monotonic() > min(deadline, heard + SILENCE_SECONDS):
                        raise
                ended = sum(pod.get("status", {}).get("phase") in ("Succeeded", "Failed") for pod in pods)
                self._progress(f"{what}: {ended} of {count} pods done")
                if ended >= count or _given_up(pods):
                    return pods
                if (len(pods), ended) != moved:
                    moved, look = (len(pods), ended), heard + ADMISSION_SECONDS
                if len(pods) == ended and time.monotonic() > look:
                    missing = self._refusals(jobs, pods)
                    if missing and all(missing.values()):
                        evidence.about.setdefault("refused", {}).update(missing)
                        return pods
                    look += ADMISSION_SECONDS
                if time.monotonic() + POLL_SECONDS > deadline:
                    refused = {job: why for job, why in self._refusals(jobs, pods).items() if why}
                    evidence.about.setdefault("refused", {}).update(refused)
                    if self._left() < POLL_SECONDS:
                        text = f"the {self._seconds:g} s of --timeout were up during {what}"
                        evidence.about["cut_short"] = text
                    return pods
                time.sleep(POLL_SECONDS)
        finally:
            evidence.cluster.setdefault("pods", []).extend(pods)

    def _refusals(self, jobs: Mapping[str, int], pods: Sequence[Object]) -> dict[str, str]:
        """Why each Job that lacks pods got none; empty for one whose events do not tell."""
        made = Counter((pod["metadata"].get("labels") or {}).get(JOB_LABEL) for pod in pods)
        missing = [job for job, wanted in jobs.items() if made[job] < wanted]
        if not missing:
            return {}
        about = "reason=FailedCreate,involvedObject.kind=Job"
        try:
            events = self.api.list(f"{NAMESPACE}/events", fieldSelector=about, resourceVersion="")
        except GpureadyError:
            # A role of an older version may not read them.
            events = []
        told = {event["involvedObject"]["name"]: refusal(event.get("message") or "") for event in events}
        return {job: told.get(job, "") for job in missing}

    def _logs(self, pods: Sequence[Object]) -> dict[str, str]:
        names = [p["metadata"]["name"] for p in pods if p["status"].get("phase") in ("Succeeded", "Failed")]
        deadline = min(time.monotonic() + LOG_SECONDS, self._deadline)
        return dict(zip(names, self._all(partial(self._log, name, deadline) for name in names), strict=True))

    def _log(self, pod: str, deadline: float) -> str:
        """A pod's log; empty where the cluster does not give it within the deadline, or refuses it."""
        while True:
            try:
                text = self.api.text(f"{PODS}/{pod}/log")
            except ApiError as error:
                if error.forbidden or error.missing:
                    return ""
                text = ""
            except GpureadyError:
                text = ""
            if text or time.monotonic() > deadline:
                return text
            time.sleep(POLL_SECONDS)

    def _leftovers(self) -> list[str]:
        selector = f"{RUN_LABEL}={self.run}"
        paths = {**self._collections, "Pod": PODS}
        lists = self._all(
            partial(self.api.list, path, labelSelector=selector, resourceVersion="") for path in paths.values()
        )
        return [
            f"{kind} {item['metadata']['name']}" for kind, items in zip(paths, lists, strict=True) for item in items
        ]


def _this_process() -> str:
    return f"{socket.gethostname()}/{os.getpid()}"


def record_failure(evidence: Evidence, what: str, error: GpureadyError) -> None:
    """Keep an error of the run with the reads that failed."""
    kind = "unreachable"
    if isinstance(error, ApiError):
        # Quota, Pod Security and webhooks refuse with 403 as well, and no role helps against them.
        kind = "forbidden" if error.status == 401 or (error.forbidden and '" cannot ' in str(error)) else "refused"
    evidence.failures[what] = ReadFailure(kind, str(error))


def _given_up(pods: Iterable[Object]) -> bool:
    """Whether those that ran have ended and one has failed: it waited for the others in vain."""
    phases = {pod.get("status", {}).get("phase") for pod in pods}
    return "Failed" in phases and phases <= {"Succeeded", "Failed", "Pending"}


def _xml(text: str) -> str:
    """The XML document within a probe's log, else nothing."""
    found = re.search(r"<\?xml.*?</nvidia_smi_log>\s*", text, re.DOTALL)
    return found.group(0) if found else ""
