"""The values of a release: the packaged file, what inventory and the cluster imply, the cluster's own file."""

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
    server without it. ``operator_nodes``: nodes that take a pod without a toleration for GPU taints.
    """

    kube_proxy: bool
    api_host: str
    api_port: int
    operator_nodes: int


def merge(*layers: Mapping[str, Any]) -> Values:
    """The layers over one another: maps merge, anything else replaces, and None deletes what lay below."""
    merged: Values = {}
    for layer in layers:
        for key, value in layer.items():
            if value is None:
                merged.pop(key, None)
            elif isinstance(value, Mapping):
                below = merged.get(key)
                merged[key] = merge(below if isinstance(below, Mapping) else {}, value)
            else:
                merged[key] = value
    return merged


def values(release: Release, cluster: Cluster, observed: Observed | None = None) -> Values:
    """The user values that Helm is given.

    Without ``observed``, the keys that depend on it are left out. Raises InputError where the cluster's own
    file is not a YAML map.
    """
    implied = _IMPLIED.get(release.name)
    return merge(
        bill.packaged(f"{release.name}.yaml"),
        implied(cluster, observed) if implied else {},
        own(release.name, cluster),
    )


def own(name: str, cluster: Cluster) -> Values:
    """What ``charts_values/<cluster>/<name>.yaml`` beside `inventory` says; empty where there is no such file."""
    file = cluster.values_folder / f"{name}.yaml" if cluster.values_folder else None
    if file is None or not file.is_file():
        return {}
    return _read(file)


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
    found = [one for one in documents(cluster) if name in (None, one["release"])]
    if not found:
        names = ", ".join(release.name for release in bill.releases(cluster))
        raise InputError(f"cluster {cluster.name!r} has no release {name!r}; it has {names}")
    return "".join(f"---\n{_note(one)}{yaml.safe_dump(one, sort_keys=False, width=110)}" for one in found)


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


def _cilium(cluster: Cluster, observed: Observed | None) -> Values:
    result: Values = {"ipam": {"operator": {"clusterPoolIPv4PodCIDRList": [cluster.pod_cidr]}}}
    if observed is None:
        return result
    # Two replicas keep apart by a hard anti-affinity: the second needs a node of its own.
    result["operator"] = {"replicas": 2 if observed.operator_nodes > 1 else 1}
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
    "cilium": "operator.replicas, kubeProxyReplacement, k8sServiceHost and k8sServicePort",
}


def _note(document: Values) -> str:
    later = _DECIDED_LATER.get(document["release"])
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
