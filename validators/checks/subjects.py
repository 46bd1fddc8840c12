"""Short ways to say what a finding is about, shared by the checks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..evidence import Object
from ..model import Finding, Status, Subject


def passed(subject: Subject, detail: str = "", **more: Any) -> Finding:
    """All is as expected."""
    return Finding(Status.PASS, subject, "AsExpected", "as expected", detail, **more)


def skipped(subject: Subject, cause: str, detail: str = "") -> Finding:
    """The inventory does not expect this here."""
    return Finding(Status.SKIP, subject, "NotExpected", cause, detail, required=False)


def node(name: str) -> Subject:
    """A node."""
    return Subject("node", name)


def name_of(thing: Object) -> str:
    """An object's name."""
    return str(thing["metadata"]["name"])


def labels_of(thing: Object) -> dict[str, str]:
    """An object's labels, none included."""
    return thing["metadata"].get("labels") or {}


def condition(thing: Object, kind: str) -> Object | None:
    """A condition of an object's status by its type."""
    conditions: Iterable[Object] = thing.get("status", {}).get("conditions") or ()
    return next((one for one in conditions if one.get("type") == kind), None)


def allocatable(thing: Object, resource: str) -> int:
    """How many of a resource a node offers to pods; 0 where it offers none."""
    value = thing.get("status", {}).get("allocatable", {}).get(resource, "0")
    return int(value) if str(value).isdigit() else 0
