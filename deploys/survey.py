"""What the cluster is before anything is changed, read once at the start of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from gpuready.charts_values.bill import Release
from gpuready.charts_values.errors import ApiError, RefusedError
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


_RECORDS = "/api/v1/namespaces/kube-system/configmaps"
_RECORD = "gpuready-installs"
_GPU_POLICIES = {
    "ClusterPolicy": "/apis/nvidia.com/v1/clusterpolicies",
    "GPUCluster": "/apis/nvidia.com/v1alpha1/gpuclusters",
}
_NIC_POLICY = "/apis/mellanox.com/v1alpha1/nicclusterpolicies/nic-cluster-policy"
_BARE_METAL = "/apis/metal3.io/v1alpha1/baremetalhosts"


@dataclass(frozen=True)
class Survey:
    """One reading of the cluster.

    ``cilium_config`` is the data of ConfigMap kube-system/cilium-config, None where there is no Cilium.
    ``service_ip`` is the address of Service default/kubernetes, ``dra_served`` whether resource.k8s.io is.
    ``workloads`` are all DaemonSets and Deployments, ``groups`` the API groups, ``gpu_policies`` the objects that
    GPU Operators obey. ``virtual_clusters`` and ``bare_metal_hosts`` are names of what hosts of tenants have.
    ``installs`` maps the keys of releases that this installer made to ``name@namespace``.
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
    workloads: tuple[Object, ...] = ()
    groups: frozenset[str] = frozenset()
    gpu_policies: tuple[Object, ...] = ()
    nic_policy: Object | None = None
    virtual_clusters: tuple[str, ...] = ()
    bare_metal_hosts: tuple[str, ...] = ()
    installs: Mapping[str, str] = field(default_factory=dict)

    def ours(self, release: Release) -> bool:
        """Whether this installer made the release, or was about to."""
        return self.installs.get(release.key) == place(release)

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
        workloads=tuple(
            one
            for kind in ("daemonsets", "deployments")
            for one in api.list(f"/apis/apps/v1/{kind}", resourceVersion="")
        ),
        groups=frozenset(groups),
        gpu_policies=tuple(
            {**one, "kind": kind}
            for kind, path in _GPU_POLICIES.items()
            if "nvidia.com" in groups
            for one in (api.find(path) or {}).get("items") or ()
        ),
        nic_policy=api.find(_NIC_POLICY) if "mellanox.com" in groups else None,
        virtual_clusters=_names(api.list("/apis/apps/v1/statefulsets", labelSelector="app=vcluster")),
        bare_metal_hosts=_names((api.find(_BARE_METAL) or {}).get("items") or ()) if "metal3.io" in groups else (),
        installs=installs(api),
    )


def place(release: Release) -> str:
    """A release's name and namespace, as the record of installs holds them."""
    return f"{release.name}@{release.namespace}"


def installs(api: Api) -> dict[str, str]:
    """Which releases this installer made, by their keys."""
    return dict((api.find(f"{_RECORDS}/{_RECORD}") or {}).get("data") or {})


def record(api: Api, release: Release) -> None:
    """Note that a release is this installer's, before it is made: a cut-short installation is ours, too."""
    if installs(api).get(release.key) == place(release):
        return
    entry: Object = {"data": {release.key: place(release)}}
    try:
        api.patch(f"{_RECORDS}/{_RECORD}", entry, fieldManager="gpuready")
    except ApiError as error:
        if not error.missing:
            raise
        api.create(_RECORDS, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": _RECORD}, **entry})


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
        proxied = survey.cilium_config.get("kube-proxy-replacement") not in ("true", "strict")
    host, port = _api_address(cluster, survey.server)
    if not proxied and not cluster.rehearsal:
        give = f"give `api_server` (host:port) in inventory, cluster {cluster.name!r}"
        if _loopback(host):
            raise RefusedError(f"the API server is known as {host}:{port}, which no other node reaches; {give}")
        if not cluster.api_server and (path := urlsplit(survey.server).path.strip("/")):
            raise RefusedError(
                f"the API server is known as {survey.server}; Cilium's agents reach it by host and port alone, without "
                f"/{path}, so {give}, as nodes reach it past the proxy"
            )
    room = sum(_takes_operator(node) for node in survey.nodes)
    devices = " ".join(cluster.management_nics)
    return Observed(kube_proxy=proxied, api_host=host, api_port=port, operator_nodes=room, devices=devices)


def gpu_nodes(cluster: Cluster, nodes: tuple[Object, ...] | list[Object]) -> list[tuple[Object, Group]]:
    """The Node objects that belong to a group, with it, by name; spot nodes that are being taken away left out."""
    found = [(node, group) for node in nodes for group in cluster.groups if group.holds(node) and not group.away(node)]
    return sorted(found, key=lambda pair: str(pair[0]["metadata"]["name"]))


def _names(items: Iterable[Object]) -> tuple[str, ...]:
    return tuple(f"{one['metadata'].get('namespace', '')}/{one['metadata']['name']}" for one in items)


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
