"""Changes of objects in the cluster, each with the change that takes it back."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from gpuready.charts_values.errors import ApiError, DeadlineError
from gpuready.charts_values.kube import Api, Object

# Seconds that a deleted object may take to be gone; a namespace takes longest.
_PATIENCE = 60.0
# What the server writes into an object's metadata.
_SERVERS = ("uid", "resourceVersion", "creationTimestamp", "generation", "managedFields", "selfLink")


Action = Literal["create", "delete", "patch", "taint", "untaint"]


@dataclass(frozen=True)
class Edit:
    """One change of the object at ``path``; ``body`` is what is created, the merge patch, or the taint.

    ``undo`` takes it back; None where controllers put it right by themselves.
    """

    action: Action
    path: str
    body: Object
    undo: Edit | None = None

    def perform(self, api: Api) -> None:
        """Make the change. To do it twice is fine; raises ApiError, and DeadlineError where a deletion hangs."""
        if self.action == "delete":
            api.delete(self.path)
            _wait_gone(api, self.path)
        elif self.action == "patch":
            api.patch(self.path, self.body)
        elif self.action == "create":
            _create(api, self.path, self.body)
        else:
            _taint(api, self.path, self.body, there=self.action == "taint")

    def take_back(self, api: Api) -> None:
        """Like ``perform``, of a change that takes one back: an object that is gone needs none."""
        try:
            self.perform(api)
        except ApiError as error:
            if self.action == "create" or not error.missing:
                raise

    def to_json(self) -> dict[str, Any]:
        """As JSON can hold it, without ``undo``."""
        value = asdict(self)
        del value["undo"]
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Edit:
        """From ``to_json``; raises KeyError, TypeError or ValueError where it is damaged."""
        if value["action"] not in get_args(Action):
            raise ValueError(f"no change is called {value['action']!r}")
        return cls(value["action"], str(value["path"]), dict(value["body"]))


def create(path: str, body: Object) -> Edit:
    """A new object; it is deleted again."""
    return Edit("create", path, body, undo=Edit("delete", path, {}))


def delete(path: str, before: Object) -> Edit:
    """Without an object; it is made again as it was in ``before``, but for its status."""
    return Edit("delete", path, {}, undo=Edit("create", path, bare(before)))


def drop(path: str) -> Edit:
    """Without an object that a controller makes again, such as a pod."""
    return Edit("delete", path, {})


def patch(path: str, body: Object, before: Object) -> Edit:
    """Other values for some fields; those of ``before`` are put back."""
    return Edit("patch", path, body, undo=Edit("patch", path, _inverse(body, before)))


def taint(path: str, wanted: Mapping[str, str]) -> Edit:
    """One more taint on a node; the node's other taints are left alone, then and now."""
    return Edit("taint", path, dict(wanted), undo=Edit("untaint", path, dict(wanted)))


def bare(body: Object) -> Object:
    """An object as a client would send it to have it made again."""
    kept = {key: value for key, value in body.items() if key != "status"}
    kept["metadata"] = {key: value for key, value in body["metadata"].items() if key not in _SERVERS}
    return kept


# -- inside -------------------------------------------------------------------------------------------------


def _inverse(body: Object, before: Mapping[str, Any]) -> Object:
    """The merge patch that gives back the fields that ``body`` changes."""
    back: Object = {}
    for key, value in body.items():
        old = before.get(key)
        back[key] = _inverse(value, old) if isinstance(value, dict) and isinstance(old, Mapping) else old
    return back


def _create(api: Api, path: str, body: Object) -> None:
    try:
        api.create(path.rpartition("/")[0], body)
    except ApiError as error:
        if not error.conflict:
            raise
        there = api.find(path)
        if there is None or "deletionTimestamp" in there["metadata"]:
            _wait_gone(api, path)
            api.create(path.rpartition("/")[0], body)


def _taint(api: Api, path: str, wanted: Object, *, there: bool) -> None:
    """Taints are one value to the server, and the controllers have theirs: read, change, write, or try again."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        node = api.get(path)
        others = [one for one in node["spec"].get("taints") or () if one["key"] != wanted["key"]]
        version = {"resourceVersion": node["metadata"]["resourceVersion"]}
        try:
            api.patch(path, {"metadata": version, "spec": {"taints": [*others, wanted] if there else others}})
            return
        except ApiError as error:
            if not error.conflict or time.monotonic() > deadline:
                raise


def _wait_gone(api: Api, path: str) -> None:
    deadline = time.monotonic() + _PATIENCE
    while (there := api.find(path)) is not None:
        if "deletionTimestamp" not in there["metadata"]:
            # A controller has made it again, under the same name.
            return
        if time.monotonic() > deadline:
            raise DeadlineError(f"{path} was deleted {_PATIENCE:g} s ago and is still there")
        time.sleep(0.05)
