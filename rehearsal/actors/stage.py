"""The loop: what changed is looked at again, and what differs from what it should be is written.

Level-triggered: a look needs nothing but the cache, the profile and the faults, so an actor that was killed
goes on where the cluster stands.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from pathlib import Path

from gpuready.charts_values.errors import InputError
from gpuready.charts_values.kube import Api

from .. import faults
from ..fleet import CONDITIONS, Hardware, hardware
from ..profile import Profile
from . import cilium, dra, gpu_operator, network_operator, nfd
from .cache import Cache
from .cilium import Cilium
from .dra import Dra
from .gpu_operator import GpuOperator
from .network_operator import NetworkOperator
from .nfd import Nfd
from .pods import Wish, now, status
from .records import FRESH, MARKED, Pod
from .scene import View, roles
from .wishes import NodeWish
from .workloads import Workloads
from .writes import Writer

log = logging.getLogger(__name__)

# Seconds: events of that long are looked at together; and how often the faults' file is looked at.
_GATHER = 0.05
_FAULTS = 0.5


@dataclass(frozen=True)
class Scene:
    """What the cluster's objects say to each component. When it changes, every node is looked at again."""

    cilium: Cilium | None
    nfd: Nfd | None
    gpu: GpuOperator
    net: NetworkOperator
    dra: Dra | None
    roles: dict[str, str]
    faults: dict[str, str]


class Stage:
    """All components on one cluster."""

    def __init__(self, state_dir: Path, profile: Profile, api: Api, cache: Cache) -> None:
        self._state_dir = state_dir
        self._profile = profile
        self._cache = cache
        self.writer = Writer(api, cache)
        self._workloads = Workloads(state_dir, profile, api, cache, self.writer)
        self._scene: Scene | None = None
        self._faults: dict[str, str] = {}
        self._faults_seen: tuple[int, int] | None = None
        self._acknowledged: dict[str, str] | None = None
        self._truths: dict[str, Hardware] = {}

    def run(self, stop: threading.Event) -> None:
        """Until ``stop`` is set."""
        while not stop.is_set():
            if self._cache.wake.wait(_FAULTS):
                stop.wait(_GATHER)
                self._cache.wake.clear()
            if self.look() == 0 and self.writer.busy == 0:
                self._acknowledge()

    def close(self) -> None:
        """End the threads."""
        self._workloads.close()
        self.writer.close()

    def look(self) -> int:
        """One look at all that may have changed; returns how many writes it asked for."""
        before = self.writer.count
        self._read_faults()
        with self._cache.lock:
            scene = self._read()
            if scene != self._scene:
                self._cache.touch_all()
                self._scene = scene
            gpu_operator.cluster(scene.gpu, self._cache, self.writer)
            network_operator.cluster(scene.net, self._cache, self.writer)
            cilium.cluster(scene.cilium, self._cache, self.writer)
            dirty = self._cache.take_dirty() | self._workloads.again
            self._workloads.again.clear()
            for name in dirty:
                view = self._view(name)
                if view is not None:
                    self._node(scene, view)
            self._workloads.sweep()
        return self.writer.count - before

    # -- inside -------------------------------------------------------------------------------------------

    def _read(self) -> Scene:
        return Scene(
            cilium=cilium.read(self._cache),
            nfd=nfd.read(self._cache),
            gpu=gpu_operator.read(self._cache),
            net=network_operator.read(self._cache),
            dra=dra.read(self._cache),
            roles=roles(self._cache.objects("daemonsets")),
            faults=self._faults,
        )

    def _view(self, name: str) -> View | None:
        node = self._cache.nodes.get(name)
        if node is None or self._scene is None:
            return None
        pods: dict[str, Pod] = {}
        for pod in self._cache.on_node[name].values():
            role = self._scene.roles.get(pod.owner_uid)
            if role is not None and not (pod.deleting and role in pods):
                pods[role] = pod
        return View(node, self._truth(name), pods)

    def _truth(self, name: str) -> Hardware:
        truth = self._truths.get(name)
        if truth is None:
            truth = self._truths[name] = faults.broken(hardware(self._profile, name), self._faults)
        return truth

    def _node(self, scene: Scene, view: View) -> None:
        name, before = view.node.name, self.writer.asked
        wish = NodeWish()
        cilium.node(scene.cilium, view, wish, self._cache, self.writer)
        nfd.node(scene.nfd, view, wish, self._profile)
        gpu_operator.node(scene.gpu, view, wish, self._profile)
        network_operator.node(scene.net, view, wish, self._profile)
        dra.node(scene.dra, view, self._profile, self._cache, self.writer)
        _kubelet(view, wish)
        if body := wish.patch(view.node):
            self.writer.patch("nodes", f"/api/v1/nodes/{name}", body, node=name)
        if body := wish.status_patch(view.node):
            self.writer.patch("nodes", f"/api/v1/nodes/{name}/status", body, node=name)
        wishes = [(pod, goal) for role, pod in view.pods.items() if (goal := self._wish(scene, role, pod, view))]
        for pod, goal in wishes:
            if not goal.waits:
                self._drive(pod, goal, view)
        # A pod that waits says so only where its node stands still: while others get ready, its turn may come.
        if self.writer.asked == before:
            for pod, goal in wishes:
                if goal.waits:
                    self._drive(pod, goal, view)
        for pod in self._cache.on_node[name].values():
            if pod.body is not None:
                self._workloads.pod(pod, view, scene.gpu, self._view)
            elif _forgotten(pod, view):
                body = {"status": {"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": now()}]}}
                self.writer.patch("pods", f"{pod.path}/status", body, node=name)

    def _wish(self, scene: Scene, role: str, pod: Pod, view: View) -> Wish | None:
        """What a DaemonSet's pod should be, where it is ours and not so yet. What runs goes on."""
        if pod.deleting or pod.ready:
            return None
        wish = (
            gpu_operator.progress(scene.gpu, role, view)
            or network_operator.progress(scene.net, role)
            or dra.progress(scene.dra, role, view)
        )
        return None if wish is None or pod.progress == _shown(wish, pod) else wish

    def _drive(self, pod: Pod, wish: Wish, view: View) -> None:
        body = {"status": status(pod, view.node, wish)}
        self.writer.patch("pods", f"{pod.path}/status", body, node=view.node.name)

    def _acknowledge(self) -> None:
        """Say that the faults show: with these, nothing is left to write."""
        if self._acknowledged != self._faults:
            faults.acknowledge(self._state_dir, self._faults)
            self._acknowledged = dict(self._faults)

    def _read_faults(self) -> None:
        try:
            found = (self._state_dir / faults.FILE).stat()
            seen = (found.st_mtime_ns, found.st_ino)
        except OSError:
            seen = None
        if seen == self._faults_seen:
            return
        self._faults_seen = seen
        self._truths.clear()
        try:
            self._faults = faults.active(self._state_dir)
        except InputError as error:
            log.warning("%s", error)


def _forgotten(pod: Pod, view: View) -> bool:
    """A pod that the controller-manager took from Ready while it saw the node as not Ready.

    A kubelet that is back posts it again; kwok says so once only.
    """
    return pod.progress == MARKED and not pod.deleting and view.node.conditions.get("Ready", ("",))[0] == "True"


def _kubelet(view: View, wish: NodeWish) -> None:
    """Post again what the controller-manager has declared unknown while nobody renewed the node's lease."""
    for kind, (good, reason, message) in CONDITIONS.items():
        if view.node.conditions.get(kind, ("",))[0] == "Unknown":
            wish.conditions.setdefault(kind, (good, reason, message))


def _shown(wish: Wish, pod: Pod) -> str:
    """The progress that a fulfilled wish shows: a pod without init containers waits without a word."""
    return FRESH if wish.waits and not pod.init else wish.progress
