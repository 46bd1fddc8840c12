"""What Cilium is told of the network: an address of the API server that agents can use, and devices, once."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from gpuready.charts_values import bill
from gpuready.charts_values.errors import InputError, RefusedError
from gpuready.charts_values.inventory import Cluster
from gpuready.charts_values.kube import Api
from gpuready.deploys import preflight, survey
from gpuready.deploys.helm import Helm, Installed
from gpuready.deploys.releases import Releases, Work

from .test_helm import program
from .test_preflight import HEALTHY, cluster, seen

CILIUM = next(one for one in bill.load() if one.key == "cilium")
PROXIED = "https://rancher.lab.example/k8s/clusters/c-m-x1"
NICS = ["eno1", "eno2"]


def test_agents_cannot_use_a_path_behind_a_proxy() -> None:
    with pytest.raises(RefusedError) as refused:
        survey.observed(cluster(api_server=""), seen(server=PROXIED))
    assert str(refused.value) == (
        f"the API server is known as {PROXIED}; Cilium's agents reach it by host and port alone, without "
        "/k8s/clusters/c-m-x1, so give `api_server` (host:port) in inventory, cluster 'lab', as nodes reach it past "
        "the proxy"
    )
    given = survey.observed(cluster(api_server="10.1.2.3:6443"), seen(server=PROXIED))
    assert (given.api_host, given.api_port) == ("10.1.2.3", 6443)
    # A kube-proxy gives the agents the Service address.
    assert survey.observed(cluster(api_server=""), seen(server=PROXIED, kube_proxy=True)).kube_proxy
    assert survey.observed(cluster(api_server=""), seen(server="https://lab.example/")).api_port == 443


def work(folder: Path, made: dict[str, Any] | None, promised: Cluster) -> Work:
    """What is to be done to Cilium, which runs with the values ``made``; None where it is not installed."""
    body = f'case "$*" in "get values"*) echo \'{json.dumps(made)}\' ;; "get manifest"*) ;; *) exit 1 ;; esac'
    there = Installed("cilium", "kube-system", 3, "deployed", f"cilium-{CILIUM.version}")
    releases = {} if made is None else {("kube-system", "cilium"): there}
    now = seen(releases=releases, cilium_config=None if made is None else {"kube-proxy-replacement": "true"})
    api: Any = Api  # nothing is asked of it: the manifest is empty
    helm = Helm(program(folder / "bin", body), None, None)
    facts = survey.observed(promised, now)
    return Releases(api, helm, promised, now, facts, lambda _: pytest.fail("no chart is needed")).work(CILIUM)


def test_a_new_network_has_the_devices_of_inventory(tmp_path: Path) -> None:
    assert work(tmp_path, None, cluster(management_nics=NICS)).plan.values["devices"] == "eno1 eno2"
    assert "devices" not in work(tmp_path, None, cluster()).plan.values


@pytest.mark.parametrize(
    ("devices", "nics", "line"),
    [
        (None, [], None),
        ("eno1 eno2", NICS, None),
        (
            None,
            NICS,
            "Cilium: devices (found by itself) -> eno1 eno2: withheld, since nodes without such a device lose",
        ),
        ("eno1", NICS, "Cilium: devices eno1 -> eno1 eno2: withheld"),
        ("eno1", [], "Cilium: devices eno1 -> (found by itself): withheld"),
    ],
)
def test_a_running_network_keeps_its_devices(
    tmp_path: Path, devices: str | None, nics: list[str], line: str | None
) -> None:
    before = work(tmp_path, None, cluster()).plan.values
    made = before | ({"devices": devices} if devices else {})
    found = work(tmp_path, made, cluster(management_nics=nics))
    assert found.plan.values.get("devices") == devices
    assert found.upgrade == ()
    if line is None:
        assert found.plan.withheld == ()
    else:
        (said,) = found.plan.withheld
        assert said.startswith(line)
        assert said.endswith("put `devices` into charts_values/lab/cilium.yaml")


def test_the_clusters_own_file_decides_over_a_running_network(tmp_path: Path) -> None:
    folder = tmp_path / "charts_values" / "lab"
    folder.mkdir(parents=True)
    (folder / "cilium.yaml").write_text("devices: eno9\n")
    promised = dataclasses.replace(cluster(management_nics=NICS), folder=tmp_path)
    found = work(tmp_path, work(tmp_path, None, cluster()).plan.values, promised)
    assert found.upgrade == ("devices: (none) -> eno9",)
    assert found.plan.withheld == ()


def test_an_adopted_network_keeps_its_devices(tmp_path: Path) -> None:
    adopted = bill.releases(cluster(adopt=["cilium"]))[0]
    there = {("kube-system", "cilium"): Installed("cilium", "kube-system", 1, "deployed", f"cilium-{CILIUM.version}")}
    body = 'case "$*" in "get values"*) echo \'{"devices": ["bond0"]}\' ;; esac'
    promised, now = cluster(adopt=["cilium"], management_nics=NICS), seen(releases=there)
    helm, facts = Helm(program(tmp_path, body), None, None), survey.observed(promised, HEALTHY)
    api: Any = Api
    plan = Releases(api, helm, promised, now, facts, lambda _: pytest.fail("no chart")).work(adopted).plan
    assert plan.values["devices"] == ["bond0"]
    assert plan.withheld == ()


@pytest.mark.parametrize(
    ("operator", "line"),
    [
        (
            {"clusterPoolIPv4PodCIDRList": "10.244.0.0/16"},
            "values of cilium: `clusterPoolIPv4PodCIDRList` must be a list",
        ),
        ({"clusterPoolIPv4PodCIDRList": ["10.244"]}, "values of cilium: `clusterPoolIPv4PodCIDRList` is '10.244'"),
        ({"clusterPoolIPv4MaskSize": "wide"}, "values of cilium: `clusterPoolIPv4MaskSize` is 'wide'; it is a whole"),
    ],
)
def test_a_pool_that_is_none(operator: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError, match=line):
        preflight.room_for_nodes(HEALTHY, {"ipam": {"mode": "cluster-pool", "operator": operator}})
    # As `--set-string` leaves it in the values of a release that is taken over.
    preflight.room_for_nodes(HEALTHY, {"ipam": {"mode": "cluster-pool", "operator": {"clusterPoolIPv4MaskSize": "24"}}})
