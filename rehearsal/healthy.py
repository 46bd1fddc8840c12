"""Healthy fleets that differ: what real clusters have about them, none of which is a reason for an alarm.

A variation changes an installed rehearsal and the words in which its promise is written, and takes both back.
"""

from __future__ import annotations

import contextlib
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpuready.charts_values.errors import DeadlineError
from gpuready.charts_values.kube import Api, Object

from .profile import profiles
from .state import State

PROFILES = tuple(profiles())

_NAMESPACE = "team-a"
_NODES = "/api/v1/nodes"
_INVENTORY = '_CLUSTERS = {"rehearsal": {"rehearsal": True, "groups": %r}}\n'
# Seconds until a namespace has its service account, and until it is gone again.
_PATIENCE = 30.0


@dataclass
class Fleet:
    """One healthy fleet: its promise as an inventory file, and what is special about it.

    ``idle`` says whether all GPUs are free, without which an acceptance cannot prove them.
    """

    api: Api
    chance: random.Random
    groups: dict[str, dict[str, Any]]
    inventory: Path
    nodes: list[str]
    notes: list[str] = field(default_factory=list)
    undo: list[Callable[[], object]] = field(default_factory=list)
    idle: bool = True

    @property
    def title(self) -> str:
        """In words."""
        return ", ".join([f"{len(self.nodes)} nodes", *self.notes])


def nodes(profile: str) -> int:
    """How many GPU nodes the fleets of a profile have; always the same for the same profile."""
    return random.Random(profile).randint(3, 6)


@contextlib.contextmanager
def varied(now: State, chance: random.Random) -> Iterator[Fleet]:
    """An installed healthy cluster, varied by some of the changes below; everything is taken back at the end."""
    assert now.entry is not None
    api = Api.connect(now.kubeconfig)
    groups = json.loads(json.dumps(now.entry["groups"]))
    with tempfile.TemporaryDirectory(prefix="fleet-") as folder:
        fleet = Fleet(api, chance, groups, Path(folder) / "inventory", list(now.nodes))
        chosen = chance.sample(_CHANGES, chance.randint(2, len(_CHANGES) - 1))
        try:
            for change in (one for one in _CHANGES if one in chosen):
                change(fleet)
            fleet.inventory.write_text(_INVENTORY % fleet.groups, encoding="utf-8")
            yield fleet
        finally:
            for step in reversed(fleet.undo):
                step()


# -- changes ------------------------------------------------------------------------------------------------


def _two_groups(fleet: Fleet) -> None:
    """The same nodes promised as two groups, one by names, one by labels and a count."""
    (name, group), *_ = fleet.groups.items()
    if len(fleet.nodes) < 2:
        return
    cut = fleet.chance.randrange(1, len(fleet.nodes))
    rest = {key: value for key, value in group.items() if key != "nodes"}
    for node in fleet.nodes[cut:]:
        _label(fleet, node, "pool", "b")
    fleet.groups = {
        f"{name}-a": group | {"nodes": fleet.nodes[:cut]},
        f"{name}-b": rest | {"count": len(fleet.nodes) - cut, "selector": {"pool": "b"}},
    }
    fleet.notes.append(f"two groups of {cut} and {len(fleet.nodes) - cut}")


def _spot(fleet: Fleet) -> None:
    """Spot capacity, of which one node is cordoned and another never came."""
    name = fleet.chance.choice(list(fleet.groups))
    group = fleet.groups[name] | {"capacity": "spot"}
    if "nodes" in group:
        group["nodes"] = [*group["nodes"], "gpu-9999"]
        gone = fleet.chance.choice(group["nodes"][:-1])
    else:
        group["count"] += 1
        gone = fleet.nodes[-1]
    fleet.groups[name] = group
    if len(fleet.nodes) > 2:
        path = f"{_NODES}/{gone}"
        fleet.api.patch(path, {"spec": {"unschedulable": True}})
        fleet.undo.append(lambda: fleet.api.patch(path, {"spec": {"unschedulable": None}}))
        fleet.notes.append(f"spot, {gone} preempted")
    else:
        fleet.notes.append("spot, one node never came")


def _taint(fleet: Fleet) -> None:
    """A taint that only discourages: nothing must tolerate it."""
    node = fleet.chance.choice(fleet.nodes)
    path = f"{_NODES}/{node}"
    before = fleet.api.get(path)["spec"].get("taints")
    soft = {"key": "team-a/preferred", "value": "no", "effect": "PreferNoSchedule"}
    fleet.api.patch(path, {"spec": {"taints": [*(before or ()), soft]}})
    fleet.undo.append(lambda: fleet.api.patch(path, {"spec": {"taints": before}}))
    fleet.notes.append("a soft taint")


def _labels(fleet: Fleet) -> None:
    """Labels of other programs."""
    for node in fleet.nodes:
        _label(fleet, node, "topology.kubernetes.io/rack", f"rack-{fleet.chance.randrange(4)}")
    fleet.notes.append("rack labels")


def _team(fleet: Fleet) -> None:
    """A tenant's namespace with what tenants have: a quota, a failed release, a pod that asks for too much."""
    path, account = f"/api/v1/namespaces/{_NAMESPACE}", f"/api/v1/namespaces/{_NAMESPACE}/serviceaccounts/default"
    fleet.api.create("/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": _NAMESPACE}})
    fleet.undo.append(lambda: _until(lambda: fleet.api.find(path) is None, "namespace team-a stays"))
    fleet.undo.append(lambda: fleet.api.delete(path))
    _until(lambda: fleet.api.find(account) is not None, "namespace team-a gets no service account")
    _create(fleet, "resourcequotas", "v1", "ResourceQuota", "tight", spec={"hard": {"services": "0"}})
    _create(
        fleet, "secrets", "v1", "Secret", "sh.helm.release.v1.web.v3",
        labels={"owner": "helm", "name": "web", "status": "failed", "version": "3"}, type="helm.sh/release.v1",
    )  # fmt: skip
    _create(fleet, "pods", "v1", "Pod", "too-much", spec=_pod({"nvidia.com/gpu": "64"}))
    fleet.notes.append("a tenant with a quota, a failed release and a pending pod")


def _busy(fleet: Fleet) -> None:
    """One node's GPUs are in use."""
    if fleet.api.find(f"/api/v1/namespaces/{_NAMESPACE}") is not None:
        node = fleet.chance.choice(fleet.nodes)
        spec = _pod({"nvidia.com/gpu": "1"}) | {"nodeSelector": {"kubernetes.io/hostname": node}}
        _create(fleet, "pods", "v1", "Pod", "training", spec=spec)
        fleet.idle = False
        fleet.notes.append("a training job")


def _webhook(fleet: Fleet) -> None:
    """A webhook that is reached by URL and ignored while it does not answer."""
    path = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
    webhook = {
        "name": "policy.team-a.example.com",
        "clientConfig": {"url": "https://127.0.0.1:9/never"},
        "rules": [{"apiGroups": ["team-a.example.com"], "apiVersions": ["v1"], "operations": ["CREATE"],
                   "resources": ["widgets"]}],
        "failurePolicy": "Ignore",
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
    }  # fmt: skip
    body: Object = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "team-a"},
        "webhooks": [webhook],
    }
    fleet.api.create(path, body)
    fleet.undo.append(lambda: fleet.api.delete(f"{path}/team-a"))
    fleet.notes.append("somebody's webhook")


_CHANGES = [_two_groups, _spot, _taint, _labels, _team, _busy, _webhook]


# -- details ------------------------------------------------------------------------------------------------


def _label(fleet: Fleet, node: str, key: str, value: str) -> None:
    path = f"{_NODES}/{node}"
    fleet.api.patch(path, {"metadata": {"labels": {key: value}}})
    fleet.undo.append(lambda: fleet.api.patch(path, {"metadata": {"labels": {key: None}}}))


def _create(fleet: Fleet, plural: str, version: str, kind: str, name: str, **rest: Any) -> None:
    labels = rest.pop("labels", {})
    body: Object = {"apiVersion": version, "kind": kind, "metadata": {"name": name, "labels": labels}, **rest}
    fleet.api.create(f"/api/v1/namespaces/{_NAMESPACE}/{plural}", body)


def _until(good: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not good():
        if time.monotonic() > deadline:
            raise DeadlineError(f"{otherwise} ({_PATIENCE:g} s)")
        time.sleep(0.1)


def _pod(limits: dict[str, str]) -> Object:
    container = {"name": "main", "image": "registry.example.com/team-a/train:1", "resources": {"limits": limits}}
    tolerations = [{"operator": "Exists"}]
    return {"containers": [container], "tolerations": tolerations, "terminationGracePeriodSeconds": 0}
