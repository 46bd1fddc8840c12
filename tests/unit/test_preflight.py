"""Each refusal before a change, and its healthy twin."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from gpuready.charts_values import bill, inventory, values
from gpuready.charts_values.errors import RefusedError
from gpuready.charts_values.inventory import Cluster
from gpuready.deploys import preflight, survey
from gpuready.deploys.survey import Survey

ENTRY: dict[str, Any] = {
    "pod_cidr": "10.244.0.0/16",
    "service_cidr": "10.96.0.0/16",
    "node_cidrs": ["192.168.0.0/16"],
    "rail_cidrs": ["172.16.0.0/16"],
    "cluster_uid": "u-1",
    "api_server": "192.168.0.1:6443",
    "driver_version": "580.173.02",
    "dra": "compute-domains",
    "groups": {
        "h100": {
            "nodes": ["gpu-0", "gpu-1"],
            "gpu_product": "NVIDIA-H100-80GB-HBM3",
            "resources": {"nvidia.com/gpu": 8, "rdma/rdma_shared_device_a": 63},
            "rdma": "ib",
        }
    },
}


def node(name: str, address: str = "192.168.0.10", taints: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "labels": {}},
        "spec": {"taints": [{"key": key, "effect": "NoSchedule"} for key in taints]},
        "status": {"addresses": [{"type": "Hostname", "address": name}, {"type": "InternalIP", "address": address}]},
    }


HEALTHY = Survey(
    server="https://192.168.0.1:6443",
    version="v1.35.4",
    uid="u-1",
    nodes=(node("cp-0", taints=("node-role.kubernetes.io/control-plane",)), node("gpu-0"), node("gpu-1")),
    kube_proxy=False,
    cilium_config=None,
    service_ip="10.96.0.1",
    dra_served=True,
    releases={},
)


def cluster(**changes: Any) -> Cluster:
    return inventory.parse("lab", {**ENTRY, **changes})


def run(cluster: Cluster, seen: Survey) -> list[str]:
    planned = bill.releases(cluster)
    facts = survey.observed(cluster, seen)
    wanted = {one.name: values.values(one, cluster, facts) for one in planned}
    return preflight.check(cluster, seen, planned, wanted)


def seen(**changes: Any) -> Survey:
    return dataclasses.replace(HEALTHY, **changes)


def test_a_sound_cluster_passes_without_a_word() -> None:
    assert run(cluster(), HEALTHY) == []


@pytest.mark.parametrize(
    ("entry", "cluster_changes", "line"),
    [
        ({"cluster_uid": "u-2"}, {}, "is cluster u-1, inventory pins 'lab' to u-2"),
        ({"pod_cidr": "10.0.0.0/8"}, {}, "`pod_cidr` is 10.0.0.0/8"),
        ({"service_cidr": "10.244.128.0/20"}, {}, "`pod_cidr` 10.244.0.0/16 overlaps `service_cidr` 10.244.128.0/20"),
        ({"node_cidrs": ["10.244.9.0/24"]}, {}, "`pod_cidr` 10.244.0.0/16 overlaps `node_cidrs` 10.244.9.0/24"),
        ({"rail_cidrs": ["10.96.9.0/24"]}, {}, "`service_cidr` 10.96.0.0/16 overlaps `rail_cidrs` 10.96.9.0/24"),
        ({"rail_cidrs": ["192.168.9.0/24"]}, {}, "`node_cidrs` 192.168.0.0/16 overlaps `rail_cidrs` 192.168.9.0/24"),
        ({}, {"nodes": (node("gpu-0", "10.244.3.4"), node("gpu-1"))}, "node gpu-0 has address 10.244.3.4, which lies"),
        ({}, {"nodes": (node("gpu-0", "172.16.0.4"), node("gpu-1"))}, "which lies in `rail_cidrs` 172.16.0.0/16"),
        ({}, {"service_ip": "10.43.0.1"}, "`service_cidr` is 10.96.0.0/16, but Service kubernetes has"),
        ({"pod_cidr": "10.244.0.0/23"}, {}, "has room for 2 nodes with /24 each, the cluster has 3"),
        ({}, {"version": "v1.36.2"}, "Network Operator 26.4.1 is documented for Kubernetes 1.31 to 1.35"),
        ({}, {"version": "v1.31.9"}, "DRA driver 0.4.0 takes Kubernetes >=1.32.0-0"),
        ({}, {"dra_served": False}, "the API server does not serve resource.k8s.io"),
        ({"driver_version": "570.124.06"}, {}, "driver 570.124.06 is below 570.158.01"),
        ({}, {"nodes": (node("cp-0"), node("gpu-9"))}, "group 'h100' of inventory has no node in the cluster"),
    ],
)
def test_refusals(entry: dict[str, Any], cluster_changes: dict[str, Any], line: str) -> None:
    with pytest.raises(RefusedError) as refused:
        run(cluster(**entry), seen(**cluster_changes))
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("entry", "cluster_changes", "note"),
    [
        ({}, {"nodes": (node("gpu-0"),)}, "group 'h100' has 1 of 2 nodes in the cluster; missing: gpu-1"),
        ({}, {"version": "v1.34.1"}, "Kubernetes v1.34.1 is below 1.34.2"),
        ({"driver_version": "570.158.01"}, {}, "driver 570.158.01 is below 580"),
    ],
)
def test_notes(entry: dict[str, Any], cluster_changes: dict[str, Any], note: str) -> None:
    (found,) = run(cluster(**entry), seen(**cluster_changes))
    assert note in found


def test_roce_without_a_way_to_the_rails_is_refused() -> None:
    groups = {"h100": {**ENTRY["groups"]["h100"], "rdma": "roce"}}
    with pytest.raises(RefusedError, match="how pods get the rails' network devices; name them in `networks`"):
        run(cluster(groups=groups), HEALTHY)
    groups["h100"]["host_network"] = True
    assert run(cluster(groups=groups), HEALTHY) == []


def test_a_spot_group_may_be_empty() -> None:
    spot = {**ENTRY["groups"]["h100"], "nodes": ["spot-0", "spot-1"], "capacity": "spot"}
    found = run(cluster(groups={**ENTRY["groups"], "spot": spot}), HEALTHY)
    assert found == ["group 'spot' has 0 of 2 nodes in the cluster; missing: spot-0 spot-1"]


LIVE = {
    "ipam": "cluster-pool",
    "cluster-pool-ipv4-cidr": "10.244.0.0/16",
    "cluster-pool-ipv4-mask-size": "24",
    "kube-proxy-replacement": "true",
    "routing-mode": "tunnel",
}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"cluster-pool-ipv4-cidr": "10.42.0.0/16"}, "Cilium runs with cluster-pool-ipv4-cidr 10.42.0.0/16"),
        ({"ipam": "kubernetes"}, "Cilium runs with ipam kubernetes, the values say cluster-pool"),
        ({"cluster-pool-ipv4-mask-size": "25"}, "Cilium runs with cluster-pool-ipv4-mask-size 25"),
    ],
)
def test_a_live_network_is_never_changed(change: dict[str, str], line: str) -> None:
    assert run(cluster(), seen(cilium_config=LIVE)) == []
    with pytest.raises(RefusedError, match=line):
        run(cluster(), seen(cilium_config=LIVE | change))


def test_kube_proxy_mode_of_a_live_cilium_stays() -> None:
    # kube-proxy went away, or came: Cilium goes on as it runs.
    beside = seen(cilium_config=LIVE | {"kube-proxy-replacement": "false"}, kube_proxy=False)
    assert survey.observed(cluster(), beside).kube_proxy is True
    instead = seen(cilium_config=LIVE, kube_proxy=True)
    assert survey.observed(cluster(), instead).kube_proxy is False
    assert survey.observed(cluster(), seen(kube_proxy=True)).kube_proxy is True


@pytest.mark.parametrize(
    ("given", "server", "host", "port"),
    [
        ("192.0.2.5:8443", "https://127.0.0.1:1", "192.0.2.5", 8443),
        ("api.lab.example", "https://127.0.0.1:1", "api.lab.example", 6443),
        ("https://api.lab.example", "https://127.0.0.1:1", "api.lab.example", 443),
        ("[2001:db8::1]:6443", "https://127.0.0.1:1", "2001:db8::1", 6443),
        ("", "https://10.1.2.3:6443", "10.1.2.3", 6443),
        ("", "https://api.lab.example", "api.lab.example", 443),
    ],
)
def test_address_of_the_api_for_cilium(given: str, server: str, host: str, port: int) -> None:
    found = survey.observed(cluster(api_server=given), seen(server=server))
    assert (found.api_host, found.api_port) == (host, port)


@pytest.mark.parametrize("server", ["https://127.0.0.1:6443", "https://localhost:6443", "https://[::1]:6443"])
def test_agents_cannot_use_a_tunnel_of_this_machine(server: str) -> None:
    with pytest.raises(RefusedError, match="give `api_server`"):
        survey.observed(cluster(api_server=""), seen(server=server))
    # A kube-proxy gives the agents the Service address, and a rehearsal has no agents.
    assert survey.observed(cluster(api_server=""), seen(server=server, kube_proxy=True)).kube_proxy
    assert survey.observed(cluster(api_server="", rehearsal=True), seen(server=server)).api_port == 6443


def test_operator_nodes_are_those_without_foreign_taints() -> None:
    nodes = (
        node("cp-0", taints=("node-role.kubernetes.io/control-plane", "node.cilium.io/agent-not-ready")),
        node("gpu-0", taints=("nvidia.com/gpu",)),
        node("cpu-0", taints=("node.kubernetes.io/not-ready",)),
    )
    assert survey.observed(cluster(), seen(nodes=nodes)).operator_nodes == 2


def test_k3s_runs_its_kube_proxy_inside() -> None:
    plain, without = node("a"), node("b")
    without["metadata"]["annotations"] = {"k3s.io/node-args": '["server","--disable-kube-proxy"]'}
    k3s, kubeadm = cluster(platform="k3s"), cluster()
    assert survey.kube_proxy(None, k3s, [plain]) is True
    assert survey.kube_proxy(None, k3s, [plain, without]) is False
    assert survey.kube_proxy(None, kubeadm, [plain]) is False
    assert survey.kube_proxy({"kind": "DaemonSet"}, kubeadm, [plain]) is True


def test_room_matters_only_where_cilium_gives_out_the_addresses() -> None:
    ipam = {"operator": {"clusterPoolIPv4PodCIDRList": ["10.244.0.0/24"], "clusterPoolIPv4MaskSize": 24}}
    preflight.room_for_nodes(HEALTHY, {"ipam": {"mode": "kubernetes", **ipam}})
    with pytest.raises(RefusedError, match="has room for 1 nodes"):
        preflight.room_for_nodes(HEALTHY, {"ipam": {"mode": "cluster-pool", **ipam}})
