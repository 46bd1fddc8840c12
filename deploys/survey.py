"""What the cluster is before anything is changed, read once at the start of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from gpuready.charts_values.bill import Release
from gpuready.charts_values.errors import RefusedError
from gpuready.charts_values.inventory import Cluster, Group
from gpuready.charts_values.kube import Api, Object
from gpuready.charts_values.values import Observed

from .helm import Helm, Installed

# What the Cilium operator's chart tolerates; it lands on nodes whose taints are all among these.
_OPERATOR_TOLERATES = (
    "node-role.kubernetes.io/control-plane",
    "node-role.kubernetes.io/master",
    "node.kubernetes.io/not-ready",
    "node.cloudprovider.kubernetes.io/uninitialized",
    "node.cilium.io/agent-not-ready",
)


@dataclass(frozen=True)
class Survey:
    """One reading of the cluster.

    ``cilium_config`` is the data of ConfigMap kube-system/cilium-config, None where there is no Cilium.
    ``service_ip`` is the address of Service default/kubernetes, ``dra_served`` whether resource.k8s.io is.
    """

    server: str
    version: str
    uid: str
    nodes: tuple[Object, ...]
    kube_proxy: bool
    cilium_config: Mapping[str, str] | None
    service_ip: str
    dra_served: bool
    releases: Mapping[tuple[str, str], Installed]

    def installed(self, release: Release) -> Installed | None:
        """The release as the cluster has it, in whatever state."""
        return self.releases.get((release.namespace, release.name))


def take(api: Api, helm: Helm, cluster: Cluster) -> Survey:
    """Read the cluster; changes nothing."""
    nodes = tuple(api.list("/api/v1/nodes"))
    config = api.find("/api/v1/namespaces/kube-system/configmaps/cilium-config")
    service = api.find("/api/v1/namespaces/default/services/kubernetes")
    groups = {group["name"] for group in api.get("/apis")["groups"]}
    return Survey(
        server=api.server,
        version=str(api.get("/version")["gitVersion"]),
        uid=api.get("/api/v1/namespaces/kube-system")["metadata"]["uid"],
        nodes=nodes,
        kube_proxy=kube_proxy(api.find("/apis/apps/v1/namespaces/kube-system/daemonsets/kube-proxy"), cluster, nodes),
        cilium_config=dict(config.get("data") or {}) if config else None,
        service_ip=service["spec"]["clusterIP"] if service else "",
        dra_served="resource.k8s.io" in groups,
        releases=helm.releases(),
    )


def kube_proxy(daemonset: Object | None, cluster: Cluster, nodes: Iterable[Object]) -> bool:
    """Whether a kube-proxy serves Services. k3s runs it inside its own process, and notes on the node if not."""
    if daemonset is not None or cluster.platform != "k3s":
        return daemonset is not None
    arguments = ((node["metadata"].get("annotations") or {}).get("k3s.io/node-args", "") for node in nodes)
    return not any("--disable-kube-proxy" in one for one in arguments)


def observed(cluster: Cluster, survey: Survey) -> Observed:
    """What values depend on. A live Cilium keeps its kube-proxy mode, whatever else is seen.

    Raises RefusedError where the agents would have no address of the API server.
    """
    proxied = survey.kube_proxy
    if survey.cilium_config is not None:
        proxied = survey.cilium_config.get("kube-proxy-replacement") != "true"
    host, port = _api_address(cluster, survey.server)
    if not proxied and not cluster.rehearsal and _loopback(host):
        raise RefusedError(
            f"the API server is known as {host}:{port}, which no other node reaches; "
            f"give `api_server` (host:port) in inventory, cluster {cluster.name!r}"
        )
    room = sum(_takes_operator(node) for node in survey.nodes)
    return Observed(kube_proxy=proxied, api_host=host, api_port=port, operator_nodes=room)


def gpu_nodes(cluster: Cluster, nodes: tuple[Object, ...] | list[Object]) -> list[tuple[Object, Group]]:
    """The Node objects that belong to a group, with it, by name."""
    found = [(node, group) for node in nodes for group in cluster.groups if group.holds(node)]
    return sorted(found, key=lambda pair: str(pair[0]["metadata"]["name"]))


def _api_address(cluster: Cluster, server: str) -> tuple[str, int]:
    address = urlsplit(cluster.api_server if "//" in cluster.api_server else f"//{cluster.api_server}")
    if not address.hostname:
        address = urlsplit(server)
    return address.hostname or "", address.port or (443 if address.scheme == "https" else 6443)


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _takes_operator(node: Mapping[str, Any]) -> bool:
    taints = node.get("spec", {}).get("taints") or []
    hard = (taint for taint in taints if taint.get("effect") != "PreferNoSchedule")
    return all(taint["key"] in _OPERATOR_TOLERATES for taint in hard)
