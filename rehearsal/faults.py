"""Faults: what can be broken on purpose in a rehearsal, and the finding that each must cause.

A fault changes the truth of one node (fleet.Hardware), never the promise. What is broken now stands in
``faults.json`` of the state folder; the actors watch that file. A new fault is one function and one row.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpuready.charts_values.errors import DeadlineError, InputError
from gpuready.charts_values.inventory import STATE_FILE

from .fleet import CONTROL_PLANE, Hardware

FILE = "faults.json"
# What the actors have made of it so far.
ACKNOWLEDGED = "faults.shown.json"


@dataclass(frozen=True)
class Fault:
    """One row of the catalogue.

    ``finding`` is the id of the check that must name it; ``default_node`` the index of the GPU node that is
    hit where the user names none (the last one, in a smaller fleet).
    """

    name: str
    title: str
    breaks: str
    finding: str
    change: Callable[[Hardware], Hardware]
    default_node: int = 3


def _lose_gpu(truth: Hardware) -> Hardware:
    return dataclasses.replace(truth, gpus=truth.gpus[:-1])


def _lose_rdma(truth: Hardware) -> Hardware:
    return dataclasses.replace(truth, rdma=False, gdr=False)


_CATALOGUE = (
    Fault(
        name="gpu-missing",
        title="one node offers one GPU fewer",
        breaks="the last GPU of the node is gone from the PCI bus: driver, device plugin, feature discovery "
        "and nvidia-smi count one fewer",
        finding="gpu.allocatable",
        change=_lose_gpu,
    ),
    Fault(
        name="tcp-fallback",
        title="one node's NCCL runs over sockets",
        breaks="NCCL finds no usable RDMA device on the node and falls back to TCP; Kubernetes sees nothing",
        finding="nccl.transport",
        change=_lose_rdma,
    ),
)


def catalogue() -> tuple[Fault, ...]:
    """All faults, in the order in which they are listed."""
    return _CATALOGUE


def find(name: str) -> Fault:
    """The fault of that name; raises InputError."""
    for fault in _CATALOGUE:
        if fault.name == name:
            return fault
    raise InputError(f"no fault {name!r}; there are {', '.join(fault.name for fault in _CATALOGUE)}")


def active(state_dir: Path) -> dict[str, str]:
    """What is broken now: the node that each injected fault hit, by the fault's name.

    Raises InputError where the file is damaged.
    """
    file = state_dir / FILE
    try:
        data = json.loads(file.read_text())
        return {find(name).name: str(value["node"]) for name, value in data.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{file} is damaged ({error}); delete it to heal everything") from error


def inject(state_dir: Path, name: str, node: str | None = None) -> str:
    """Break ``name`` on ``node``, or on the fault's default node; returns the node.

    Takes effect through the actors within seconds. Raises InputError: no such fault, no such node, no
    rehearsal, or already injected on another node.
    """
    fault = find(name)
    names = _nodes(state_dir)
    if node is None:
        node = names[min(fault.default_node, len(names) - 1)]
    elif node not in names:
        raise InputError(f"no GPU node {node!r} in this rehearsal; it has {names[0]} to {names[-1]}")
    now = active(state_dir)
    if now.get(name, node) != node:
        raise InputError(f"{name} is injected on {now[name]} already; heal it first")
    _write(state_dir, {**now, name: node})
    return node


def heal(state_dir: Path, name: str) -> str:
    """Mend ``name``; returns the node that it had hit. Raises InputError where it was not injected."""
    find(name)
    _nodes(state_dir)
    now = active(state_dir)
    if name not in now:
        raise InputError(f"{name} is not injected; injected now: {', '.join(now) or 'nothing'}")
    node = now.pop(name)
    _write(state_dir, now)
    return node


def acknowledge(state_dir: Path, now: Mapping[str, str]) -> None:
    """For the actors: these faults show in the cluster, and no other."""
    _replace(state_dir / ACKNOWLEDGED, json.dumps(dict(now)))


def settle(state_dir: Path, seconds: float = 60.0) -> None:
    """Wait until the cluster shows what is injected; raises DeadlineError where the actors do not act."""
    wanted = active(state_dir)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if json.loads((state_dir / ACKNOWLEDGED).read_text()) == wanted:
                return
        except (OSError, ValueError):
            pass
        time.sleep(0.05)
    raise DeadlineError(f"the simulated fleet did not take it up in {seconds:g} s; look at: gpuready rehearse status")


def broken(truth: Hardware, faults: Mapping[str, str]) -> Hardware:
    """The truth of a node with the faults that hit it; ``faults`` as ``active`` gives them."""
    for name, node in faults.items():
        if node == truth.node:
            truth = find(name).change(truth)
    return truth


def _nodes(state_dir: Path) -> list[str]:
    file = state_dir / STATE_FILE
    try:
        names: list[Any] = json.loads(file.read_text())["nodes"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"no rehearsal cluster is up in {state_dir}; start one with: gpuready rehearse up") from None
    return [str(name) for name in names if name != CONTROL_PLANE]


def _write(state_dir: Path, now: Mapping[str, str]) -> None:
    text = json.dumps({name: {"node": node} for name, node in now.items()}, indent=2)
    _replace(state_dir / FILE, text + "\n")


def _replace(file: Path, text: str) -> None:
    """Atomic: the other side never reads half a file."""
    new = file.with_name(f"{file.name}.{os.getpid()}.new")
    new.write_text(text)
    new.replace(file)
