"""Objects by server-side apply: where they lie, in what they differ, and making them so."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from gpuready.charts_values.errors import ApiError, UnreachableError
from gpuready.charts_values.kube import Api, Object

from .changes import differences

FIELD_MANAGER = "gpuready"
# How long a new kind may take to be served.
KIND_S = 15.0
_KNOWN = {
    ("v1", "Namespace"): ("namespaces", False),
    ("v1", "Node"): ("nodes", False),
    ("v1", "ConfigMap"): ("configmaps", True),
    ("apps/v1", "DaemonSet"): ("daemonsets", True),
    ("apps/v1", "Deployment"): ("deployments", True),
}


def path(api: Api, item: Object) -> str | None:
    """The path of an object; None where the API server does not know its kind."""
    version, kind = str(item["apiVersion"]), str(item["kind"])
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    found = _KNOWN.get((version, kind))
    if found is None:
        served = (api.find(root) or {}).get("resources") or ()
        plain = (one for one in served if one["kind"] == kind and "/" not in one["name"])
        found = next(((str(one["name"]), bool(one["namespaced"])) for one in plain), None)
    if found is None:
        return None
    plural, namespaced = found
    meta = item["metadata"]
    place = f"namespaces/{meta['namespace']}/{plural}" if namespaced else plural
    return f"{root}/{place}/{meta['name']}"


def live(api: Api, item: Object) -> Object | None:
    """The object as the cluster has it; None where it or its kind does not exist."""
    where = path(api, item)
    return api.find(where) if where else None


def apply(api: Api, wanted: Object, manager: str = FIELD_MANAGER, *, wait_s: float = KIND_S, **query: str) -> Object:
    """Server-side apply, by force; ``wait_s`` is how long its kind may take to be served."""
    # Strict: a key that the kind does not have is an error, not dropped.
    query |= {"fieldManager": manager, "fieldValidation": "Strict", "force": "true"}
    deadline = time.monotonic() + wait_s
    while True:
        try:
            where = path(api, wanted)
            if where is None:
                kind = f"{wanted['kind']} of {wanted['apiVersion']}"
                raise ApiError(f"{title(wanted)}: the API server does not know the kind {kind}", 404)
            return api.patch(where, wanted, kind="apply", **query)
        except (UnreachableError, ApiError) as error:
            # A kind that was defined a moment ago: unknown, or its storage is not ready.
            passing = isinstance(error, UnreachableError) or error.missing
            if not passing or time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def difference(api: Api, wanted: Object, manager: str = FIELD_MANAGER) -> str | None:
    """In what applying it would change the cluster, on one line; None where it would change nothing."""
    before = live(api, wanted)
    try:
        after = apply(api, wanted, manager, wait_s=0.0 if before is None else KIND_S, dryRun="All")
    except ApiError as error:
        if error.missing:
            return f"{title(wanted)}: its kind, or its namespace, does not exist yet"
        raise
    if before is None:
        return f"{title(wanted)}: does not exist"
    found = differences(_comparable(before), _comparable(after))
    return f"{title(wanted)}: {'; '.join(found)}" if found else None


def title(item: Object) -> str:
    """Kind and name."""
    return f"{item['kind']} {item['metadata']['name']}"


def managers(item: Mapping[str, Any]) -> set[str]:
    """Who has set fields of an object, besides its status."""
    entries = item["metadata"].get("managedFields") or ()
    return {str(one.get("manager")) for one in entries if not one.get("subresource")}


def _comparable(item: Object) -> Object:
    """What a user may set: without status and what the server keeps in the metadata."""
    kept = {key: value for key, value in item.items() if key not in ("metadata", "status")}
    meta = item["metadata"]
    return kept | {"labels": meta.get("labels") or {}, "annotations": meta.get("annotations") or {}}
