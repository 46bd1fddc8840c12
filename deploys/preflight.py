"""What must hold before the first change. A refusal names the cause and what to change, and has changed nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address, ip_network
from typing import Any

from gpuready.charts_values import bill, fields
from gpuready.charts_values.bill import Release
from gpuready.charts_values.errors import InputError, RefusedError
from gpuready.charts_values.inventory import Cluster
from gpuready.charts_values.versions import Bound, dra_shortfalls, satisfies

from .charts import Chart
from .survey import Survey

Values = Mapping[str, Any]
_NETWORK_KEYS = (
    "ipam",
    "cluster-pool-ipv4-cidr",
    "cluster-pool-ipv4-mask-size",
    "routing-mode",
    "tunnel-protocol",
    "kube-proxy-replacement",
)
# Older Cilium had more words for it.
_KUBE_PROXY = {"true": "true", "strict": "true"}
_WHOLE_TEN = ip_network("10.0.0.0/8")


def check(cluster: Cluster, survey: Survey, planned: Sequence[Release], values: Mapping[str, Values]) -> list[str]:
    """Every rule that needs no chart, in order. Returns notes for the user; raises RefusedError.

    ``values`` are those of the planned releases, by their keys.
    """
    identity(cluster, survey)
    networks(cluster)
    live_addresses(cluster, survey)
    room_for_nodes(survey, values.get("cilium", {}))
    live_network(survey, values.get("cilium", {}))
    for release in planned:
        if problem := bill.unsupported(release, survey.version):
            raise RefusedError(f"{problem}; choose another version in charts_values/charts.yaml")
    rdma(cluster)
    return [*nodes(cluster, survey), *dra(cluster, survey)]


def identity(cluster: Cluster, survey: Survey) -> None:
    """The cluster is the one that `cluster_uid` pins: credentials often point to another than one thinks."""
    if cluster.cluster_uid and cluster.cluster_uid != survey.uid:
        raise RefusedError(
            f"{survey.server} is cluster {survey.uid}, inventory pins {cluster.name!r} to {cluster.cluster_uid}; "
            "check kubeconfig and context, or `cluster_uid`"
        )


def networks(cluster: Cluster) -> None:
    """Pod, service, node and rail networks are apart from one another."""
    if ip_network(cluster.pod_cidr) == _WHOLE_TEN:
        raise RefusedError("`pod_cidr` is 10.0.0.0/8, which swallows node and rail networks; give a smaller one")
    named = [("pod_cidr", cluster.pod_cidr), ("service_cidr", cluster.service_cidr)]
    named += [("node_cidrs", cidr) for cidr in cluster.node_cidrs]
    named += [("rail_cidrs", cidr) for cidr in cluster.rail_cidrs]
    for index, (key, cidr) in enumerate(named):
        for other_key, other in named[index + 1 :]:
            if key != other_key and ip_network(cidr).overlaps(ip_network(other)):
                raise RefusedError(
                    f"`{key}` {cidr} overlaps `{other_key}` {other} in inventory, cluster {cluster.name!r}"
                )


def live_addresses(cluster: Cluster, survey: Survey) -> None:
    """The addresses in use agree with the networks of inventory."""
    elsewhere = [("pod_cidr", cluster.pod_cidr), ("service_cidr", cluster.service_cidr)]
    elsewhere += [("rail_cidrs", cidr) for cidr in cluster.rail_cidrs]
    for key, cidr in elsewhere:
        network = ip_network(cidr)
        for node in survey.nodes:
            for address in _internal_addresses(node):
                if ip_address(address) in network:
                    raise RefusedError(
                        f"node {node['metadata']['name']} has address {address}, which lies in `{key}` {cidr}; "
                        f"correct `{key}` in inventory"
                    )
    if survey.service_ip and ip_address(survey.service_ip) not in ip_network(cluster.service_cidr):
        raise RefusedError(
            f"`service_cidr` is {cluster.service_cidr}, but Service kubernetes has address {survey.service_ip}; "
            "give the range that the API server runs with"
        )


def room_for_nodes(survey: Survey, cilium: Values) -> None:
    """The pod CIDR holds one block per node: Cilium gives every node a block of its own.

    Raises InputError where its values are none.
    """
    operator = _pool(cilium)
    where, cidrs, mask = "values of cilium", "clusterPoolIPv4PodCIDRList", operator.get("clusterPoolIPv4MaskSize", 24)
    listed = fields.strings(where, cidrs, operator.get(cidrs, ()))
    for cidr in listed:
        fields.cidr(where, cidrs, cidr)
    if not str(mask).isdecimal():
        raise InputError(f"{where}: `clusterPoolIPv4MaskSize` is {mask!r}; it is a whole number")
    size, pools = int(mask), [ip_network(cidr) for cidr in listed]
    room = sum(2 ** max(0, size - pool.prefixlen) for pool in pools if pool.prefixlen <= size)
    if pools and room < len(survey.nodes):
        raise RefusedError(
            f"pod CIDR {', '.join(map(str, pools))} has room for {room} nodes with /{size} each, the cluster has "
            f"{len(survey.nodes)}; give a wider `pod_cidr`, or ipam.operator.clusterPoolIPv4MaskSize in the "
            "values of cilium"
        )


def live_network(survey: Survey, cilium: Values) -> None:
    """IPAM and routing of a running Cilium stay as they are: a change cuts every pod off."""
    live = survey.cilium_config
    if live is None:
        return
    operator = _pool(cilium)
    wanted = {
        "ipam": cilium.get("ipam", {}).get("mode"),
        "cluster-pool-ipv4-cidr": " ".join(operator.get("clusterPoolIPv4PodCIDRList", ())),
        "cluster-pool-ipv4-mask-size": operator.get("clusterPoolIPv4MaskSize"),
        "routing-mode": cilium.get("routingMode"),
        "kube-proxy-replacement": str(cilium.get("kubeProxyReplacement", "")).lower(),
    }
    live = {**live, "kube-proxy-replacement": _KUBE_PROXY.get(live.get("kube-proxy-replacement", ""), "false")}
    for key, value in wanted.items():
        if value and key in live and live[key] != str(value):
            raise RefusedError(
                f"Cilium runs with {key} {live[key]}, the values say {value}; the installer never changes this "
                "on a live cluster, so put the running value into inventory or the values of cilium"
            )


def edited_network(survey: Survey, manifest: Sequence[Mapping[str, Any]]) -> None:
    """The network's part of cilium-config is what the release (its ``manifest``) made of it.

    Which of the two the agents run by, nobody knows from here; so neither is made to follow the other.
    """
    config = next((one for one in manifest if _is_config(one)), None)
    for key in _NETWORK_KEYS:
        made, live = ((data or {}).get(key) for data in ((config or {}).get("data"), survey.cilium_config))
        if made is not None and live is not None and made != live:
            raise RefusedError(
                f"ConfigMap kube-system/cilium-config says {key} {live}, and release cilium made it {made}: it was "
                "edited by hand; the installer never changes this on a live cluster, so put it back by kubectl edit"
            )


def chart_range(release: Release, chart: Chart, survey: Survey) -> str | None:
    """The kubeVersion of the chart at hand. Returns a note where only Helm can read it; raises RefusedError."""
    try:
        if chart.kube_range is None or satisfies(survey.version, chart.kube_range):
            return None
    except InputError as error:
        return f"{release.title}: {error}; helm will judge it"
    raise RefusedError(
        f"{release.title}: the chart in {chart.path} takes Kubernetes {chart.kube_range}, "
        f"the server has {survey.version}"
    )


def nodes(cluster: Cluster, survey: Survey) -> Iterable[str]:
    """Each group has nodes; those that are missing are named, and left to acceptance."""
    for group in cluster.groups:
        mine = [node["metadata"]["name"] for node in survey.nodes if group.holds(node)]
        if not mine and group.capacity != "spot":
            how = f"labels {dict(group.selector)}" if not group.nodes else f"names {', '.join(group.nodes)}"
            raise RefusedError(
                f"group {group.name!r} of inventory has no node in the cluster ({how}); join the nodes or correct it"
            )
        if len(mine) < group.count:
            missing = " ".join(sorted(set(group.nodes) - set(mine)))
            yield (
                f"group {group.name!r} has {len(mine)} of {group.count} nodes in the cluster"
                + (f"; missing: {missing}" if missing else "")
            )


def dra(cluster: Cluster, survey: Survey) -> Iterable[str]:
    """Kubernetes and the driver are new enough for the DRA mode."""
    if cluster.dra == "off":
        return
    if not survey.dra_served:
        raise RefusedError(
            f"`dra` is {cluster.dra}, but the API server does not serve resource.k8s.io; set `dra` to off in inventory"
        )
    for bound in dra_shortfalls(cluster.dra, survey.version, cluster.driver_version):
        line = _shortfall(bound, cluster, survey)
        if bound.refuse:
            raise RefusedError(f"{line}; raise it, or set `dra` to off in inventory")
        yield line


def rdma(cluster: Cluster) -> None:
    """A RoCE rail works in a pod only with its network device; the RDMA device alone ends in TCP."""
    for group in cluster.groups:
        if group.rdma == "roce" and not group.networks and not group.host_network:
            raise RefusedError(
                f"group {group.name!r} uses RoCE, and inventory does not say how pods get the rails' network devices; "
                "name them in `networks` ({'rail-0': {'interface': 'ens1f0np0'}, ...}), or set `host_network`"
            )


def _shortfall(bound: Bound, cluster: Cluster, survey: Survey) -> str:
    kubernetes = bound.of == "kubernetes"
    what = f"Kubernetes {survey.version}" if kubernetes else f"driver {cluster.driver_version}"
    return f"`dra` is {cluster.dra}: {what} is below {bound.below}, {bound.why} ({bound.source})"


def _is_config(item: Mapping[str, Any]) -> bool:
    return bool(item.get("kind") == "ConfigMap" and item["metadata"]["name"] == "cilium-config")


def _pool(cilium: Values) -> Values:
    """Where the pod addresses come from when Cilium gives them out; empty with another IPAM mode."""
    ipam = cilium.get("ipam", {})
    found: Values = ipam.get("operator", {}) if ipam.get("mode") == "cluster-pool" else {}
    return found


def _internal_addresses(node: Mapping[str, Any]) -> list[str]:
    listed = node.get("status", {}).get("addresses") or []
    return [one["address"] for one in listed if one["type"] == "InternalIP"]
