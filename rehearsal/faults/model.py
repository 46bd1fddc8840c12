"""What a fault is: one row of the catalogue, and the place that it is played on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from gpuready.charts_values.errors import InputError
from gpuready.charts_values.kube import Api, Object

from ..fleet import Hardware
from ..profile import Profile
from ..state import State
from .edits import Edit

# What a fault may need of a profile, and how a refusal names its want.
Need = Literal["rdma", "gdr", "dra", "device-plugin", "driver"]
_WANTS = {
    "rdma": "RDMA rails",
    "gdr": "rails that reach GPU memory",
    "dra": "DRA",
    "device-plugin": "the device plugin",
    "driver": "the GPU Operator's driver container",
}


@dataclass(frozen=True)
class Site:
    """Where a fault is played: the cluster, its profile and the node that is hit (empty where none is)."""

    api: Api
    now: State
    profile: Profile
    node: str

    def get(self, path: str) -> Object:
        """An object that the fault needs; raises InputError where it is not there."""
        found = self.api.find(path)
        if found is None:
            kind, name = path.rsplit("/", 2)[1:]
            raise InputError(f"the cluster has no {name} ({kind}); install the platform first, or heal what took it")
        found["metadata"].pop("managedFields", None)
        return found


@dataclass(frozen=True)
class Fault:
    """One row of the catalogue.

    ``finding`` is the id of the check that must name it, seen by `gpuready check` or, with ``phase`` accept, by
    `gpuready accept` alone; ``follows`` are other checks that may be bad because of it. ``truth`` changes what a
    node is, ``edits`` plans changes of the cluster's objects. ``default_node`` is the index of the GPU node
    that is hit where the user names none (the last one, in a smaller fleet).
    """

    name: str
    title: str
    breaks: str
    finding: str
    phase: Literal["check", "accept"] = "check"
    follows: tuple[str, ...] = ()
    scope: Literal["node", "cluster"] = "node"
    needs: tuple[Need, ...] = ()
    truth: Callable[[Hardware], Hardware] | None = None
    edits: Callable[[Site], list[Edit]] | None = None
    default_node: int = 3

    def lacks(self, profile: Profile) -> str | None:
        """What the fault needs and nodes of the profile have not, in words."""
        has = {
            "rdma": profile.nics is not None,
            "gdr": profile.nics is not None and profile.nics.gdr,
            "dra": profile.dra != "off",
            "device-plugin": profile.dra != "gpus",
            "driver": profile.driver.owner == "operator",
        }
        return next((_WANTS[need] for need in self.needs if not has[need]), None)
