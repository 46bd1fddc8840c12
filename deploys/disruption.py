"""Changes that take something from running pods: made under `maintenance` alone, otherwise shown and withheld.

The driver's pods, and those of OFED, are replaced one by one by their operators while `autoUpgrade` says so; nodes
outside a maintenance carry a label by which the operator skips them. Everything else of a run goes on.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpuready.charts_values.bill import Release
from gpuready.charts_values.errors import RefusedError
from gpuready.charts_values.inventory import Cluster
from gpuready.charts_values.kube import Api, Object
from gpuready.charts_values.versions import parts

from .changes import differences
from .helm import Installed
from .survey import gpu_nodes

Values = dict[str, Any]
Path = tuple[str, ...]

# By this label the operator leaves a node's driver as it is.
SKIP_LABEL = "nvidia.com/gpu-driver-upgrade.skip"
FIELD_MANAGER = "gpuready-maintenance"
STATE_LABEL = "nvidia.com/gpu-driver-upgrade-state"
_DRIVER_PODS = "app.kubernetes.io/component=nvidia-driver"
# What the template of the driver's pods is made of, in the values as in the ClusterPolicy; and what is not.
_DRIVER: tuple[Path, ...] = (("driver",), ("daemonsets",), ("hostPaths",))
_HARMLESS: tuple[Path, ...] = (("driver", "upgradePolicy"),)
_OFED: tuple[Path, ...] = (("ofedDriver",), ("tolerations",), ("nodeAffinity",))
_OFED_HARMLESS: tuple[Path, ...] = (("ofedDriver", "upgradePolicy"),)


@dataclass(frozen=True)
class Plan:
    """What is made of a release now: its chart version and values. ``withheld`` says what is not, one line each."""

    release: Release
    values: Values
    withheld: tuple[str, ...] = ()


@dataclass(frozen=True)
class DriverPod:
    """The driver on one node. ``current``: its pod is of the newest template."""

    node: str
    image: str
    current: bool
    ready: bool


def whole(cluster: Cluster, nodes: Iterable[Object]) -> bool:
    """Whether a maintenance covers the cluster: by ``*``, by its name, or by every GPU node's name."""
    named = set(cluster.maintenance)
    mine = {str(node["metadata"]["name"]) for node, _ in gpu_nodes(cluster, list(nodes))}
    return bool(named & {"*", cluster.name}) or (bool(mine) and mine <= named)


def maintained(cluster: Cluster, nodes: Iterable[Object]) -> set[str]:
    """The GPU nodes under maintenance, by name."""
    present = list(nodes)
    mine = {str(node["metadata"]["name"]) for node, _ in gpu_nodes(cluster, present)}
    return mine if whole(cluster, present) else mine & set(cluster.maintenance)


def check_names(cluster: Cluster, nodes: Iterable[Object]) -> None:
    """`maintenance` names the cluster, or nodes that are there; raises RefusedError."""
    present = list(nodes)
    known = {"*", cluster.name, *(str(node["metadata"]["name"]) for node in present)}
    known |= {name for group in cluster.groups for name in group.nodes} | set(cluster.ssh_nodes)
    for name in cluster.maintenance:
        if name not in known:
            raise RefusedError(
                f"`maintenance` names {name!r}, which is no node of cluster {cluster.name!r}; "
                f'name nodes, or write ["*"] for all of it'
            )


# -- releases -----------------------------------------------------------------------------------------------------


def plan(
    cluster: Cluster,
    nodes: Sequence[Object],
    release: Release,
    installed: Installed | None,
    before: Values,
    wanted: Values,
    restarts: Callable[[Release, Values], bool],
) -> Plan:
    """What may be made of a release now.

    ``installed`` is its last good revision and ``before`` that one's user values. ``restarts`` tells whether a
    chart with values would restart the driver on a node; it is asked only where values hint at it.
    """
    if installed is None:
        return Plan(release, wanted)
    withheld = []
    to_all = whole(cluster, nodes)
    there = installed.chart.removeprefix(f"{release.chart}-")
    if there != release.version and not to_all and (why := _why_not(cluster, release, there)):
        what = f"{release.title}: chart {there} -> {release.version}"
        withheld.append(_line(cluster, what, why, nodes_too=False))
        # What is recorded of the pinned chart does not hold for this one.
        release = dataclasses.replace(release, version=there, digest=None, chart_range=None, documented=None)
    if release.key == "gpu-operator" and not maintained(cluster, nodes):
        kept = keep_driver(before, wanted)
        if (said := differences(kept, wanted)) and restarts(release, wanted):
            why = "it restarts the driver on every GPU node"
            withheld.append(_line(cluster, f"{release.title}: {'; '.join(said)}", why))
            wanted = kept
    return Plan(release, wanted, tuple(withheld))


def edited(cluster: Cluster, live: Mapping[str, Any], made: Mapping[str, Any]) -> str:
    """That a ClusterPolicy edited by hand is not put back now: drivers run by it already."""
    mine = _only(made, _DRIVER, _HARMLESS)
    theirs = {key: value for key, value in _only(live, _DRIVER, _HARMLESS).items() if key in mine}
    said = [one for one in differences(theirs, mine) if not one.endswith("-> (none)")]
    return _line(cluster, f"ClusterPolicy, edited by hand: {'; '.join(said)}", "it restarts the driver once more")


def postponed(cluster: Cluster, plan: Plan, upgrade: Iterable[str]) -> str:
    """That Helm does not run now, since it would put back the driver of an edited ClusterPolicy."""
    why = "Helm would put back the driver that was edited by hand, which restarts it once more"
    return _line(cluster, f"{plan.release.title}: {'; '.join(upgrade)}", why)


def devices_kept(cluster: Cluster, there: str, wanted: str) -> str:
    """That a running Cilium keeps its devices, whatever `management_nics` says now."""
    return (
        f"Cilium: devices {there or '(found by itself)'} -> {wanted or '(found by itself)'}: withheld, since nodes "
        f"without such a device lose their network; to make it all the same, put `devices` into "
        f"charts_values/{cluster.name}/cilium.yaml"
    )


def keep_driver(before: Mapping[str, Any], wanted: Mapping[str, Any]) -> Values:
    """``wanted``, with what the driver's pods are made of as it was before."""
    return _keep(before, wanted, _DRIVER, _HARMLESS)


def same_driver(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether the spec ``one`` of a ClusterPolicy, which may say less than ``other``, makes the same driver pods."""
    return _within(_only(one, _DRIVER, _HARMLESS), other)


def driver_pods(api: Api, namespace: str) -> list[DriverPod]:
    """The driver's pods of the GPU Operator in ``namespace``."""
    query = {"labelSelector": _DRIVER_PODS, "resourceVersion": ""}
    sets = api.list(f"/apis/apps/v1/namespaces/{namespace}/daemonsets", **query)
    if not sets:
        return []
    revisions = api.list(f"/apis/apps/v1/namespaces/{namespace}/controllerrevisions", resourceVersion="")
    newest: dict[str, Object] = {}
    for one in revisions:
        for owner in one["metadata"].get("ownerReferences") or ():
            if one["revision"] > newest.get(owner["uid"], {}).get("revision", 0):
                newest[owner["uid"]] = one
    hashes = {uid: (one["metadata"].get("labels") or {}).get("controller-revision-hash") for uid, one in newest.items()}
    return [_driver_pod(pod, hashes) for pod in api.list(f"/api/v1/namespaces/{namespace}/pods", **query)]


def runs_version(pod: DriverPod, version: str) -> bool:
    """Whether a driver pod's image is of a driver version: its tag is the version, then the system's name."""
    tag = pod.image.partition("@")[0].rpartition(":")[2]
    return tag == version or tag.startswith(f"{version}-")


# -- OFED ---------------------------------------------------------------------------------------------------------


def nic_policy(
    cluster: Cluster, nodes: Sequence[Object], live: Object | None, wanted: Object
) -> tuple[Object, str | None]:
    """The NicClusterPolicy to apply now, and what of it is withheld: whatever restarts the NICs' driver."""
    wanted = copy.deepcopy(wanted)
    if whole(cluster, nodes):
        if "ofedDriver" in wanted["spec"]:
            wanted["spec"]["ofedDriver"].setdefault("upgradePolicy", {})["autoUpgrade"] = True
        return wanted, None
    if live is None or not ("ofedDriver" in wanted["spec"] or "ofedDriver" in live["spec"]):
        return wanted, None
    # Its upgrade policy alone would call for an OFED that was not there.
    harmless = _OFED_HARMLESS if "ofedDriver" in live["spec"] else ()
    kept = {**wanted, "spec": _keep(live["spec"], wanted["spec"], _OFED, harmless)}
    ours = _only(wanted["spec"], _OFED, _OFED_HARMLESS)
    gone = "ofedDriver" in live["spec"] and "ofedDriver" not in wanted["spec"]
    if _within(ours, live["spec"]) and not gone:
        return wanted, None
    title = f"{wanted['kind']} {wanted['metadata']['name']}"
    said = "; ".join(differences(_only(live["spec"], _OFED, _OFED_HARMLESS), ours))
    return kept, _line(cluster, f"{title}: {said}", "it restarts the NIC driver on every node", nodes_too=False)


# -- inside -------------------------------------------------------------------------------------------------------


def _why_not(cluster: Cluster, release: Release, there: str) -> str | None:
    """Why another chart of a release needs a maintenance; None where it does not."""
    if release.adopted:
        return "an adopted release stays at its chart"
    if release.key == "gpu-operator":
        return "another operator makes other driver pods"
    if release.key == "network-operator" and cluster.ofed_owner == "operator":
        return "another operator makes other OFED pods"
    if release.key == "cilium" and parts(there)[:2] != parts(release.version)[:2]:
        return "another minor restarts the network of every node"
    return None


def _line(cluster: Cluster, what: str, why: str, *, nodes_too: bool = True) -> str:
    names = ", or to names of nodes," if nodes_too else ""
    return (
        f"{what}: withheld, since {why}; to make it, set `maintenance` "
        f'to ["*"]{names} in inventory, cluster {cluster.name!r}'
    )


def _driver_pod(pod: Object, hashes: Mapping[str, str | None]) -> DriverPod:
    owner = next((one["uid"] for one in pod["metadata"].get("ownerReferences") or ()), "")
    mine = (pod["metadata"].get("labels") or {}).get("controller-revision-hash")
    conditions = pod.get("status", {}).get("conditions") or ()
    ready = any((one["type"], one["status"]) == ("Ready", "True") for one in conditions)
    current = mine is not None and hashes.get(owner) == mine and "deletionTimestamp" not in pod["metadata"]
    image = str(pod["spec"]["containers"][0]["image"])
    return DriverPod(str(pod["spec"].get("nodeName", "")), image, current, ready)


def _keep(
    before: Mapping[str, Any], wanted: Mapping[str, Any], branches: Iterable[Path], but: Iterable[Path]
) -> Values:
    """``wanted`` with ``branches`` as they were before; ``but`` lies within them and is taken as wanted."""
    result = copy.deepcopy(dict(wanted))
    for path in branches:
        _put(result, path, _at(before, path))
    for path in but:
        if (value := _at(wanted, path)) is not _NOTHING:
            _put(result, path, value)
    return result


def _only(tree: Mapping[str, Any], branches: Iterable[Path], but: Iterable[Path]) -> Values:
    """Just ``branches`` of a tree, without ``but``."""
    result = _keep(tree, {}, branches, ())
    for path in but:
        _put(result, path, _NOTHING)
    return result


_NOTHING = object()


def _at(tree: Mapping[str, Any], path: Path) -> Any:
    here: Any = tree
    for key in path:
        if not isinstance(here, Mapping) or key not in here:
            return _NOTHING
        here = here[key]
    return here


def _put(tree: Values, path: Path, value: Any) -> None:
    *above, last = path
    if value is _NOTHING:
        for key in above:
            if not isinstance(tree.get(key), dict):
                return
            tree = tree[key]
        tree.pop(last, None)
        return
    for key in above:
        tree = tree.setdefault(key, {})
    tree[last] = copy.deepcopy(value)


def _within(part: Any, tree: Any) -> bool:
    """Whether every leaf of ``part`` is so in ``tree``; a map or list of nothing is as good as none."""
    if isinstance(part, Mapping):
        return all(_within(value, tree.get(key) if isinstance(tree, Mapping) else None) for key, value in part.items())
    return bool(part == tree or (part in (None, "", []) and tree in (None, "", [])))
