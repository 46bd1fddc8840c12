"""What is withheld without a maintenance, and what is not: pure rules over values, charts and policies."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from gpuready.charts_values import bill, inventory
from gpuready.charts_values.bill import Release
from gpuready.charts_values.errors import RefusedError
from gpuready.charts_values.inventory import Cluster
from gpuready.deploys import disruption
from gpuready.deploys.disruption import DriverPod, Plan
from gpuready.deploys.helm import Installed

from .test_preflight import ENTRY, HEALTHY

Values = dict[str, Any]
DRIVER: Values = {"driver": {"version": "580.1", "upgradePolicy": {"autoUpgrade": False}}}


def cluster(*maintenance: str, **changes: Any) -> Cluster:
    return inventory.parse("lab", {**ENTRY, "maintenance": list(maintenance), **changes})


def release(key: str) -> Release:
    return next(one for one in bill.load() if one.key == key)


def plan(
    promised: Cluster,
    of: Release,
    *,
    chart: str | None = None,
    before: Values | None = None,
    wanted: Values | None = None,
    restarts: bool = True,
) -> Plan:
    there = Installed(of.name, of.namespace, 1, "deployed", f"{of.chart}-{chart or of.version}")
    return disruption.plan(
        promised, HEALTHY.nodes, of, there, before or {}, wanted or {}, lambda release, values: restarts
    )


def test_a_driver_version_is_withheld_and_the_rest_is_made() -> None:
    wanted = {"driver": {"version": "595.2", "upgradePolicy": {"autoUpgrade": True}}, "gfd": {"enabled": False}}
    found = plan(cluster(), release("gpu-operator"), before=DRIVER, wanted=wanted)
    assert found.values == {
        "driver": {"version": "580.1", "upgradePolicy": {"autoUpgrade": True}},
        "gfd": {"enabled": False},
    }
    assert found.withheld == (
        "GPU Operator: driver.version: 580.1 -> 595.2: withheld, since it restarts the driver on every GPU node; to "
        "make it, set `maintenance` to [\"*\"], or to names of nodes, in inventory, cluster 'lab'",
    )


@pytest.mark.parametrize("named", [("*",), ("lab",), ("gpu-0",), ("gpu-0", "gpu-1")])
def test_a_maintenance_lets_the_driver_through(named: tuple[str, ...]) -> None:
    wanted = {"driver": {"version": "595.2"}}
    found = plan(cluster(*named), release("gpu-operator"), before=DRIVER, wanted=wanted)
    assert (found.values, found.withheld) == (wanted, ())


def test_a_maintenance_of_other_nodes_does_not() -> None:
    found = plan(cluster("cp-0"), release("gpu-operator"), before=DRIVER, wanted={"driver": {"version": "595.2"}})
    assert found.withheld


@pytest.mark.parametrize("key", ["daemonsets", "hostPaths"])
def test_what_changes_the_drivers_pods_is_withheld_as_well(key: str) -> None:
    found = plan(cluster(), release("gpu-operator"), wanted={key: {"tolerations": [{"key": "team"}]}})
    assert (found.values, len(found.withheld)) == ({}, 1)


def test_what_restarts_no_driver_is_made_at_once() -> None:
    wanted = {"driver": {"version": "580.1", "enabled": True}, "devicePlugin": {"enabled": False}}
    assert plan(cluster(), release("gpu-operator"), wanted=wanted, restarts=False).values == wanted
    policy = {"driver": {"upgradePolicy": {"autoUpgrade": True}}}
    assert plan(cluster(), release("gpu-operator"), wanted=policy).withheld == ()


def test_a_first_installation_withholds_nothing() -> None:
    found = disruption.plan(
        cluster(), HEALTHY.nodes, release("gpu-operator"), None, {}, DRIVER, lambda release, values: True
    )
    assert (found.values, found.withheld) == (DRIVER, ())


@pytest.mark.parametrize(
    ("key", "there", "changes", "why"),
    [
        ("cilium", "1.18.3", {}, "another minor restarts the network of every node"),
        ("cilium", "1.19.2", {}, None),
        ("gpu-operator", "v26.3.0", {}, "another operator makes other driver pods"),
        ("network-operator", "25.7.0", {}, None),
        ("network-operator", "25.7.0", {"ofed_owner": "operator"}, "another operator makes other OFED pods"),
        ("node-feature-discovery", "0.18.0", {}, None),
    ],
)
def test_another_chart(key: str, there: str, changes: dict[str, Any], why: str | None) -> None:
    found = plan(cluster(**changes), release(key), chart=there)
    assert found.release.version == (there if why else release(key).version)
    assert [why in line for line in found.withheld] == ([True] if why else [])
    assert plan(cluster("lab", **changes), release(key), chart=there).release == release(key)
    # One node of many does not make it safe: a chart is the cluster's.
    assert bool(plan(cluster("gpu-0", **changes), release(key), chart=there).withheld) is bool(why)


def test_an_adopted_release_stays_at_its_chart() -> None:
    theirs = dataclasses.replace(release("node-feature-discovery"), name="nfd", adopted=True)
    found = plan(cluster(), theirs, chart="0.17.3")
    assert (found.release.version, found.release.digest) == ("0.17.3", None)
    assert "NFD: chart 0.17.3 -> 0.19.0: withheld, since an adopted release stays at its chart" in found.withheld[0]


def test_maintenance_names_what_is_there() -> None:
    disruption.check_names(cluster("gpu-0", "lab", "*"), HEALTHY.nodes)
    with pytest.raises(RefusedError, match="`maintenance` names 'gpu-7', which is no node of cluster 'lab'"):
        disruption.check_names(cluster("gpu-7"), HEALTHY.nodes)


def test_which_nodes_are_under_maintenance() -> None:
    assert disruption.maintained(cluster(), HEALTHY.nodes) == set()
    assert disruption.maintained(cluster("gpu-1"), HEALTHY.nodes) == {"gpu-1"}
    assert disruption.maintained(cluster("*"), HEALTHY.nodes) == {"gpu-0", "gpu-1"}


def test_the_same_driver_is_known_by_what_a_policy_says_of_it() -> None:
    live = {"driver": {"enabled": True, "version": "580.1", "env": []}, "daemonsets": {"tolerations": [1]}}
    assert disruption.same_driver({"driver": {"version": "580.1"}, "gfd": {"version": "x"}}, live)
    assert disruption.same_driver({"driver": {"upgradePolicy": {"autoUpgrade": True}}}, live)
    assert not disruption.same_driver({"driver": {"version": "580.2"}}, live)
    assert not disruption.same_driver({"daemonsets": {"tolerations": [1, 2]}}, live)


@pytest.mark.parametrize(
    ("image", "runs"),
    [
        ("nvcr.io/nvidia/driver:580.1-ubuntu24.04", True),
        ("registry:5000/driver:580.1@sha256:00", True),
        ("nvcr.io/nvidia/driver:580.10-ubuntu24.04", False),
        ("registry:5000/driver", False),
    ],
)
def test_the_version_of_a_driver_pod(image: str, runs: bool) -> None:
    assert disruption.runs_version(DriverPod("gpu-0", image, True, True), "580.1") is runs


# -- OFED ---------------------------------------------------------------------------------------------------------


def policy(**spec: Any) -> Values:
    return {"kind": "NicClusterPolicy", "metadata": {"name": "nic-cluster-policy"}, "spec": spec}


OFED: Values = {"version": "doca3.4", "upgradePolicy": {"autoUpgrade": False}}


def test_another_ofed_waits_for_the_cluster_as_a_whole() -> None:
    live = policy(ofedDriver=OFED, rdmaSharedDevicePlugin={"version": "1"})
    wanted = policy(ofedDriver={**OFED, "version": "doca3.5"}, rdmaSharedDevicePlugin={"version": "2"})
    for named in ((), ("gpu-0",)):
        kept, line = disruption.nic_policy(cluster(*named), HEALTHY.nodes, live, wanted)
        assert kept["spec"] == {"ofedDriver": OFED, "rdmaSharedDevicePlugin": {"version": "2"}}
        assert "ofedDriver.version: doca3.4 -> doca3.5: withheld, since it restarts the NIC driver" in str(line)
    made, line = disruption.nic_policy(cluster("*"), HEALTHY.nodes, live, wanted)
    assert line is None
    assert made["spec"]["ofedDriver"] == {"version": "doca3.5", "upgradePolicy": {"autoUpgrade": True}}
    assert wanted["spec"]["ofedDriver"]["upgradePolicy"] == {"autoUpgrade": False}, "the argument was changed"


def test_ofed_does_not_come_or_go_by_itself() -> None:
    without, with_ofed = policy(rdmaSharedDevicePlugin={}), policy(rdmaSharedDevicePlugin={}, ofedDriver=OFED)
    assert disruption.nic_policy(cluster(), HEALTHY.nodes, without, with_ofed)[0] == without
    assert disruption.nic_policy(cluster(), HEALTHY.nodes, with_ofed, without)[0] == with_ofed


def test_a_policy_without_change_of_ofed_is_applied_as_it_is() -> None:
    wanted = policy(ofedDriver=OFED, rdmaSharedDevicePlugin={"version": "2"})
    live = policy(ofedDriver={**OFED, "defaulted": 1}, rdmaSharedDevicePlugin={"version": "1"})
    assert disruption.nic_policy(cluster(), HEALTHY.nodes, live, wanted) == (wanted, None)
    assert disruption.nic_policy(cluster(), HEALTHY.nodes, None, wanted) == (wanted, None)
