"""The loop: what changed is looked at again, and what differs from what it should be is written.

Level-triggered: a look needs nothing but the cache, the profile and the faults, so an actor that was killed
goes on where the cluster stands.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from gpuready.charts_values.errors import InputError
from gpuready.charts_values.kube import Api

from .. import faults
from ..fleet import CONDITIONS, Hardware, hardware
from ..machines.plan import MARK as MACHINE
from ..profile import Profile
from . import cilium, compute_domains, dra, gpu_operator, network_operator, nfd, secondary_networks
from .cache import Cache
from .cilium import Cilium
from .dra import Dra
from .gpu_operator import GpuOperator
from .network_operator import NetworkOperator
from .nfd import Nfd
from .operands import BY_ROLE
from .pods import Wish, held_up, now, status
from .records import FRESH, MARKED, READY, Pod
from .rest import Rest
from .scene import View, roles
from .wishes import NodeWish
from .workloads import Operators, Workloads
from .writes import Writer

log = logging.getLogger(__name__)

# Nodes with this label set to off are machines without power: nothing happens on them.
POWER = "rehearsal.gpuready.io/power"
# Seconds: events of that long are looked at together; how often the faults' file is looked at; and after how
# long everything is looked at although nothing happened.
_GATHER = 0.05
_FAULTS = 0.1
_LOOK = 0.5


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
        self._rest = Rest(state_dir, cache, self.writer)
        self._truths: dict[str, Hardware] = {}

    def run(self, stop: threading.Event) -> None:
        """Until ``stop`` is set."""
        while not stop.is_set():
            woken = self._wait(stop)
            wrote = self.look()
            self._rest.note(self._faults, stirred=woken or wrote > 0)

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
            secondary_networks.cluster(scene.net, self._cache, self.writer)
            compute_domains.cluster(scene.dra, self._cache, self.writer)
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

    def _wait(self, stop: threading.Event) -> bool:
        """Until something changed, or it is time to look anyway; returns whether something changed."""
        deadline = time.monotonic() + _LOOK
        while not stop.is_set() and time.monotonic() < deadline:
            if self._cache.wake.wait(_FAULTS):
                stop.wait(_GATHER)
                self._cache.wake.clear()
                return True
            if self._stamp() != self._faults_seen:
                return True
            self._rest.note(self._faults, stirred=False)
        return False

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
        if node is None or self._scene is None or node.labels.get(POWER) == "off":
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
        if MACHINE in view.node.labels:
            # Its kubelet is real, and speaks for the node and its pods.
            return
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
                self._workloads.pod(pod, view, Operators(scene.gpu, scene.net), self._view)
            elif _forgotten(pod, view):
                body = {"status": {"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": now()}]}}
                self.writer.patch("pods", f"{pod.path}/status", body, node=name)

    def _wish(self, scene: Scene, role: str, pod: Pod, view: View) -> Wish | None:
        """What a DaemonSet's pod should be, where it is ours and not so yet. What runs goes on.

        Two things end it: trouble of its own, and trouble of an operand, after which the other operands of the
        node start again, as they do when the driver is exchanged or the node reboots.
        """
        trouble = view.hardware.broken.get(role)
        restarts = role in BY_ROLE and any(one in BY_ROLE for one in view.hardware.broken)
        if pod.deleting or (pod.ready and trouble is None and not restarts):
            return None
        wish = held_up(trouble) if trouble else None
        wish = (
            wish
            or gpu_operator.progress(scene.gpu, role, view)
            or network_operator.progress(scene.net, role)
            or dra.progress(scene.dra, role, view)
        )
        if wish is None or (pod.ready and wish.progress == READY):
            return None
        return None if pod.progress == _shown(wish, pod) else wish

    def _drive(self, pod: Pod, wish: Wish, view: View) -> None:
        body = {"status": status(pod, view.node, wish)}
        self.writer.patch("pods", f"{pod.path}/status", body, node=view.node.name)

    def _stamp(self) -> tuple[int, int] | None:
        """What tells one version of the faults' file from another."""
        try:
            found = (self._state_dir / faults.FILE).stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino

    def _read_faults(self) -> None:
        seen = self._stamp()
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
    """Post again what the controller-manager has declared unknown while nobody renewed the node's lease.

    A kubelet in trouble says so, whatever the network is like.
    """
    if view.hardware.kubelet:
        wish.conditions["Ready"] = ("False", "KubeletNotReady", view.hardware.kubelet)
    for kind, (good, reason, message) in CONDITIONS.items():
        if view.node.conditions.get(kind, ("",))[0] == "Unknown":
            wish.conditions.setdefault(kind, (good, reason, message))


def _shown(wish: Wish, pod: Pod) -> str:
    """The progress that a fulfilled wish shows: a pod without init containers waits without a word."""
    return FRESH if wish.waits and not pod.init else wish.progress
