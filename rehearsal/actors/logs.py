"""Logs of played pods: a file in CRI format, and the object by which kwok finds it.

Both go with the pod. What an earlier process left behind goes at the first look.
"""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime
from pathlib import Path

from gpuready.charts_values.errors import GpureadyError
from gpuready.charts_values.kube import Api, Object

from .cache import Cache
from .informers import PATHS
from .records import Pod
from .writes import Writer

log = logging.getLogger(__name__)

_MANAGER = "rehearsal"
# Seconds that kwok gets to see a new object on a busy machine, and between two looks.
_PATIENCE = 30.0
_PAUSE = 0.02
# Seconds after which an object that is not seen is changed.
_NUDGE = 0.5


class Logs:
    """The logs in one folder."""

    def __init__(self, folder: Path, api: Api, cache: Cache) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._api = api
        self._cache = cache
        # namespace/name and uid of the pod of each file.
        self._files = {file: _pod_of(file) for file in folder.glob("*.log")}

    def write(self, pod: Pod, text: str) -> None:
        """Make ``text`` the log of every container of a pod, and wait until it is served.

        Until kwok has seen the object it serves the log of any pod. kwok 0.8 keeps its list of these objects by the
        version that it last heard of, also where the newest one is not in the list yet; it then takes another change
        for it to look again. Raises what the API raises.
        """
        file = self._folder / f"{pod.namespace}_{pod.name}_{pod.uid}.log"
        at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")
        file.write_text("".join(f"{at} stdout F {line}\n" for line in text.splitlines()))
        with self._cache.lock:
            self._files[file] = (f"{pod.namespace}/{pod.name}", pod.uid)
        body: Object = {
            "apiVersion": "kwok.x-k8s.io/v1alpha1",
            "kind": "Logs",
            "metadata": {"name": pod.name, "namespace": pod.namespace},
            "spec": {
                "logs": [{"containers": [name for name, _ in (*pod.init, *pod.containers)], "logsFile": str(file)}]
            },
        }
        path = _path(pod.namespace, pod.name)
        self._api.patch(path, body, kind="apply", fieldManager=_MANAGER, force="true")
        last = text.splitlines()[-1:]
        began = time.monotonic()
        nudges = 0
        while last and (seen := self._last_line(pod)) != last:
            waited = time.monotonic() - began
            if waited > _PATIENCE:
                log.warning("kwok does not serve the log of %s: %s", pod.path, seen)
                return
            if waited > (nudges + 1) * _NUDGE:
                nudges += 1
                body["metadata"]["annotations"] = {"gpuready.io/nudge": str(nudges)}
                self._api.patch(path, body, kind="apply", fieldManager=_MANAGER, force="true")
            time.sleep(_PAUSE)

    def sweep(self, writer: Writer) -> None:
        """Remove what belongs to pods that are gone; the caller holds the cache's lock."""
        pods = self._cache.pods
        for one in self._cache.objects("logs"):
            meta = one["metadata"]
            if f"{meta['namespace']}/{meta['name']}" not in pods:
                writer.delete("logs", _path(meta["namespace"], meta["name"]))
        for file, (key, uid) in list(self._files.items()):
            pod = pods.get(key)
            if pod is None or pod.uid != uid:
                file.unlink(missing_ok=True)
                del self._files[file]

    def _last_line(self, pod: Pod) -> list[str]:
        try:
            return self._api.text(f"{pod.path}/log", container=pod.containers[0][0], tailLines=1).splitlines()
        except GpureadyError as error:
            return [str(error)]


def _pod_of(file: Path) -> tuple[str, str]:
    namespace, _, rest = file.stem.partition("_")
    name, _, uid = rest.rpartition("_")
    return f"{namespace}/{name}", uid


def _path(namespace: str, name: str) -> str:
    group = PATHS["logs"].removesuffix("/logs")
    return f"{group}/namespaces/{namespace}/logs/{name}"
