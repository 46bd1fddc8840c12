"""Statuses of pods as a kubelet would write them, for strategic merge patches of ``/status``.

The patch leaves the scheduler's condition PodScheduled alone.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import IPv4Network

from gpuready.charts_values.kube import Object

from ..fleet import Trouble
from .records import PULL, READY, Node, Pod

_POD_CIDR_PART = 250


@dataclass(frozen=True)
class Wish:
    """How far a pod should be: a ``progress`` of records.progress_of.

    ``reason`` and ``message`` say why it is no further (crash, running).
    """

    progress: str
    reason: str = ""
    message: str = ""

    @property
    def waits(self) -> bool:
        """In an init container, for something else on its node."""
        return self.progress.startswith("init:")


ALL_READY = Wish(READY)


def waiting(done: int) -> Wish:
    """``done`` init containers have ended, the next one runs."""
    return Wish(f"init:{done}")


def crashing(message: str) -> Wish:
    """The first container ends with an error whenever it is started."""
    return Wish("crash", "CrashLoopBackOff", message)


def held_up(trouble: Trouble) -> Wish:
    """How far a pod gets in this trouble."""
    if trouble.kind == "init":
        return waiting(0)
    if trouble.kind == "pull":
        return Wish(PULL, "ImagePullBackOff", trouble.message)
    return crashing(trouble.message)


def now() -> str:
    """The time as the API writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def status(pod: Pod, node: Node, wish: Wish) -> Object:
    """The status that fulfils a wish other than an end."""
    if wish.progress == READY:
        return _running(pod, node, ready=True)
    if wish.progress == "running":
        return _running(pod, node, ready=False)
    if wish.progress == "crash":
        return _crash(pod, node, wish)
    if wish.progress == PULL:
        return _no_image(pod, node, wish)
    return _init(pod, node, int(wish.progress.removeprefix("init:")))


def ended(pod: Pod, node: Node, exit_code: int, message: str, started: str) -> Object:
    """The status of a pod whose containers have ended; ``message`` is the first one's termination message."""
    end = now()
    reason = "Completed" if exit_code == 0 else "Error"
    containers = []
    for index, container in enumerate(pod.containers):
        state: Object = {"exitCode": exit_code, "reason": reason, "startedAt": started, "finishedAt": end}
        if index == 0 and message:
            state["message"] = message
        containers.append(_container(container, {"terminated": state}, ready=False))
    return {
        "phase": "Succeeded" if exit_code == 0 else "Failed",
        "conditions": [
            _condition("Initialized", True, "PodCompleted"),
            _condition("ContainersReady", False, "PodCompleted" if exit_code == 0 else "PodFailed"),
            _condition("Ready", False, "PodCompleted" if exit_code == 0 else "PodFailed"),
        ],
        "initContainerStatuses": [_container(one, _completed(end), ready=True) for one in pod.init],
        "containerStatuses": containers,
        "startTime": started,
        **addresses(pod, node),
    }


def addresses(pod: Pod, node: Node) -> Object:
    """hostIP and podIP; the latter follows from the pod's uid, within the node's pod CIDR."""
    if pod.host_network or not node.pod_cidr:
        ip = node.address
    else:
        network = IPv4Network(node.pod_cidr)
        ip = str(network[2 + zlib.crc32(pod.uid.encode()) % min(_POD_CIDR_PART, network.num_addresses - 3)])
    return {
        "hostIP": node.address,
        "hostIPs": [{"ip": node.address}],
        "podIP": ip,
        "podIPs": [{"ip": ip}],
    }


def _running(pod: Pod, node: Node, *, ready: bool) -> Object:
    at = now()
    running = {"running": {"startedAt": at}}
    return {
        "phase": "Running",
        "conditions": [
            _condition("PodReadyToStartContainers", True),
            _condition("Initialized", True),
            _condition("ContainersReady", ready),
            _condition("Ready", ready),
        ],
        "initContainerStatuses": [_container(one, _completed(at), ready=True) for one in pod.init],
        "containerStatuses": [_container(one, running, ready=ready) for one in pod.containers],
        "startTime": at,
        **addresses(pod, node),
    }


def _init(pod: Pod, node: Node, done: int) -> Object:
    at = now()
    waits = {"waiting": {"reason": "PodInitializing"}}
    statuses = []
    for index, one in enumerate(pod.init):
        if index < done:
            statuses.append(_container(one, _completed(at), ready=True))
        else:
            state: Object = {"running": {"startedAt": at}} if index == done else waits
            statuses.append(_container(one, state, ready=False))
    why = f"containers with incomplete status: [{' '.join(name for name, _ in pod.init[done:])}]"
    return {
        "phase": "Pending",
        "conditions": [
            _condition("PodReadyToStartContainers", True),
            _condition("Initialized", False, "ContainersNotInitialized", why),
            _condition("ContainersReady", False, "ContainersNotReady"),
            _condition("Ready", False, "ContainersNotReady"),
        ],
        "initContainerStatuses": statuses,
        "containerStatuses": [_container(one, waits, ready=False) for one in pod.containers],
        "startTime": at,
        **addresses(pod, node),
    }


def _crash(pod: Pod, node: Node, wish: Wish) -> Object:
    at = now()
    body = _running(pod, node, ready=False)
    last = {"terminated": {"exitCode": 1, "reason": "Error", "startedAt": at, "finishedAt": at}}
    body["containerStatuses"] = [
        _container(one, {"waiting": {"reason": wish.reason, "message": wish.message}}, ready=False)
        | {"restartCount": 1, "lastState": last}
        for one in pod.containers
    ]
    return body


def _no_image(pod: Pod, node: Node, wish: Wish) -> Object:
    """Pending, with every init container done: they have another image."""
    body = _running(pod, node, ready=False)
    body["phase"] = "Pending"
    body["containerStatuses"] = [
        _container(one, {"waiting": {"reason": wish.reason, "message": _back_off(one[1], wish)}}, ready=False)
        for one in pod.containers
    ]
    return body


def _back_off(image: str, wish: Wish) -> str:
    return f'Back-off pulling image "{image}": ErrImagePull: {wish.message}'


def _completed(at: str) -> Object:
    return {"terminated": {"exitCode": 0, "reason": "Completed", "startedAt": at, "finishedAt": at}}


def _container(container: tuple[str, str], state: Object, *, ready: bool) -> Object:
    name, image = container
    return {
        "name": name,
        "image": image,
        "imageID": "",
        "ready": ready,
        "started": "running" in state,
        "restartCount": 0,
        "state": state,
    }


def _condition(kind: str, holds: bool, reason: str = "", message: str = "") -> Object:
    return {
        "type": kind,
        "status": "True" if holds else "False",
        "reason": reason,
        "message": message,
        "lastTransitionTime": now(),
    }
