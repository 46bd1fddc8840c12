"""``faults.json`` of the state folder: what is broken now, and how it is taken back.

The actors watch it. Beside it they write what they have made of it, and since when the cluster is at rest.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gpuready.charts_values.errors import InputError

from .edits import Edit

FILE = "faults.json"
# What the actors have made of it so far.
ACKNOWLEDGED = "faults.shown.json"


@dataclass(frozen=True)
class Injected:
    """A fault that is injected: the node it hit, empty for the whole cluster.

    ``undo`` takes back what was changed in the cluster; ``half`` says that the change may not be complete.
    """

    node: str
    undo: tuple[Edit, ...] = ()
    half: bool = False


@dataclass(frozen=True)
class Shown:
    """What the actors say: the faults that they act on, and the cluster's rest.

    ``since`` is when anything last happened (``time.monotonic``), None while something does; ``moving`` says
    that pods are on their way all the same.
    """

    faults: Mapping[str, str]
    since: float | None
    moving: bool = False


def read(state_dir: Path) -> dict[str, Injected]:
    """What is injected, by the fault's name. Raises InputError where the file is damaged."""
    file = state_dir / FILE
    try:
        return {str(name): _injected(value) for name, value in json.loads(file.read_text()).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise damaged(state_dir, str(error)) from error


def damaged(state_dir: Path, why: str) -> InputError:
    """The error that says so, and what to do."""
    return InputError(f"{state_dir / FILE} is damaged ({why}); gpuready rehearse down, then up, starts afresh")


def write(state_dir: Path, now: Mapping[str, Injected]) -> None:
    """Replace the file, at once and as a whole."""
    table: dict[str, object] = {}
    for name, one in now.items():
        row: dict[str, object] = {"node": one.node}
        if one.undo:
            row["undo"] = [edit.to_json() for edit in one.undo]
        if one.half:
            row["half"] = True
        table[name] = row
    _replace(state_dir / FILE, json.dumps(table, indent=2) + "\n")


def acknowledge(state_dir: Path, shown: Shown) -> None:
    """For the actors: this is what the cluster shows."""
    value = {"faults": dict(shown.faults), "since": shown.since, "moving": shown.moving}
    _replace(state_dir / ACKNOWLEDGED, json.dumps(value))


def shown(state_dir: Path) -> Shown | None:
    """What the actors said last; None where they have not."""
    try:
        value = json.loads((state_dir / ACKNOWLEDGED).read_text())
        return Shown(value["faults"], value["since"], value["moving"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _injected(value: Mapping[str, object]) -> Injected:
    undo = value.get("undo") or []
    if not isinstance(undo, list):
        raise TypeError("undo is no list")
    return Injected(str(value["node"]), tuple(Edit.from_json(one) for one in undo), bool(value.get("half")))


def _replace(file: Path, text: str) -> None:
    """Atomic: the other side never reads half a file."""
    new = file.with_name(f"{file.name}.{os.getpid()}.new")
    new.write_text(text)
    new.replace(file)
