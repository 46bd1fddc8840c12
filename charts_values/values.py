"""The values of a release: the packaged file, what inventory and the cluster imply, the cluster's own file.

Of a release that is taken over, the values it has come first, and only what must be is laid over them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from . import bill
from .bill import Release
from .errors import InputError
from .inventory import Cluster

Values = dict[str, Any]

GPU_TOLERATION = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
CONTROL_PLANE_TOLERATION = {
    "key": "node-role.kubernetes.io/control-plane",
    "operator": "Exists",
    "effect": "NoSchedule",
}
# A node on which DRA serves the GPUs; driver-manager evicts the plugin by it before it replaces the driver.
DRA_NODE_LABEL = "nvidia.com/dra-kubelet-plugin"


@dataclass(frozen=True)
class Observed:
    """What values depend on and only the cluster knows.

    ``kube_proxy``: one serves Services. ``api_host`` and ``api_port``: where Cilium's agents reach the API
    server without it. ``operator_nodes``: nodes that take a pod without a toleration for GPU taints. ``devices``: the
    network devices of Cilium's datapath, a space between; empty where it finds them itself.
    """

    kube_proxy: bool
    api_host: str
    api_port: int
    operator_nodes: int
    devices: str = ""


def merge(*layers: Mapping[str, Any]) -> Values:
    """The layers over one another: maps merge, anything else replaces, and None deletes what lay below."""
    merged: Values = {}
    for layer in layers:
        merged = _over(merged, layer)
    return merged


def values(release: Release, cluster: Cluster, observed: Observed | None = None) -> Values:
    """The user values that Helm is given.

    Without ``observed``, the keys that depend on it are left out. Raises InputError where the cluster's own
    file is not a YAML map.
    """
    return with_own(
        release.key, cluster, merge(bill.packaged_values(release.key), _implied(release, cluster, observed))
    )


def taken_over(release: Release, cluster: Cluster, observed: Observed | None, theirs: Mapping[str, Any]) -> Values:
    """The user values of an adopted release: ``theirs``, with what the platform cannot do without laid over.

    Their lists get our entries beside their own. What decides over the network of a running Cilium stays theirs.
    The cluster's own file has the last word here, too. Raises InputError as ``values`` does.
    """
    packaged = bill.packaged_values(release.key)
    firm: Values = {}
    for path in _FIRM.get(release.key, ()):
        firm = merge(firm, _branch(packaged, path.split(".")))
    implied = {} if release.key == "cilium" else _implied(release, cluster, observed)
    return with_own(release.key, cluster, _beside(theirs, merge(firm, implied)))


def own(name: str, cluster: Cluster) -> Values:
    """What ``charts_values/<cluster>/<name>.yaml`` beside `inventory` says; empty where there is no such file."""
    file = cluster.values_folder / f"{name}.yaml" if cluster.values_folder else None
    if file is None or not file.is_file():
        return {}
    return _read(file)


def with_own(name: str, cluster: Cluster, below: Mapping[str, Any]) -> Values:
    """``below`` with the cluster's own file over it; raises InputError where that has something else for a table."""
    above = own(name, cluster)
    if clash := _flattened(below, above):
        raise InputError(
            f"{cluster.values_folder}/{name}.yaml: `{clash}` must be a table of keys, or null to take it away"
        )
    return _over(below, above)


def documents(cluster: Cluster, observed: Observed | None = None) -> list[Values]:
    """One document per release, in install order: release, chart, version, namespace, values."""
    return [
        {
            "release": release.name,
            "chart": release.chart,
            "version": release.version,
            "namespace": release.namespace,
            "values": values(release, cluster, observed),
        }
        for release in bill.releases(cluster)
    ]


def text(cluster: Cluster, name: str | None = None) -> str:
    """The documents as YAML, or the one of release ``name``; raises InputError where there is none.

    Keys that are decided from the running cluster are named in a comment, since nothing is asked here.
    """
    keys = [release.key for release in bill.releases(cluster)]
    found = [(key, one) for key, one in zip(keys, documents(cluster), strict=True) if name in (None, key)]
    if not found:
        names = ", ".join(keys)
        raise InputError(f"cluster {cluster.name!r} has no release {name!r}; it has {names}")
    return "".join(f"---\n{_note(key)}{yaml.safe_dump(one, sort_keys=False, width=110)}" for key, one in found)


def tolerations(cluster: Cluster) -> list[dict[str, str]]:
    """For whatever must land on GPU nodes: nvidia.com/gpu, and each other taint of the groups."""
    tolerated = [dict(GPU_TOLERATION)]
    for taint in cluster.gpu_taints:
        if taint["key"] == GPU_TOLERATION["key"] and taint.get("effect") == GPU_TOLERATION["effect"]:
            continue
        exact = {"key": taint["key"], "operator": "Exists"}
        if taint.get("value"):
            exact = {"key": taint["key"], "operator": "Equal", "value": taint["value"]}
        if taint.get("effect"):
            exact["effect"] = taint["effect"]
        tolerated.append(exact)
    return tolerated


# Of the packaged values, those that a release taken over gets as well.
_FIRM: dict[str, tuple[str, ...]] = {
    "cilium": ("cni.exclusive", "rollOutCiliumPods", "operator.rollOutPods"),
    "node-feature-discovery": ("master.config.extraLabelNs", "worker.config.sources.pci"),
    "network-operator": ("nfd",),
    "gpu-operator": ("nfd", "driver.upgradePolicy"),
}


def _over(below: Mapping[str, Any], layer: Mapping[str, Any]) -> Values:
    """One layer over what lies below, whose own nulls stay: Helm keeps them, to delete a default of the chart."""
    merged = dict(below)
    for key, value in layer.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping):
            under = merged.get(key)
            merged[key] = _over(under if isinstance(under, Mapping) else {}, value)
        else:
            merged[key] = value
    return merged


def _implied(release: Release, cluster: Cluster, observed: Observed | None) -> Values:
    implied = _IMPLIED.get(release.key)
    return implied(cluster, observed) if implied else {}


def _flattened(below: Mapping[str, Any], above: Mapping[str, Any], path: tuple[str, ...] = ()) -> str:
    """The first path at which ``above`` has something else where ``below`` has a table; empty where there is none."""
    for key, value in above.items():
        here = below.get(key)
        if not isinstance(here, Mapping) or not here or value is None:
            continue
        if not isinstance(value, Mapping):
            return ".".join((*path, str(key)))
        if found := _flattened(here, value, (*path, str(key))):
            return found
    return ""


def _branch(tree: Mapping[str, Any], path: list[str]) -> Values:
    """The part of a tree at a path, in its place."""
    key, *rest = path
    if key not in tree:
        return {}
    return {key: _branch(tree[key], rest) if rest else tree[key]}


def _beside(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> Values:
    """Ours over theirs, lists united: an entry of a name replaces theirs of that name, others are added."""
    merged = dict(theirs)
    for key, value in ours.items():
        below = merged.get(key)
        if isinstance(value, Mapping):
            merged[key] = _beside(below if isinstance(below, Mapping) else {}, value)
        elif isinstance(value, list) and isinstance(below, list):
            names = {one["name"] for one in value if isinstance(one, Mapping) and "name" in one}
            kept = [one for one in below if not (isinstance(one, Mapping) and one.get("name") in names)]
            merged[key] = kept + [one for one in value if one not in kept and not _tolerated(one, kept)]
        else:
            merged[key] = value
    return merged


def _tolerated(one: Any, others: list[Any]) -> bool:
    """Whether a toleration says nothing that others do not say for every value and effect of its taint."""
    if not isinstance(one, Mapping) or one.get("operator") not in ("Exists", "Equal"):
        return False
    wide = (other for other in others if isinstance(other, Mapping) and other.get("operator") == "Exists")
    return any(not other.get("effect") and other.get("key", one.get("key")) == one.get("key") for other in wide)


def _cilium(cluster: Cluster, observed: Observed | None) -> Values:
    result: Values = {"ipam": {"operator": {"clusterPoolIPv4PodCIDRList": [cluster.pod_cidr]}}}
    if observed is None:
        return result
    # Two replicas keep apart by a hard anti-affinity: the second needs a node of its own.
    result["operator"] = {"replicas": 2 if observed.operator_nodes > 1 else 1}
    if observed.devices:
        # Otherwise it attaches its programs to every device with a route, rails included.
        result["devices"] = observed.devices
    if observed.kube_proxy:
        return result | {"kubeProxyReplacement": "false"}
    return result | {
        "kubeProxyReplacement": "true",
        "k8sServiceHost": observed.api_host,
        "k8sServicePort": observed.api_port,
    }


def _nfd(cluster: Cluster, observed: Observed | None) -> Values:
    return {"worker": {"tolerations": [dict(CONTROL_PLANE_TOLERATION), *tolerations(cluster)]}}


def _gpu_operator(cluster: Cluster, observed: Observed | None) -> Values:
    by_operator = cluster.driver_owner == "operator"
    driver: Values = {"enabled": by_operator, "version": cluster.driver_version}
    if cluster.maintenance:
        # The operator replaces the drivers node by node while a maintenance lasts.
        driver["upgradePolicy"] = {"autoUpgrade": True}
    if cluster.ofed_owner == "host":
        driver["rdma"] = {"useHostMofed": True}
    result: Values = {"daemonsets": {"tolerations": tolerations(cluster)}, "driver": driver}
    if cluster.dra == "gpus":
        result["devicePlugin"] = {"enabled": False}
        driver["manager"] = {"env": [{"name": "NODE_LABEL_FOR_GPU_POD_EVICTION", "value": DRA_NODE_LABEL}]}
    if cluster.platform == "k3s":
        # k3s runs a containerd of its own, with its own folder and socket.
        result["toolkit"] = {
            "env": [
                {
                    "name": "CONTAINERD_CONFIG",
                    "value": "/var/lib/rancher/k3s/agent/etc/containerd/config.toml",
                },
                {"name": "CONTAINERD_SOCKET", "value": "/run/k3s/containerd/containerd.sock"},
            ]
        }
    return result


def _dra_driver(cluster: Cluster, observed: Observed | None) -> Values:
    gpus = cluster.dra == "gpus"
    plugin: Values = {"tolerations": tolerations(cluster)}
    if gpus:
        plugin["nodeSelector"] = {DRA_NODE_LABEL: "true"}
    return {
        "nvidiaDriverRoot": "/run/nvidia/driver" if cluster.driver_owner == "operator" else "/",
        "gpuResourcesEnabledOverride": gpus,
        "resources": {"gpus": {"enabled": gpus}, "computeDomains": {"enabled": True}},
        "kubeletPlugin": plugin,
    }


_IMPLIED = {
    "cilium": _cilium,
    "node-feature-discovery": _nfd,
    "gpu-operator": _gpu_operator,
    "dra-driver-nvidia-gpu": _dra_driver,
}

_DECIDED_LATER = {
    "cilium": "operator.replicas, kubeProxyReplacement, k8sServiceHost, k8sServicePort and devices",
}


def _note(key: str) -> str:
    later = _DECIDED_LATER.get(key)
    return f"# The installer adds {later}: they follow from what runs in the cluster.\n" if later else ""


def _read(file: Path) -> Values:
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"{file} cannot be read as YAML: {' '.join(str(error).split())}") from error
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise InputError(f"{file} holds a {type(found).__name__}; values are a map of keys")
    return found
