"""Kubelet policies against machines: what cannot work is refused with its reason, and sound ones pass in silence."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from gpuready.charts_values import node_settings
from gpuready.charts_values.errors import RefusedError
from gpuready.charts_values.groups import Group
from gpuready.charts_values.node_settings import NodeSettings
from gpuready.deploys.nodes import fit
from gpuready.deploys.nodes.facts import Kubelet, NodeFacts, Numa

GPU = {"class": "0x030200", "vendor": "0x10de"}
GIB = 2**20  # in KiB


def gpus(*nodes: int) -> tuple[dict[str, Any], ...]:
    return tuple({**GPU, "address": f"0000:{index:02x}:00.0", "numa_node": node} for index, node in enumerate(nodes))


# Two sockets of 4 cores with 2 threads each, 1 TiB, 8 GPUs: an HGX in small.
HGX = NodeFacts(
    name="gpu-0",
    os_id="ubuntu",
    os_version="24.04",
    online=tuple(range(16)),
    cores=tuple((core, core + 8) for core in range(8)),
    sockets=2,
    numa=(Numa(0, (0, 1, 2, 3, 8, 9, 10, 11), 512 * GIB), Numa(1, (4, 5, 6, 7, 12, 13, 14, 15), 512 * GIB)),
    memory_kib=1024 * GIB,
    pci=gpus(0, 0, 0, 0, 1, 1, 1, 1),
    kubelet=Kubelet(version="v1.35.4"),
)
H100 = Group("h100", 2, "NVIDIA-H100-80GB-HBM3", {"nvidia.com/gpu": 8}, nodes=("gpu-0", "gpu-1"))


def settings(**table: Any) -> NodeSettings:
    return node_settings.parse("inventory, cluster 'lab'", table)


@pytest.mark.parametrize(
    "table",
    [
        {},
        {"topology_manager": {"policy": "best-effort"}},
        {"topology_manager": {"policy": "none"}},
        {"cpu_manager": {"policy": "static"}, "reserved": {"cpus": "0,8"}},
        {"cpu_manager": {"policy": "static", "options": {"full-pcpus-only": True}}, "reserved": {"cpus": "0-1,8-9"}},
        {"cpu_manager": {"policy": "static"}, "reserved": {"kube_cpu": "500m", "system_cpu": "500m"}},
        {
            "memory_manager": {"policy": "Static"},
            "reserved": {"kube_memory": "4Gi", "system_memory": "1Gi", "eviction_memory": "100Mi"},
        },
    ],
)
def test_sound_settings_pass_in_silence(table: dict[str, Any]) -> None:
    assert fit.check(settings(**table), HGX, H100) == []


@pytest.mark.parametrize(
    ("table", "changes", "line"),
    [
        (
            {"topology_manager": {"policy": "single-numa-node"}},
            {},
            "rejects every pod with 8 GPUs (TopologyAffinityError): it has 4 on NUMA node 0 and 4 on NUMA node 1",
        ),
        (
            # Before the driver is there, or where the firmware is silent, the sockets must do.
            {"topology_manager": {"policy": "single-numa-node"}},
            {"pci": ()},
            "where they sit on 2 sockets",
        ),
        (
            {},
            {"numa": tuple(Numa(index, (), GIB) for index in range(34))},
            "it has 34 NUMA nodes, and with Topology Manager the kubelet starts with 8 at most",
        ),
        ({"cpu_manager": {"policy": "static"}}, {}, "CPU Manager static needs a reservation"),
        (
            {"cpu_manager": {"policy": "static"}, "reserved": {"cpus": "0,99"}},
            {},
            "`reserved.cpus` names CPU 99, which is not online; it has 0-15",
        ),
        (
            {"cpu_manager": {"policy": "static", "options": {"full-pcpus-only": True}}, "reserved": {"cpus": "0-2"}},
            {},
            "the reservation of 3 CPUs splits one (pods end with SMTAlignmentError); reserve a multiple of 2",
        ),
        (
            {"cpu_manager": {"policy": "static", "options": {"full-pcpus-only": True}}, "reserved": {"kube_cpu": "1"}},
            {},
            "the reservation of 1 CPUs splits one",
        ),
        (
            {"cpu_manager": {"policy": "static", "options": {"full-pcpus-only": True}}, "reserved": {"cpus": "0,1"}},
            {},
            "takes part of the core with CPUs 0,8; reserve all of them or none",
        ),
        (
            {"cpu_manager": {"policy": "static", "options": {"full-pcpus-only": True}}, "reserved": {"cpus": "0,8"}},
            {"online": tuple(range(15)), "cores": (*((core, core + 8) for core in range(7)), (7,))},
            "whole cores of 2 threads, and 1 are online in part, first CPUs 7; bring their siblings online",
        ),
        ({"reserved": {"cpus": "0-8"}}, {}, "the reservation keeps 9 of 16 CPUs from pods, more than half"),
        ({"reserved": {"kube_cpu": "9"}}, {}, "the reservation keeps 9 of 16 CPUs"),
        (
            {"reserved": {"system_memory": "600Gi"}},
            {},
            "the reservation keeps 600.1 of 1024.0 GiB of memory from pods, more than half",
        ),
        (
            {
                "memory_manager": {"policy": "Static", "reserved": {0: "300Gi", 1: "100Mi"}},
                "reserved": {"kube_memory": "300Gi"},
            },
            {},
            "Memory Manager keeps 300.0 of 512.0 GiB of NUMA node 0 from pods",
        ),
        (
            {"cpu_manager": {"policy": "static", "options": {"align-by-socket": True}}, "reserved": {"cpus": "0,8"}},
            {},
            "option align-by-socket is alpha in every release",
        ),
        (
            {
                "cpu_manager": {"policy": "static", "options": {"strict-cpu-reservation": True}},
                "reserved": {"cpus": "0,8"},
            },
            {"kubelet": Kubelet(version="v1.32.1")},
            "option strict-cpu-reservation needs Kubernetes 1.33, its kubelet is v1.32.1",
        ),
        (
            {"reserved": {"cpus": "0,8"}},
            {"kubelet": Kubelet(config={"systemReservedCgroup": "/system.slice"})},
            "does not go with systemReservedCgroup",
        ),
    ],
)
def test_refusals(table: dict[str, Any], changes: dict[str, Any], line: str) -> None:
    with pytest.raises(RefusedError) as refused:
        fit.check(settings(**table), dataclasses.replace(HGX, **changes), H100)
    assert line in str(refused.value)
    assert str(refused.value).startswith("node gpu-0: ")
    assert "\n" not in str(refused.value)


def test_single_numa_node_suits_a_machine_with_all_gpus_on_one() -> None:
    small = dataclasses.replace(HGX, pci=gpus(0, 0, 0, 0))
    group = dataclasses.replace(H100, resources={"nvidia.com/gpu": 4})
    assert fit.check(settings(topology_manager={"policy": "single-numa-node"}), small, group) == []


def test_many_numa_nodes_are_fine_once_they_are_allowed() -> None:
    superchip = dataclasses.replace(HGX, numa=tuple(Numa(index, (), 64 * GIB) for index in range(34)))
    allowed = {"policy": "restricted", "options": {"max-allowable-numa-nodes": 34}}
    assert fit.check(settings(topology_manager=allowed), superchip, H100) == []
    assert fit.check(settings(topology_manager={"policy": "none"}), superchip, H100) == []


def test_a_limit_that_the_node_sets_itself_counts() -> None:
    theirs = Kubelet(version="v1.35.4", config={"topologyManagerPolicyOptions": {"max-allowable-numa-nodes": "40"}})
    superchip = dataclasses.replace(HGX, numa=tuple(Numa(index, (), 64 * GIB) for index in range(34)), kubelet=theirs)
    assert fit.check(settings(), superchip, H100) == []


def test_cores_without_siblings_take_odd_reservations() -> None:
    single = dataclasses.replace(HGX, cores=tuple((cpu,) for cpu in range(16)))
    table = {"cpu_manager": {"policy": "static", "options": {"full-pcpus-only": True}}, "reserved": {"cpus": "0-2"}}
    assert fit.check(settings(**table), single, H100) == []


def test_nics_behind_the_shared_plugin_are_said_not_to_be_aligned() -> None:
    group = dataclasses.replace(
        H100, resources={"nvidia.com/gpu": 8, "rdma/rdma_shared_device_a": 63}, nics=8, rdma="ib"
    )
    (note,) = fit.check(settings(), HGX, group)
    assert "rdma/rdma_shared_device_a is shared, and its device plugin names no NUMA node" in note
    few = dataclasses.replace(group, resources={"nvidia.com/gpu": 8, "rdma/rdma_shared_device_a": 8})
    assert fit.check(settings(), HGX, few) == [note]
    assert fit.check(settings(topology_manager={"policy": "none"}), HGX, group) == []
    exclusive = dataclasses.replace(group, resources={"nvidia.com/gpu": 8, "rdma/hca": 8})
    assert fit.check(settings(), HGX, exclusive) == []


def test_gpus_without_a_numa_node_are_said() -> None:
    (note,) = fit.check(settings(), dataclasses.replace(HGX, pci=gpus(*[-1] * 8)), H100)
    assert "the firmware names no NUMA node for 8 GPUs" in note
