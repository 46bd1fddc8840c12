"""RoCE rails: how inventory names their networks, what is made of them, and the checks on rails and NVLink."""

from __future__ import annotations

import json
from typing import Any

import pytest
from gpuready.charts_values import inventory, resources
from gpuready.charts_values.errors import InputError
from gpuready.validators.acceptance.verdicts import RUN_LABEL, WORKLOAD_LABEL
from gpuready.validators.checks.network import rdma_allocatable
from gpuready.validators.checks.nvlink import nvlink
from gpuready.validators.checks.secondary import ATTACHMENTS, NETWORKS, secondary_networks
from gpuready.validators.evidence import Evidence
from gpuready.validators.expected import Expected
from gpuready.validators.model import Finding, Status

from .conftest import entry, gpu_node

RAILS = {"rail-0": {"interface": "ens1f0np0"}, "rail-1": {"interface": "ens2f0np0", "mtu": 9000}}
CIDRS = ["172.16.0.0/20", "172.16.16.0/20"]


def cluster(networks: Any = RAILS, *, rail_cidrs: Any = CIDRS, **group: Any) -> inventory.Cluster:
    """Two RoCE nodes with two rails."""
    groups = entry()["groups"]
    groups["h100"] |= {"rdma": "roce", "nics": 2, "networks": networks, **group}
    return inventory.parse("lab", entry(groups=groups, rail_cidrs=rail_cidrs, dra="off"))


def test_rails_take_their_networks_in_order() -> None:
    found = cluster().networks
    assert [(one.name, one.interface, one.cidr, one.mtu) for one in found] == [
        ("rail-0", "ens1f0np0", "172.16.0.0/20", 0),
        ("rail-1", "ens2f0np0", "172.16.16.0/20", 9000),
    ]


def test_the_networks_of_rails_count_as_rail_cidrs() -> None:
    rails = {"rail-0": {"interface": "a", "cidr": "172.20.0.0/20"}, "rail-1": {"interface": "b", "cidr": CIDRS[0]}}
    assert cluster(rails, rail_cidrs=[CIDRS[0]]).rail_cidrs == (CIDRS[0], "172.20.0.0/20")


@pytest.mark.parametrize(
    ("networks", "group", "line"),
    [
        ({"rail-0": {"interface": "a", "cidr": CIDRS[0]}}, {}, "`networks` names 1 rails and `nics` says 2"),
        (RAILS, {"rdma": "ib"}, "are for RoCE; `rdma` is 'ib'"),
        (RAILS, {"host_network": True}, "give `networks` or `host_network`, not both"),
        (["ens1f0np0", "ens2f0np0"], {}, "`networks` must be a table, not list"),
        ({"rail-0": "ens1", "rail-1": "ens2"}, {}, "network 'rail-0' is no table"),
        ({"Rail_0": {"interface": "a"}, "rail-1": {"interface": "b"}}, {}, "name must be one of Kubernetes"),
        ({"x/rail-0": {"interface": "a"}, "rail-1": {"interface": "b"}}, {}, "leave the namespace out"),
        ({"rail-0": {"master": "a"}, "rail-1": {}}, {}, "unknown key 'master'; known keys are cidr, gateway, int"),
        ({"rail-0": {"cidr": CIDRS[0]}, "rail-1": {}}, {}, "without it nothing is made"),
        ({"rail-0": {"interface": "a", "cidr": "172.16.0.0/33"}, "rail-1": {}}, {}, "`cidr` is '172.16.0.0/33'"),
        ({"rail-0": {"interface": "a", "cidr": "172.16.0.0/26"}, "rail-1": {}}, {}, "for 1 nodes, the group has 2"),
        ({"rail-0": {"interface": "a", "gateway": "10.0.0.1"}, "rail-1": {}}, {}, "is no address of 172.16.0.0/20"),
        ({"rail-0": {"interface": "a", "resource": "rdma/x"}, "rail-1": {}}, {}, "'rdma/x' is no rdma/* of"),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(networks: Any, group: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError) as caught:
        cluster(networks, **group)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_rail_without_a_network_of_its_own_needs_one() -> None:
    with pytest.raises(InputError, match="`cidr` is missing: give it, or one network per rail in `rail_cidrs`"):
        cluster(rail_cidrs=CIDRS[:1])


def test_groups_agree_on_a_network_that_they_share() -> None:
    groups = entry()["groups"]
    groups["h100"] |= {"rdma": "roce", "nics": 2, "networks": RAILS}
    groups["more"] = {**groups["h100"], "nodes": ["gpu-9"]}
    assert len(inventory.parse("lab", entry(groups=groups, rail_cidrs=CIDRS)).networks) == 2
    groups["more"]["networks"] = {**RAILS, "rail-1": {"interface": "ens9"}}
    with pytest.raises(InputError, match="groups describe network 'rail-1' differently"):
        inventory.parse("lab", entry(groups=groups, rail_cidrs=CIDRS))


@pytest.mark.parametrize(
    ("taint", "line"),
    [("nvidia.com/gpu", "a taint is a table"), ({"key": "x", "effect": "NoRun"}, "'x' has `effect` 'NoRun'; it may")],
)
def test_taints_are_those_of_kubernetes(taint: Any, line: str) -> None:
    with pytest.raises(InputError, match=line):
        cluster(taints=[taint])


# -- what is made of it ------------------------------------------------------------------------------------------


def test_each_rail_gets_a_pool_and_a_network() -> None:
    policy, *rest = resources.custom_resources(cluster())
    assert [(one["kind"], one["metadata"]["name"]) for one in rest] == [
        ("IPPool", "rail-0"),
        ("IPPool", "rail-1"),
        ("MacvlanNetwork", "rail-0"),
        ("MacvlanNetwork", "rail-1"),
    ]
    assert rest[0]["metadata"]["namespace"] == "nvidia-network-operator"
    assert (rest[0]["spec"]["subnet"], rest[0]["spec"]["perNodeBlockSize"]) == ("172.16.0.0/20", 32)
    assert rest[3]["spec"] == {
        "networkNamespace": "default",
        "master": "ens2f0np0",
        "mode": "bridge",
        "mtu": 9000,
        "ipam": '{"type": "nv-ipam", "poolName": "rail-1"}',
    }
    assert set(policy["spec"]["secondaryNetwork"]) == {"multus", "cniPlugins"}
    assert policy["spec"]["nvIpam"]["enableWebhook"] is False


def test_networks_of_the_users_own_are_left_alone() -> None:
    (policy,) = resources.custom_resources(cluster({"fabric/rail-0": {}, "fabric/rail-1": {}}))
    assert not {"secondaryNetwork", "nvIpam"} & policy["spec"].keys()


def devices(promised: inventory.Cluster) -> Any:
    policy = resources.custom_resources(promised)[0]
    return json.loads(policy["spec"]["rdmaSharedDevicePlugin"]["config"])["configList"]


def test_named_interfaces_are_the_selector() -> None:
    assert devices(cluster()) == [
        {
            "resourceName": "rdma_shared_device_a",
            "rdmaHcaMax": 63,
            "selectors": {"vendors": ["15b3"], "ifNames": ["ens1f0np0", "ens2f0np0"]},
        }
    ]


def test_each_rail_may_have_a_resource_of_its_own() -> None:
    rails = {name: {**value, "resource": f"rdma/{name}"} for name, value in RAILS.items()}
    promised = cluster(rails, resources={"nvidia.com/gpu": 8, "rdma/rail-0": 63, "rdma/rail-1": 63})
    assert [(one["resourceName"], one["selectors"]["ifNames"]) for one in devices(promised)] == [
        ("rail-0", ["ens1f0np0"]),
        ("rail-1", ["ens2f0np0"]),
    ]


def test_a_resource_that_no_rail_names_is_refused() -> None:
    rails = {name: {**value, "resource": "rdma/rail-0"} for name, value in RAILS.items()}
    promised = cluster(rails, resources={"nvidia.com/gpu": 8, "rdma/rail-0": 63, "rdma/rail-1": 63})
    with pytest.raises(InputError, match="name the `interface` and `resource` of each rail"):
        resources.custom_resources(promised)


# -- checks ------------------------------------------------------------------------------------------------------


def test_a_node_has_one_verdict_on_all_its_rdma_resources() -> None:
    rails = {name: {**value, "resource": f"rdma/{name}"} for name, value in RAILS.items()}
    expected = Expected.of(cluster(rails, resources={"nvidia.com/gpu": 8, "rdma/rail-0": 63, "rdma/rail-1": 63}))
    good, bad = gpu_node("gpu-0"), gpu_node("gpu-1")
    good["status"]["allocatable"] = {"rdma/rail-0": "63", "rdma/rail-1": "63"}
    bad["status"]["allocatable"] = {"rdma/rail-0": "0", "rdma/rail-1": "0"}
    found = list(rdma_allocatable(expected, Evidence(cluster={"nodes": [good, bad]})))
    assert [(one.status, one.detail.partition(";")[0]) for one in found] == [
        (Status.PASS, "rdma/rail-0 63, rdma/rail-1 63"),
        (Status.FAIL, "rdma/rail-0 and 1 more: 0 of 63"),
    ]


def evidence_of(state: str = "ready", master: str = "ens2f0np0", attachments: int = 2) -> Evidence:
    networks = [
        {"metadata": {"name": "rail-0"}, "spec": {"master": "ens1f0np0"}, "status": {"state": "ready"}},
        {"metadata": {"name": "rail-1"}, "spec": {"master": master}, "status": {"state": state, "reason": "why"}},
    ]
    made = [{"metadata": {"name": f"rail-{index}", "namespace": "default"}} for index in range(attachments)]
    return Evidence(cluster={NETWORKS: networks, ATTACHMENTS: made})


def judged(evidence: Evidence, promised: inventory.Cluster) -> list[Finding]:
    return list(secondary_networks(Expected.of(promised), evidence))


def test_networks_that_are_there_pass() -> None:
    found = judged(evidence_of(), cluster())
    assert [(one.status, one.detail) for one in found] == [
        (Status.PASS, "default/rail-0 on ens1f0np0"),
        (Status.PASS, "default/rail-1 on ens2f0np0"),
    ]


@pytest.mark.parametrize(
    ("evidence", "reason", "detail"),
    [
        (evidence_of(attachments=1), "NoAttachment", ""),
        (evidence_of(state="error"), "NetworkDiffers", "MacvlanNetwork rail-1 is error: why"),
        (evidence_of(master="ens9"), "NetworkDiffers", "MacvlanNetwork rail-1 is on ens9"),
        (Evidence(), "NoAttachment", "no MacvlanNetwork rail-1"),
    ],
)
def test_a_rail_without_its_network_fails(evidence: Evidence, reason: str, detail: str) -> None:
    last = judged(evidence, cluster())[-1]
    assert (last.status, last.reason, last.detail, last.subject.name) == (Status.FAIL, reason, detail, "rail-1")


def test_without_networks_there_is_nothing_to_judge(expected: Expected) -> None:
    assert [one.status for one in secondary_networks(expected, Evidence())] == [Status.SKIP]


def nccl_evidence(via: str, domain: str = "rack.0") -> Evidence:
    """An all-reduce over two nodes whose channels all take ``via``."""
    lines = []
    for number, host in enumerate(("a", "b")):
        start = f"{host}:10:11 [0] NCCL INFO"
        path = f"Channel 00/0 : {number}[0] -> {1 - number}[0]"
        lines += [
            f"{start} ncclCommInitRank comm 0x1 rank {number} nranks 2 cudaDev 0 busId 1 commId 0x2 - Init COMPLETE",
            f"{start} comm 0x1 rank {number} nRanks 2 nNodes 2 localRanks 1 localRank 0 MNNVL 1",
            f"{start} MNNVL 1 cliqueId 0 cliqueSize 2 cliqueRank {number}",
            f"{start} {path} {via}",
        ]
    labels = {WORKLOAD_LABEL: "nccl-pair", RUN_LABEL: "r1"}
    pods = [
        {"metadata": {"name": host, "labels": labels}, "spec": {"nodeName": f"gpu-{host}"}, "status": {}}
        for host in ("a", "b")
    ]
    return Evidence(
        cluster={"pods": pods},
        logs={"nccl-pair": {"a": "\n".join(lines) + "\n"}},
        about={"run": "r1", "nccl": {"nccl-pair": {"nodes": ["gpu-a", "gpu-b"], "nvlink_domain": domain}}},
    )


@pytest.mark.parametrize(
    ("via", "domain", "status"),
    [
        ("via P2P/MNNVL", "rack.0", Status.PASS),
        ("[send] via NET/IB/0/GDRDMA", "rack.0", Status.FAIL),
        ("[send] via NET/IB/0/GDRDMA", "", Status.SKIP),
    ],
)
def test_a_domain_that_is_not_used_is_a_fault(expected: Expected, via: str, domain: str, status: Status) -> None:
    (found,) = nvlink(expected, nccl_evidence(via, domain))
    assert found.status is status
    if status is Status.FAIL:
        assert found.detail == "2 channels over the network; no P2P/MNNVL on gpu-a, gpu-b"
