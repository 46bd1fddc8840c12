"""Short ways to say what a finding is about, shared by the checks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from gpuready.charts_values.quantities import count

from ..evidence import Object
from ..model import Finding, Status, Subject

# What is wrong with a node explains what is missing on it.
NODES = ("nodes.present", "nodes.ready", "nodes.taints")

# What is wrong with a machine itself explains that no driver comes up there.
MACHINE = (
    *("node.gpus_on_pci", "node.nouveau", "node.driver_owner", "node.secure_boot"),
    *("node.containerd_version", "node.containerd_cdi"),
)

# What keeps a probe from running explains that it told nothing.
PROBES = ("probes.run", "probes.admitted")


def passed(subject: Subject, detail: str = "", **more: Any) -> Finding:
    """All is as expected."""
    return Finding(Status.PASS, subject, "AsExpected", "as expected", detail, **more)


def skipped(subject: Subject, cause: str, detail: str = "") -> Finding:
    """The inventory does not expect this here."""
    return Finding(Status.SKIP, subject, "NotExpected", cause, detail, required=False)


def not_probed(name: str, cause: str, detail: str = "", **more: Any) -> Finding:
    """The node could not be tried out, which proves nothing."""
    fix = "Mend or free what keeps the probe from running, then run gpuready accept again."
    return Finding(Status.UNPROVEN, node(name), "NotProbed", cause, detail, **{"fix": fix, **more})


def node(name: str) -> Subject:
    """A node."""
    return Subject("node", name)


def troubles(found: Mapping[str, str]) -> str:
    """What is wrong on some nodes, in words: the worst first, since others may only wait for it."""
    if not found:
        return ""
    name, text = min(found.items(), key=lambda pair: (_waits(pair[1]), pair))
    rest = len(found) - 1
    return (f"{name}: {text}" if name else text) + (f" (and {rest} more)" if rest else "")


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
    return count(thing.get("status", {}).get("allocatable", {}).get(resource, "0"))


def _waits(text: str) -> bool:
    """Whether a pod only waits for its turn, as init containers do for other pods."""
    return re.fullmatch(r"Init:\d+/\d+|ContainerCreating|PodInitializing", text) is not None
