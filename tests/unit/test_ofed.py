"""OFED where the way to a node runs over its NICs: asked by a real shell, refused, or said to be unknown."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from gpuready.charts_values import resources
from gpuready.charts_values.errors import RefusedError
from gpuready.deploys import ofed
from pyinfra.api import Config, Inventory, State
from pyinfra.api.connect import connect_all
from pyinfra.context import ctx_state

from .test_preflight import cluster, node

HEAD = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
NOBODY = "0" * 32
OPERATOR = cluster(ofed_owner="operator")
NODES = [node("cp-0"), node("gpu-0"), node("gpu-1")]


def device(root: Path, name: str, driver: str = "", lower: tuple[str, ...] = ()) -> None:
    folder = root / "sys/class/net" / name
    folder.mkdir(parents=True)
    for one in lower:
        (folder / f"lower_{one}").symlink_to(f"../{one}")
    if driver:
        (folder / "device").mkdir()
        (folder / "device/driver").symlink_to(f"../../../bus/pci/drivers/{driver}")


def routes(root: Path, *four: tuple[str, int], six: tuple[tuple[str, int], ...] = ()) -> None:
    net = root / "proc/net"
    net.mkdir(parents=True)
    lines = [f"{name}\t00000000\t0101A8C0\t0003\t0\t0\t{metric}\t00000000\t0\t0\t0\n" for name, metric in four]
    inside = "eno1\t0001A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
    (net / "route").write_text(HEAD + inside + "".join(lines))
    rest = f"{NOBODY} 00 {NOBODY} 00 {NOBODY} ffffffff 00000001 00000000 00200200       lo\n"
    more = [
        f"{NOBODY} 00 {NOBODY} 00 fe80{'0' * 28} {metric:08x} 00000001 00000000 00000003     {name}\n"
        for name, metric in six
    ]
    (net / "ipv6_route").write_text("".join(more) + rest)


def seen(root: Path) -> list[ofed.Way]:
    done = subprocess.run(
        ["sh", "-c", ofed.SCRIPT], env={"ROOT": str(root)}, capture_output=True, text=True, timeout=20
    )
    assert (done.returncode, done.stderr) == (0, "")
    return ofed.read(done.stdout)


def test_the_way_out_of_a_node(tmp_path: Path) -> None:
    device(tmp_path, "eno1", "bnxt_en")
    device(tmp_path, "ens1f0np0", "mlx5_core")
    routes(tmp_path, ("ens1f0np0", 200), ("eno1", 100))
    assert seen(tmp_path) == [ofed.Way("eno1", "eno1", "bnxt_en")]


def test_a_vlan_over_a_bond_leads_to_its_hardware(tmp_path: Path) -> None:
    device(tmp_path, "bond0.7", lower=("bond0",))
    device(tmp_path, "bond0", lower=("ens1f0np0", "ens1f1np1"))
    device(tmp_path, "ens1f0np0", "mlx5_core")
    device(tmp_path, "ens1f1np1", "mlx5_core")
    routes(tmp_path, ("bond0.7", 0))
    assert seen(tmp_path) == [
        ofed.Way("bond0.7", "ens1f0np0", "mlx5_core"),
        ofed.Way("bond0.7", "ens1f1np1", "mlx5_core"),
    ]


def test_a_node_of_ipv6_alone_and_one_without_a_route(tmp_path: Path) -> None:
    device(tmp_path, "eno1", "mlx5_core")
    device(tmp_path, "wg0")
    routes(tmp_path, six=(("wg0", 1024), ("eno1", 100)))
    assert seen(tmp_path) == [ofed.Way("eno1", "eno1", "mlx5_core")]
    routes(tmp_path / "none")
    assert seen(tmp_path / "none") == []


def test_a_host_of_pyinfra_is_asked() -> None:
    promised = cluster(ssh_nodes={"@local": {}, "gpu-9": {}})
    state = State(Inventory((["@local"], {})), Config())
    with ctx_state.use(state):
        connect_all(state)
        assert ofed.ways(promised) == {"@local": seen(Path("/"))}
        assert ofed.ways(cluster(ssh_nodes={"gpu-9": {}})) == {}


@pytest.mark.parametrize(
    ("one", "over"),
    [
        (ofed.Way("eno1", "eno1", "mlx5_core"), "eno1"),
        (ofed.Way("bond0", "ens1f0np0", "mlx5_core"), "bond0 (ens1f0np0)"),
    ],
)
def test_a_node_that_would_lose_its_network_is_refused(one: ofed.Way, over: str) -> None:
    well = ofed.Way("eno1", "eno1", "bnxt_en")
    with pytest.raises(RefusedError) as refused:
        ofed.check(OPERATOR, NODES, {"gpu-0": [well], "gpu-1": [well, one]})
    assert str(refused.value) == (
        f"`ofed_owner` is operator, and node gpu-1 is reached over {over}, whose driver mlx5_core OFED reloads: that "
        "takes the node off the network; set `ofed_owner` to host, or to inbox, in inventory, cluster 'lab'"
    )


def test_nodes_that_could_not_be_looked_at_are_named() -> None:
    well = [ofed.Way("eno1", "eno1", "bnxt_en")]
    assert ofed.check(OPERATOR, NODES, {"gpu-0": well, "gpu-1": well}) == []
    (note,) = ofed.check(OPERATOR, NODES, {"gpu-0": well, "gpu-1": []})
    assert "whether gpu-1 can be reached while OFED loads was not looked at" in note
    (note,) = ofed.check(OPERATOR, NODES, {})
    assert "whether gpu-0 gpu-1 can be reached" in note


@pytest.mark.parametrize(
    ("entry", "live", "new"),
    [
        ({"ofed_owner": "operator"}, None, True),
        ({"ofed_owner": "operator"}, {"spec": {}}, True),
        ({"ofed_owner": "operator"}, {"spec": {"ofedDriver": {"version": "older"}}}, False),
        ({"ofed_owner": "inbox"}, None, False),
    ],
)
def test_only_a_driver_that_is_not_loaded_yet_is_asked_for(entry: dict[str, Any], live: Any, new: bool) -> None:
    assert ofed.is_new(resources.custom_resources(cluster(**entry)), live) is new
