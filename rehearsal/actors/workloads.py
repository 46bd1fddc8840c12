"""Pods whose inside is played: those of Jobs, and others that ask for GPUs.

The probes of `gpuready accept` answer from the truth of their node; a Job that nobody knows succeeds; a
service that asks for GPUs runs. What takes long is worked out in threads of its own, and written once.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from gpuready.charts_values.kube import Api, Object

from ..fleet import Gpu, clique
from ..outputs import nccl
from ..profile import Nic, Profile
from . import compute_domains, outcomes, secondary_networks
from .cache import Cache
from .dra import GPUS
from .gpu_operator import GpuOperator, driver_version, reaches_gpu_memory
from .logs import Logs
from .network_operator import NetworkOperator
from .outcomes import Outcome, Smi
from .pods import ALL_READY, ended, now, status
from .records import READY, Pod
from .scene import View
from .writes import Writer

log = logging.getLogger(__name__)

PROBE = "gpuready.io/probe"
_INDEX = "batch.kubernetes.io/job-completion-index"
_THREADS = 4

ViewOf = Callable[[str], View | None]


@dataclass(frozen=True)
class Operators:
    """What the two operators were asked for."""

    gpu: GpuOperator
    net: NetworkOperator


class Workloads:
    """The played pods. ``again`` names nodes that wait for something no event will tell of."""

    def __init__(self, state_dir: Path, profile: Profile, api: Api, cache: Cache, writer: Writer) -> None:
        self._state_dir = state_dir
        self._profile = profile
        self._api = api
        self._cache = cache
        self._writer = writer
        self._logs = Logs(state_dir / "logs", api, cache)
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="outcome")
        self._lock = threading.Lock()
        self._outcomes: dict[str, Outcome] = {}
        self._under_way: set[str] = set()
        self.again: set[str] = set()

    def pod(self, pod: Pod, view: View, operators: Operators, view_of: ViewOf) -> None:
        """Bring one pod a step further; the caller holds the cache's lock."""
        if pod.body is None or pod.deleting:
            return
        if pod.ended:
            self._forget(pod.uid)
            return
        with self._lock:
            outcome = self._outcomes.get(pod.uid)
        if outcome is not None:
            self._end(pod, view, outcome)
            return
        probe = (pod.body["metadata"].get("labels") or {}).get(PROBE, "") if pod.owner_kind == "Job" else ""
        if probe == "anchor":
            self._run(pod, view)
        elif probe == "nccl":
            self._nccl(pod, view, operators, view_of)
        else:
            self._alone(pod, pod.body, probe, view)

    def sweep(self) -> None:
        """Remove the logs of pods that are gone; the caller holds the cache's lock."""
        self._logs.sweep(self._writer)

    def close(self) -> None:
        """Drop what has not begun and wait for the rest."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    # -- one pod, or several together ---------------------------------------------------------------------

    def _alone(self, pod: Pod, body: Object, probe: str, view: View) -> None:
        gpus = self._gpus(body, view)
        if gpus is None:
            self.again.add(pod.node)
            return
        driver = driver_version(view) or self._profile.driver.version
        seen = Smi(gpus, driver, self._profile, view.hardware.product, clique(self._profile, pod.node))
        if probe == "nvidia-smi":
            self._work(pod.uid, pod.node, lambda: {pod.uid: outcomes.smi_probe(body, seen, self._state_dir)})
        elif probe == "dra-claim":
            self._note({pod.uid: outcomes.claim_probe(seen)}, pod.node)
        elif outcomes.calls_smi(body) and body["spec"].get("restartPolicy") != "Always":
            self._note({pod.uid: outcomes.smi_call(body, seen)}, pod.node)
        elif pod.owner_kind == "Job" or body["spec"].get("restartPolicy") != "Always":
            self._note({pod.uid: outcomes.unknown(body)}, pod.node)
        else:
            self._run(pod, view)

    def _nccl(self, pod: Pod, view: View, operators: Operators, view_of: ViewOf) -> None:
        """All pods of the Job must run before any says anything, as ranks wait for each other."""
        if self._rails(pod.body or {}, view, operators) is None:
            self.again.add(pod.node)
            return
        self._run(pod, view)
        meta = (pod.body or {})["metadata"]
        owner = next(one["name"] for one in meta["ownerReferences"] if one["uid"] == pod.owner_uid)
        job = self._cache.object("jobs", owner, pod.namespace)
        if job is None:
            self.again.add(pod.node)
            return
        if pod.owner_uid in self._under_way:
            return
        wanted = int(job["spec"].get("completions") or job["spec"].get("parallelism") or 1)
        peers = {
            _index(one.body): one
            for one in self._cache.owned.get(pod.owner_uid, {}).values()
            if one.body is not None and not one.deleting and one.progress != "Failed"
        }
        if len(peers) < wanted or any(one.progress not in (READY, "Succeeded") for one in peers.values()):
            return
        ordered = [peers[index] for index in sorted(peers)]
        bodies = [one.body for one in ordered if one.body is not None]
        views = [view_of(one.node) for one in ordered]
        hosts = [
            self._host(one, body, where, operators)
            for one, body, where in zip(ordered, bodies, views, strict=True)
            if where is not None and self._gpus(body, where) is not None
        ]
        if len(hosts) < len(ordered):
            self.again.add(pod.node)
        else:
            uid, settings = pod.owner_uid, self._settings(bodies[0])
            self._work(uid, pod.node, lambda: outcomes.nccl_probe(bodies, hosts, uid, settings))

    def _settings(self, body: Object) -> dict[str, str]:
        """What a pod's first container takes over from ConfigMaps as its environment."""
        found: dict[str, str] = {}
        for one in body["spec"]["containers"][0].get("envFrom") or ():
            name = one.get("configMapRef", {}).get("name", "")
            config = self._cache.object("configmaps", name, body["metadata"]["namespace"])
            found.update((config or {}).get("data") or {})
        return found

    def _rails(self, body: Object, view: View, operators: Operators) -> tuple[Nic, ...] | None:
        return secondary_networks.rails(operators.net, self._cache, view, self._profile, body)

    def _host(self, pod: Pod, body: Object, view: View, operators: Operators) -> nccl.Host:
        model, truth = self._profile.nics, view.hardware
        rails = self._rails(body, view, operators) or ()
        return nccl.Host(
            # With the node's network a pod has the node's host name, too.
            name=view.node.name if pod.host_network else pod.name,
            gpus=len(self._gpus(body, view) or ()),
            nics=tuple(nic.name for nic in rails if nic.name not in truth.silent),
            link=model.link if model else "IB",
            nic_gbits_s=model.gbits_s if model else self._profile.management.gbits_s,
            rdma=truth.rdma and bool(rails),
            gdr=truth.gdr and reaches_gpu_memory(operators.gpu),
            address=body.get("status", {}).get("podIP", ""),
            slow=truth.slow,
            nvlink=truth.nvlink,
            dying=truth.dying,
            product=truth.product or self._profile.gpus.name,
            clique=compute_domains.clique(view, self._claimed(body) or set()),
        )

    def _gpus(self, body: Object, view: View) -> tuple[Gpu, ...] | None:
        """The GPUs that a pod sees; None while the allocation of its claims is not known yet."""
        claimed = self._claimed(body)
        if claimed is None:
            return None
        found = tuple(gpu for gpu in view.hardware.gpus if (GPUS, f"gpu-{gpu.index}") in claimed)
        return found or outcomes.given(body, view.hardware)

    def _claimed(self, body: Object) -> set[tuple[str, str]] | None:
        """Driver and name of each device that a pod's claims got; None while that is not known."""
        claims = {one["name"]: one.get("resourceClaimName") for one in body["spec"].get("resourceClaims") or ()}
        for one in body.get("status", {}).get("resourceClaimStatuses") or ():
            claims[one["name"]] = one.get("resourceClaimName") or claims.get(one["name"])
        devices: set[tuple[str, str]] = set()
        for name in claims.values():
            claim = self._cache.object("resourceclaims", name, body["metadata"]["namespace"]) if name else None
            allocation = ((claim or {}).get("status") or {}).get("allocation")
            if allocation is None:
                return None
            results = allocation.get("devices", {}).get("results") or ()
            devices |= {(one["driver"], one["device"]) for one in results}
        return devices

    # -- writing ------------------------------------------------------------------------------------------

    def _run(self, pod: Pod, view: View) -> None:
        if pod.progress != READY:
            body = {"status": status(pod, view.node, ALL_READY)}
            self._writer.patch("pods", f"{pod.path}/status", body, node=pod.node)

    def _end(self, pod: Pod, view: View, outcome: Outcome) -> None:
        """The log first, so that whoever sees the end can read it."""
        started = ((pod.body or {}).get("status") or {}).get("startTime") or now()
        body = {"status": ended(pod, view.node, outcome.exit_code, outcome.message, started)}

        def write() -> None:
            self._logs.write(pod, outcome.log)
            self._cache.answer("pods", self._api.patch(f"{pod.path}/status", body, kind="strategic"))

        self._writer.run(f"end {pod.uid}", write, node=pod.node)

    def _work(self, key: str, node: str, work: Callable[[], Mapping[str, Outcome]]) -> None:
        """Work out outcomes in a thread, once at a time for each key."""
        with self._lock:
            if key in self._under_way:
                return
            self._under_way.add(key)

        def do() -> None:
            try:
                self._note(work(), node)
            except Exception:
                log.exception("a bug: working out what a pod says")
            finally:
                with self._lock:
                    self._under_way.discard(key)

        self._pool.submit(do)

    def _note(self, found: Mapping[str, Outcome], node: str) -> None:
        with self._lock:
            self._outcomes |= found
        with self._cache.lock:
            nodes = {pod.node for pod in self._cache.pods.values() if pod.uid in found} if len(found) > 1 else {node}
            for one in nodes:
                self._cache.touch(one)

    def _forget(self, uid: str) -> None:
        with self._lock:
            self._outcomes.pop(uid, None)


def _index(body: Object) -> int:
    meta = body["metadata"]
    text = (meta.get("annotations") or {}).get(_INDEX) or (meta.get("labels") or {}).get(_INDEX) or "0"
    return int(text)
