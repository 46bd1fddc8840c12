"""What a release made and somebody changed behind Helm's back: found by the manifest, and put back.

Helm compares its own records; an object that was edited, scaled to nothing or deleted by hand looks installed to
it. Only fields that the manifest sets count: defaults, status and what others add are none of our business.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from gpuready.charts_values.errors import ApiError
from gpuready.charts_values.kube import Api, Object

from . import objects
from .helm import Installed

# The objects of a release that decide what runs; not roles, accounts and the like.
_KINDS = frozenset({"ClusterPolicy", "ConfigMap", "DaemonSet", "Deployment", "NodeFeatureRule", "DeviceClass"})
_CLUSTER_WIDE = frozenset({"ClusterPolicy", "NodeFeatureRule", "DeviceClass"})
_HELM = "helm"
# (live spec, wanted spec) -> the spec to have.
Keep = Callable[[Object, Object], Object]


@dataclass(frozen=True)
class Drift:
    """An object that is not as its release's manifest says: what to apply, as whom, and in what it differs."""

    wanted: Object
    manager: str
    said: str


def find(api: Api, installed: Installed, manifest: Iterable[Object], keep: Keep | None = None) -> list[Drift]:
    """The objects of a release that differ from its manifest.

    ``keep`` leaves in the spec of a ClusterPolicy what must not be changed now.
    """
    found = []
    for item in manifest:
        if not item or item.get("kind") not in _KINDS:
            continue
        wanted = _as_helm_applies(item, installed)
        live = objects.live(api, wanted)
        if live is not None:
            _settle(wanted, live, keep)
        known = sorted(objects.managers(live)) if live else []
        manager = next((name for name in known if name.startswith(_HELM)), _HELM)
        try:
            said = objects.difference(api, wanted, manager)
        except ApiError as error:
            if not error.invalid:
                raise
            # What an older Helm has put there, server-side apply may refuse; then it cannot be compared.
            continue
        if said is not None:
            found.append(Drift(wanted, manager, said))
    return found


def put_back(api: Api, drift: Drift) -> None:
    """Make the object as the manifest says. Helm stays its manager, so that its next upgrade meets no conflict."""
    objects.apply(api, drift.wanted, drift.manager)


def _as_helm_applies(item: Object, installed: Installed) -> Object:
    """A manifest's object with the marks that Helm adds, without which applying would take them away."""
    wanted = copy.deepcopy(item)
    meta = wanted["metadata"]
    if wanted["kind"] not in _CLUSTER_WIDE:
        meta.setdefault("namespace", installed.namespace)
    meta["labels"] = {**(meta.get("labels") or {}), "app.kubernetes.io/managed-by": "Helm"}
    meta["annotations"] = {
        **(meta.get("annotations") or {}),
        "meta.helm.sh/release-name": installed.name,
        "meta.helm.sh/release-namespace": installed.namespace,
    }
    return wanted


def _settle(wanted: Object, live: Object, keep: Keep | None) -> None:
    """What the manifest leaves open, and what is to stay."""
    if wanted["kind"] == "Deployment" and live["spec"].get("replicas") == 0:
        wanted["spec"].setdefault("replicas", 1)
    if wanted["kind"] == "ClusterPolicy" and keep is not None:
        wanted["spec"] = keep(live["spec"], wanted["spec"])
