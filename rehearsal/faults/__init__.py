"""Faults: what can be broken on purpose in a rehearsal, and the finding that each must cause.

A fault changes the truth of one node (fleet.Hardware), from which the actors act, or objects of the cluster;
never the promise. What is broken now, and how it is taken back, stands in ``faults.json`` of the state folder
before anything changes. A new fault is one row, and one small function, in the module of its subject.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from gpuready.charts_values.errors import DeadlineError, InputError
from gpuready.charts_values.kube import Api

from .. import state
from ..fleet import Hardware
from ..profile import load_profile
from ..state import State
from . import cluster, dra, fabric, gpu, network, nodes, record, releases
from .edits import Edit
from .model import Fault, Site
from .record import ACKNOWLEDGED, FILE, Injected, Shown, acknowledge

__all__ = [
    "ACKNOWLEDGED",
    "FILE",
    "SUBJECTS",
    "Fault",
    "Shown",
    "acknowledge",
    "active",
    "broken",
    "catalogue",
    "find",
    "heal",
    "inject",
    "settle",
]

# In the order in which a report looks at them.
SUBJECTS: Mapping[str, tuple[Fault, ...]] = {
    "nodes": nodes.FAULTS,
    "releases": releases.FAULTS,
    "cluster": cluster.FAULTS,
    "network": network.FAULTS,
    "GPUs": gpu.FAULTS,
    "DRA": dra.FAULTS,
    "fabric": fabric.FAULTS,
}
_CATALOGUE = {fault.name: fault for rows in SUBJECTS.values() for fault in rows}

# Seconds without an event after which the cluster shows what there is to show; where pods are on their way
# to nowhere, such as those that an admission refuses, it takes a longer silence to be sure.
_REST = 0.7
_LONG_REST = 2.0


def catalogue() -> tuple[Fault, ...]:
    """All faults, in the order in which they are listed."""
    return tuple(_CATALOGUE.values())


def find(name: str) -> Fault:
    """The fault of that name; raises InputError."""
    if name not in _CATALOGUE:
        raise InputError(f"no fault {name!r}; there are {', '.join(_CATALOGUE)}")
    return _CATALOGUE[name]


def active(state_dir: Path) -> dict[str, str]:
    """What is broken now: the node that each injected fault hit, empty for the whole cluster, by its name.

    Raises InputError where the file is damaged.
    """
    return {name: one.node for name, one in _read(state_dir).items()}


def inject(state_dir: Path, name: str, node: str | None = None) -> str:
    """Break ``name`` on ``node``, or on the fault's default node; returns the node, empty for the whole cluster.

    The actors follow within seconds (``settle``). Raises InputError: no such fault or node, no rehearsal,
    a profile or a cluster without what is to be broken, injected elsewhere, or in the way of another fault.
    """
    fault = find(name)
    with state.locked(state_dir, create=False):
        now = state.need(state_dir)
        node = _place(fault, now, node)
        lacking = fault.lacks(load_profile(now.profile))
        if lacking:
            raise InputError(f"{name} needs {lacking}, which profile {now.profile} has not")
        injected = _read(state_dir)
        known = injected.get(name)
        if known is not None:
            if known.node != node:
                raise InputError(f"{name} is injected on {known.node} already; heal it first")
            if not known.half:
                return node
            _take_back(now, known)
            del injected[name]
        edits: list[Edit] = []
        api = None
        if fault.edits is not None:
            api = Api.connect(now.kubeconfig)
            edits = fault.edits(Site(api, now, load_profile(now.profile), node))
            _check_apart(name, edits, injected)
        undo = tuple(edit.undo for edit in reversed(edits) if edit.undo is not None)
        # Before the change: whoever is killed in the middle of it can still be healed.
        record.write(state_dir, {**injected, name: Injected(node, undo, half=bool(edits))})
        if api is not None:
            for edit in edits:
                edit.perform(api)
            record.write(state_dir, {**injected, name: Injected(node, undo)})
    return node


def heal(state_dir: Path, name: str) -> str:
    """Mend ``name``; returns the node that it had hit. Raises InputError where it was not injected."""
    find(name)
    with state.locked(state_dir, create=False):
        now = state.need(state_dir)
        injected = _read(state_dir)
        if name not in injected:
            raise InputError(f"{name} is not injected; injected now: {', '.join(injected) or 'nothing'}")
        _take_back(now, injected[name])
        node = injected.pop(name).node
        record.write(state_dir, injected)
    return node


def settle(state_dir: Path, seconds: float = 60.0) -> None:
    """Wait until the cluster shows what is injected and is at rest.

    Raises DeadlineError where the actors do not act, or something keeps happening.
    """
    wanted, began = active(state_dir), time.monotonic()
    while time.monotonic() < began + seconds:
        said = record.shown(state_dir)
        if said is not None and said.faults == wanted and said.since is not None:
            silence = time.monotonic() - max(said.since, began)
            if silence >= (_LONG_REST if said.moving else _REST):
                return
        time.sleep(0.05)
    raise DeadlineError(f"the simulated fleet did not take it up in {seconds:g} s; look at: gpuready rehearse status")


def broken(truth: Hardware, faults: Mapping[str, str]) -> Hardware:
    """The truth of a node with the faults that hit it; ``faults`` as ``active`` gives them."""
    for name, node in faults.items():
        change = find(name).truth
        if change is not None and node == truth.node:
            truth = change(truth)
    return truth


# -- inside -------------------------------------------------------------------------------------------------


def _read(state_dir: Path) -> dict[str, Injected]:
    injected = record.read(state_dir)
    for name in injected:
        if name not in _CATALOGUE:
            raise record.damaged(state_dir, f"no fault is called {name!r}")
    return injected


def _place(fault: Fault, now: State, node: str | None) -> str:
    """The node that a fault hits, empty for the whole cluster."""
    if fault.scope == "cluster":
        if node is not None:
            raise InputError(f"{fault.name} breaks the whole cluster; leave --node out")
        return ""
    if node is None:
        return now.nodes[min(fault.default_node, len(now.nodes) - 1)]
    if node not in now.nodes:
        raise InputError(f"no GPU node {node!r} in this rehearsal; it has {now.nodes[0]} to {now.nodes[-1]}")
    return node


def _check_apart(name: str, edits: list[Edit], injected: Mapping[str, Injected]) -> None:
    """Raises InputError where another fault has changed one of the objects: neither could be taken back alone."""
    mine = {edit.path for edit in edits}
    for other, one in injected.items():
        if shared := mine & {edit.path for edit in one.undo}:
            kind, which = sorted(shared)[0].rsplit("/", 2)[1:]
            raise InputError(f"{name} and {other} both change {kind} {which}; heal {other} first")


def _take_back(now: State, injected: Injected) -> None:
    if injected.undo:
        api = Api.connect(now.kubeconfig)
        for edit in injected.undo:
            edit.take_back(api)
