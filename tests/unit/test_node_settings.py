"""The table `node`: defaults, what a group adds, and one line for every mistake."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from gpuready.charts_values import node_settings
from gpuready.charts_values.errors import InputError
from gpuready.charts_values.groups import Group, RailNetwork
from gpuready.charts_values.inventory import Cluster
from gpuready.charts_values.node_settings import NodeSettings

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "inventory.md"
WHERE = "inventory, cluster 'lab'"


def test_defaults_align_whole_nodes_and_leave_the_rest() -> None:
    found = node_settings.parse(WHERE, {})
    assert found == NodeSettings()
    assert (found.topology_manager.policy, found.topology_manager.scope) == ("restricted", "pod")
    assert found.topology_manager.options == {"prefer-closest-numa-nodes": "true"}
    assert (found.cpu_manager.policy, found.memory_manager.policy, found.acs) == ("", "", "keep")
    assert node_settings.parse(WHERE, {"topology_manager": {"policy": "none"}}).topology_manager.options == {}


def test_defaults_come_with_what_is_given() -> None:
    group = Group("h100", 1, "H100", {}, rdma="ib", nics=8)
    given = node_settings.parse(
        WHERE,
        {
            "modules": ["nvme", "ib_core"],
            "sysctl": {"net.ipv4.ip_forward": 0, "fs.inotify.max_user_watches": 99},
            "limits": {"nofile": 4096},
        },
    )
    assert node_settings.modules(given, None, "inbox") == ("overlay", "nvme", "ib_core")
    assert node_settings.modules(given, group, "inbox") == (
        *("overlay", "ib_core", "ib_uverbs", "mlx5_ib", "rdma_cm", "rdma_ucm", "ib_umad", "nvme"),
    )
    assert node_settings.modules(given, group, "operator") == ("overlay", "nvme", "ib_core")
    roce = dataclasses.replace(group, rdma="roce")
    assert "ib_umad" not in node_settings.modules(given, roce, "inbox")
    assert node_settings.sysctl(given, roce) == {
        "net.ipv4.ip_forward": "0",
        "kernel.numa_balancing": "0",
        "net.ipv4.conf.all.arp_ignore": "1",
        "net.ipv4.conf.all.arp_announce": "2",
        "net.ipv4.conf.all.rp_filter": "2",
        "fs.inotify.max_user_watches": "99",
    }
    assert node_settings.sysctl_least(given) == {"fs.inotify.max_user_instances": 8192}
    assert node_settings.limits(given) == {"memlock": "infinity", "nofile": "4096"}
    assert node_settings.limited_units("vcluster") == ("containerd",)


def test_a_group_adds_to_the_cluster() -> None:
    base = {"sysctl": {"vm.max_map_count": 262144}, "modules": ["nvme"], "reserved": {"cpus": "0-1"}}
    over = {"sysctl": {"kernel.pid_max": 4194304}, "modules": ["ib_umad"], "reserved": {"cpus": None}}
    found = node_settings.parse(WHERE, over, base)
    assert found.sysctl == {"vm.max_map_count": "262144", "kernel.pid_max": "4194304"}
    assert found.modules == ("ib_umad",)
    assert found.reserved.cpus == ""


def test_amounts() -> None:
    table = {"system_cpu": "500m", "kube_cpu": 1.5, "system_memory": "1Gi", "kube_memory": 1048576}
    found = node_settings.parse(WHERE, {"reserved": table}).reserved
    assert (found.system_cpu_milli, found.kube_cpu_milli) == (500, 1500)
    assert (found.system_memory, found.kube_memory, found.eviction_memory) == (2**30, 2**20, None)
    assert node_settings.numbers("0-1,64,3") == (0, 1, 3, 64)


@pytest.mark.parametrize(
    ("table", "line"),
    [
        (["modules"], "node is no table"),
        ({"topology": {}}, "node: unknown key 'topology'; known keys are acs"),
        ({"topology_manager": "restricted"}, "node: `topology_manager` must be a table"),
        ({"topology_manager": {"policy": "strict"}}, "topology_manager: `policy` is 'strict'; it may be none"),
        ({"topology_manager": {"scope": "node"}}, "topology_manager: `scope` is 'node'; it may be container, pod"),
        ({"topology_manager": {"options": {"closest": True}}}, "topology_manager: unknown option 'closest'"),
        (
            {"topology_manager": {"options": {"max-allowable-numa-nodes": 4}}},
            "the kubelet takes whole numbers from 8 up",
        ),
        ({"topology_manager": {"options": {"prefer-closest-numa-nodes": 2}}}, "is 2; it is True or False"),
        ({"cpu_manager": {"policy": "dynamic"}}, "cpu_manager: `policy` is 'dynamic'; it may be none, static"),
        ({"cpu_manager": {"options": {"full-pcpus-only": True}}}, "cpu_manager: `options` are for policy static"),
        ({"memory_manager": {"policy": "static"}}, "memory_manager: `policy` is 'static'; it may be None, Static"),
        ({"memory_manager": {"reserved": {0: "1Gi"}}}, "memory_manager: `reserved` is for policy Static"),
        ({"memory_manager": {"policy": "Static", "reserved": {"a": "1Gi"}}}, "`reserved` maps NUMA nodes to memory"),
        ({"reserved": {"cpus": "0-1;3"}}, "reserved: `cpus` is '0-1;3'; it is a list of CPUs"),
        ({"reserved": {"cpus": "0,3-1"}}, "reserved: `cpus` is '0,3-1'; it is a list of CPUs"),
        ({"reserved": {"cpus": "0", "kube_cpu": 1}}, "reserved: `cpus` takes the place of `kube_cpu` and `system_cpu`"),
        ({"reserved": {"kube_cpu": "half"}}, "reserved: `kube_cpu` is 'half'; it is a number of CPUs"),
        ({"reserved": {"kube_memory": "4GB"}}, "reserved: `kube_memory` is '4GB'; it is an amount of memory"),
        ({"modules": "ib_umad"}, "node: `modules` must be a list of names"),
        ({"modules": ["a b"]}, "node: `modules` has 'a b', which is not allowed there"),
        (
            {"module_options": {"ib_core": "netns_mode=0\ninstall x /bin/sh"}},
            "`module_options` maps modules to options such as {'ib_core': 'netns_mode=0'}",
        ),
        ({"module_options": {"ib core": "a=1"}}, "'ib core': 'a=1' does not fit"),
        ({"sysctl": {"ip_forward": 1}}, "node: `sysctl` has 'ip_forward', which is no name"),
        ({"sysctl": {"net.ipv4.ip_forward": True}}, "`sysctl` net.ipv4.ip_forward is True; give a number"),
        ({"sysctl": {"vm.max_map_count": None}}, "`sysctl` vm.max_map_count is None; give a number"),
        ({"sysctl": {"kernel.core_pattern": "a\rb"}}, "`sysctl` kernel.core_pattern is 'a\\rb'; give a number"),
        ({"registry_mirrors": {"nvcr.io": ["https://[x"]}}, "of nvcr.io has 'https://[x'; write https://host:port"),
        ({"hugepages": {"4Mi": 2}}, "`hugepages` maps 2Mi and 1Gi to a number of pages; '4Mi': 2 does not fit"),
        ({"limits": {"memlock": "-1"}}, "`limits` maps memlock, nofile, tasks"),
        ({"kernel_arguments": ["iommu=pt; reboot"]}, "`kernel_arguments` has 'iommu=pt; reboot'"),
        ({"acs": "on"}, "node: `acs` is 'on'; it may be keep, off"),
        ({"time_sync": "yes"}, "node: `time_sync` is 'yes'; it is True or False"),
        (
            {"registry_mirrors": {"nvcr.io": ["mirror:5000"]}},
            "`registry_mirrors` of nvcr.io has 'mirror:5000'; write https",
        ),
        (
            {"registry_mirrors": {"https://nvcr.io": []}},
            "`registry_mirrors` has 'https://nvcr.io', which is no registry",
        ),
    ],
)
def test_mistakes(table: Any, line: str) -> None:
    with pytest.raises(InputError) as refused:
        node_settings.parse(WHERE, table)
    assert line in str(refused.value)
    assert str(refused.value).startswith(WHERE)
    assert "\n" not in str(refused.value)


def rows() -> list[dict[str, str]]:
    """The tables of the page: the meaning of each key."""
    tables: list[dict[str, str]] = []
    for line in PAGE.read_text().splitlines():
        if line == "|---|---|":
            tables.append({})
        elif line.startswith("| `"):
            # An empty cell before the first bar and after the last.
            keys, meaning = line.split("|")[1:3]
            tables[-1] |= dict.fromkeys(re.findall(r"`([^`]+)`", keys), meaning)
    return tables


def test_the_page_has_every_key_of_an_entry_and_no_other() -> None:
    tables = rows()
    settings = names(NodeSettings)
    for table, keys in zip(
        tables,
        (
            names(Cluster) - {"name", "entry", "folder"},
            names(Group) - {"name"},
            names(RailNetwork) - {"name"},
            settings,
        ),
        strict=False,
    ):
        assert set(table) == keys
    # The keys of its tables are read by name, not by field; each is taken, and no other is known.
    parts = {"topology_manager", "cpu_manager", "memory_manager", "reserved"}
    listed: dict[str, set[str]] = {}
    for dotted in tables[4]:
        part, _, key = dotted.partition(".")
        listed.setdefault(part, set()).add(key)
    assert set(listed) == parts < settings
    for part, inner in listed.items():
        with pytest.raises(InputError) as refused:
            node_settings.parse(WHERE, {part: {"unknown": 1}})
        assert str(refused.value).endswith(f"known keys are {', '.join(sorted(inner))}")
    assert len(tables) == 5


def test_the_page_says_the_defaults_and_the_choices() -> None:
    *_, settings, parts = rows()
    default = NodeSettings()
    assert f"({default.drain_timeout})" in settings["drain_timeout"]
    for key in ("acs", "swap", "governor"):
        assert f"`{getattr(default, key)}` (default)" in settings[key]
    assert f"`{default.topology_manager.policy}` (default)" in parts["topology_manager.policy"]
    assert f"`{default.topology_manager.scope}` (default)" in parts["topology_manager.scope"]
    for one in node_settings.TOPOLOGY_POLICIES:
        assert f"`{one}`" in parts["topology_manager.policy"]
    for one in (*node_settings.TOPOLOGY_OPTIONS, *default.topology_manager.options):
        assert f"`{one}`" in parts["topology_manager.options"]
    for one in (*node_settings.LIMITS, *node_settings.HUGEPAGES):
        assert f"`{one}`" in settings["limits"] + settings["hugepages"]


def names(kind: Any) -> set[str]:
    return {one.name for one in dataclasses.fields(kind)}
