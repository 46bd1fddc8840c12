"""Whatever stands in an inventory entry: each value of a wrong type is one line that names entry and field."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from gpuready.charts_values import inventory
from gpuready.charts_values.errors import InputError
from gpuready.charts_values.groups import Group, RailNetwork
from gpuready.charts_values.inventory import Cluster
from gpuready.charts_values.node_settings import NodeSettings

Path_ = tuple[Any, ...]

# An entry that says something under every key.
ENTRY: dict[str, Any] = {
    "rehearsal": False,
    "state_dir": None,
    "kubeconfig": "~/.kube/config",
    "context": "lab",
    "cluster_uid": "u-1",
    "platform": "kubeadm",
    "pod_cidr": "10.244.0.0/16",
    "service_cidr": "10.96.0.0/16",
    "node_cidrs": ["192.168.0.0/16"],
    "rail_cidrs": [],
    "api_server": "192.168.0.1:6443",
    "management_nics": ["eno1"],
    "driver_version": "580.173.02",
    "driver_owner": "operator",
    "ofed_owner": "inbox",
    "dra": "off",
    "charts": None,
    "adopt": [],
    "maintenance": [],
    "images": {"nccl": "mirror/pytorch:25.06"},
    "thresholds": {"pair": 350, "all": 300.5},
    "ssh_nodes": {"gpu-0": {"ssh_hostname": "192.168.0.7", "ssh_port": 22, "ssh_user": "ops", "_sudo": True}},
    "node": {},
    "groups": {
        "h100": {
            "nodes": ["gpu-0"],
            "count": 1,
            "selector": {"pool": "h100"},
            "gpu_product": "NVIDIA-H100-80GB-HBM3",
            "resources": {"nvidia.com/gpu": 8, "rdma/rail": 63},
            "nics": 1,
            "nic_gbits_s": 400,
            "rdma": "roce",
            "capacity": "reserved",
            "taints": [{"key": "team", "value": "a", "effect": "NoSchedule"}],
            "networks": {
                "rail-0": {
                    "interface": "ens1f0np0",
                    "cidr": "172.16.0.0/16",
                    "gateway": "172.16.0.1",
                    "mtu": 9000,
                    "resource": "rdma/rail",
                }
            },
            "host_network": False,
            "node": {},
        }
    },
}
_GROUP = ("groups", "h100")
_RAIL = (*_GROUP, "networks", "rail-0")

# Where values stand, and which of the wrong ones are right there.
TEXTS = ["words", "-"]
NUMBERS: list[Any] = [7, 2.5]
WRONG: list[Any] = [
    None,
    True,
    *NUMBERS,
    -1,
    float("nan"),
    *TEXTS,
    b"words",
    "a=b",
    ["a"],
    [["a"]],
    [5],
    (None,),
    {"a": True},
    {"a": "b"},
    {"a": [1]},
    {5: "b"},
    {"a": {"b": "c"}, 5: {}},
    Path("/x"),
    object(),
]
TEXT, MAYBE, FLAG, WHOLE, NUMBER, LIST = "text", "text or None", "flag", "whole", "number", "list"
NAMES, FREE = "labels", "free"
KINDS: dict[Path_, str] = {
    **dict.fromkeys([("api_server",), ("driver_version",)], TEXT),
    **dict.fromkeys([(key,) for key in ("kubeconfig", "context", "cluster_uid", "charts", "state_dir")], MAYBE),
    ("rehearsal",): FLAG,
    **dict.fromkeys([("management_nics",), ("adopt",), ("maintenance",), (*_GROUP, "nodes")], LIST),
    **dict.fromkeys([("management_nics", 0), (*_GROUP, "nodes", 0)], TEXT),
    ("ssh_nodes", "gpu-0", "ssh_hostname"): TEXT,
    ("ssh_nodes", "gpu-0", "ssh_user"): TEXT,
    ("ssh_nodes", "gpu-0", "ssh_port"): WHOLE,
    ("ssh_nodes", "gpu-0", "_sudo"): FLAG,
    ("ssh_nodes", "gpu-0"): FREE,
    ("thresholds", "pair"): NUMBER,
    ("thresholds", "all"): NUMBER,
    ("images", "nccl"): TEXT,
    (*_GROUP, "gpu_product"): TEXT,
    (*_GROUP, "nic_gbits_s"): NUMBER,
    (*_GROUP, "selector"): NAMES,
    (*_GROUP, "selector", "pool"): TEXT,
    **dict.fromkeys([(*_GROUP, "resources", one) for one in ("nvidia.com/gpu", "rdma/rail")], WHOLE),
    (*_GROUP, "taints", 0, "key"): TEXT,
    (*_GROUP, "taints", 0, "value"): TEXT,
    (*_GROUP, "host_network"): FLAG,
    (*_RAIL, "interface"): TEXT,
    (*_RAIL, "mtu"): WHOLE,
}
FIELDS = {field.name for kind in (Cluster, Group, RailNetwork) for field in dataclasses.fields(kind)} | {
    *("ssh_hostname", "ssh_port", "ssh_user", "_sudo", "pair", "all", "key", "value", "effect")
}
TABLES = ("groups", "networks", "node")


def right(kind: str | None, value: Any) -> bool:
    """Whether a value is of a field's type; one without a kind takes none of them."""
    text = isinstance(value, str)
    return {
        TEXT: text,
        MAYBE: text or value is None,
        FLAG: isinstance(value, bool),
        WHOLE: value == 7,
        NUMBER: value in (7, 2.5) if isinstance(value, int | float) else False,
        LIST: value == ["a"],
        NAMES: value == {"a": "b"},
        FREE: isinstance(value, dict) and 5 not in value,
    }.get(kind or "", False)


def places(tree: Any, path: Path_ = ()) -> list[Path_]:
    """Every place of an entry at which a value stands, tables and lists included."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    found = [(*path, key) for key, _ in items]
    return found + [one for key, value in items for one in places(value, (*path, key))]


def spoilt(path: Path_, value: Any) -> dict[str, Any]:
    entry = copy.deepcopy(ENTRY)
    here: Any = entry
    for key in path[:-1]:
        here = here[key]
    here[path[-1]] = value
    return entry


def test_the_entry_is_sound_and_says_something_of_every_field() -> None:
    inventory.parse("lab", ENTRY)
    group = ENTRY["groups"]["h100"]
    for kind, table, but in (
        (Cluster, ENTRY, {"name", "entry", "folder"}),
        (Group, group, {"name"}),
        (RailNetwork, group["networks"]["rail-0"], {"name"}),
    ):
        assert {one.name for one in dataclasses.fields(kind)} - but == set(table)


@pytest.mark.parametrize("path", places(ENTRY), ids=lambda path: ".".join(map(str, path)))
def test_a_value_of_a_wrong_type_is_one_line_with_entry_and_field(path: Path_) -> None:
    field = next(one for one in reversed(path) if one in FIELDS)
    # Tables of tables are named as such: group 'h100', network 'rail-0', node.
    told = (f"`{field}`", f" {field.removesuffix('s')} '", f", {field}")[: 3 if field in TABLES else 1]
    for value in WRONG:
        try:
            inventory.parse("lab", spoilt(path, value))
        except InputError as error:
            line = str(error)
            assert "\n" not in line
            assert "cluster 'lab'" in line, (value, line)
            assert any(one in line for one in told), (value, line)
        else:
            assert right(KINDS.get(path), value), f"{path} may be {value!r}"


@pytest.mark.parametrize("key", [one.name for one in dataclasses.fields(NodeSettings)])
@pytest.mark.parametrize("where", [("node",), (*_GROUP, "node")])
def test_a_setting_of_machines_of_a_wrong_type_is_one_line(where: Path_, key: str) -> None:
    refused = 0
    for value in [one for one in WRONG if one is not None]:
        try:
            inventory.parse("lab", spoilt(where, {key: value}))
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
            assert "cluster 'lab'" in str(error)
            assert key in str(error), (value, str(error))
    assert refused >= len(WRONG) - 4


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        (
            ("driver_version",),
            580,
            "inventory, cluster 'lab': `driver_version` is 580; it is text, so write it in quotes",
        ),
        ((*_GROUP, "nics"), "8", "inventory, cluster 'lab', group 'h100': `nics` is '8'; it is a whole number"),
        ((*_GROUP, "selector"), "a=b", "group 'h100': `selector` must be a table, not str"),
        ((*_GROUP, "selector"), {"a": True}, "group 'h100': `selector` 'a' is True; it is text, so write it in quotes"),
        ((*_GROUP, "count"), True, "group 'h100': `count` is True; it is a whole number"),
        (("thresholds",), [400], "`thresholds` must be a table, not list"),
        (("thresholds",), {"pairs": 400}, "`thresholds`: unknown key 'pairs'; known keys are all, net, pair"),
        (("images",), {"cuda": "x"}, "`images`: unknown key 'cuda'; known keys are nccl, nvidia-smi"),
        (("ssh_nodes",), ["gpu-0"], "`ssh_nodes` must be a table, not list"),
        (("ssh_nodes",), {"gpu-0": "192.0.2.7"}, "`ssh_nodes`, 'gpu-0' is no table; write {'ssh_hostname': "),
        (("api_server",), 6443, "`api_server` is 6443; it is text, so write it in quotes"),
        ((5,), "x", "inventory, cluster 'lab': unknown key 5; known keys are"),
    ],
)
def test_what_is_said(path: Path_, value: Any, line: str) -> None:
    with pytest.raises(InputError) as refused:
        inventory.parse("lab", spoilt(path, value))
    assert line in str(refused.value)


@pytest.mark.parametrize(
    "value",
    [
        "10.0.0.1:six",
        "10.0.0.1:0",
        "10.0.0.1:99999",
        ":6443",
        "2001:db8::1",
        "tcp://10.0.0.1",
        "https://h/k8s/clusters/c-1",
    ],
)
def test_an_api_server_that_is_no_address(value: str) -> None:
    with pytest.raises(InputError, match=r"`api_server` is .*; it is host:port, such as 192\.0\.2\.1:6443"):
        inventory.parse("lab", spoilt(("api_server",), value))


@pytest.mark.parametrize("entry", [None, "lab", ["lab"], 5])
def test_an_entry_that_is_no_table(entry: Any) -> None:
    with pytest.raises(InputError, match="cluster 'lab' is no table but"):
        inventory.select({"lab": entry}, "lab", None)


def test_clusters_that_are_no_table() -> None:
    with pytest.raises(InputError, match="_CLUSTERS is a list"):
        inventory.select([], "lab", None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="inventory has no cluster 'lab'; it has 5"):
        inventory.select({5: {}}, "lab", None)  # type: ignore[dict-item]


@pytest.mark.parametrize("text", ["[]", "5", '{"entry": null}', '{"entry": 5}', '{"entry": ["a"]}', "{"])
def test_a_state_file_that_holds_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("GPUREADY_STATE_DIR", str(tmp_path))
    (tmp_path / inventory.STATE_FILE).write_text(text)
    with pytest.raises(InputError, match=r"state\.json is damaged \(.*\); mend it with: gpuready rehearse up"):
        inventory.select({"rehearsal": {"rehearsal": True}}, "rehearsal", None)
    (tmp_path / inventory.STATE_FILE).write_text(json.dumps({"entry": {**ENTRY, "rehearsal": True}}))
    assert inventory.select({"rehearsal": {"rehearsal": True}}, "rehearsal", None).rehearsal
