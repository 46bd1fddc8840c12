"""Who holds the GPUs of a node: pods that the device plugin gave them to, and pods that have them by claim."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from gpuready.charts_values.errors import ApiError
from gpuready.charts_values.kube import Api

from ..evidence import Evidence, Object

GPU = "nvidia.com/gpu"
_MIG = "nvidia.com/mig-"
_DRIVER = "gpu.nvidia.com"
_PAGE = 500


def holders(pods: Iterable[Object], claims: Iterable[Object]) -> dict[str, str]:
    """Which pod holds GPUs of each node, by a resource of the device plugin or by a claim; the first one found."""
    by_claim = {
        (claim["metadata"]["namespace"], user["name"])
        for claim in claims
        if _takes_gpus(claim)
        for user in claim.get("status", {}).get("reservedFor") or ()
        if user.get("resource") == "pods"
    }
    found: dict[str, str] = {}
    for pod in pods:
        spec, place = pod["spec"], (pod["metadata"]["namespace"], pod["metadata"]["name"])
        containers = [*spec.get("containers", ()), *(spec.get("initContainers") or ())]
        limits = {name for one in containers for name in one.get("resources", {}).get("limits") or ()}
        if spec.get("nodeName") and (GPU in limits or place in by_claim or any(map(_is_mig, limits))):
            found.setdefault(spec["nodeName"], "/".join(place))
    return found


def _takes_gpus(claim: Object) -> bool:
    """Whether a claim has been given GPUs."""
    given = (claim.get("status", {}).get("allocation") or {}).get("devices", {}).get("results") or ()
    return any(one.get("driver") == _DRIVER for one in given)


def _is_mig(resource: str) -> bool:
    return resource.startswith(_MIG)


def running_pods(api: Api) -> list[Object]:
    """The pods of the cluster that may hold GPUs, page by page: of them only what says so is kept."""
    running = "status.phase!=Succeeded,status.phase!=Failed"
    return [_gpu_part(pod) for pod in _pages(api, "/api/v1/pods", fieldSelector=running)]


def claims(api: Api, evidence: Evidence) -> list[Object]:
    """The ResourceClaims of the cluster; none where it has none, or this identity may not read them."""
    versions = evidence.about.get("dra_versions") or ()
    try:
        return list(_pages(api, f"/apis/resource.k8s.io/{versions[0]}/resourceclaims")) if versions else []
    except ApiError as error:
        if error.missing or error.forbidden:
            return []
        raise


def _pages(api: Api, path: str, **query: str) -> Iterator[Object]:
    asked = {**query, "limit": str(_PAGE)}
    while True:
        page = api.get(path, **asked)
        yield from page.get("items") or ()
        token = page.get("metadata", {}).get("continue")
        if not token:
            return
        asked["continue"] = token


def _gpu_part(pod: Object) -> Object:
    meta, spec = pod["metadata"], pod["spec"]
    kept = {"nodeName": spec.get("nodeName")}
    for part in ("containers", "initContainers"):
        kept[part] = [
            {"resources": {"limits": (one.get("resources") or {}).get("limits")}} for one in spec.get(part) or ()
        ]
    return {"metadata": {key: meta.get(key) for key in ("name", "namespace", "labels")}, "spec": kept}
