"""Hardware profiles and what follows from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from gpuready.charts_values.errors import InputError
from gpuready.charts_values.inventory import Cluster, parse
from gpuready.rehearsal import fleet
from gpuready.rehearsal.fleet import Profile

PROFILES = Path(fleet.__file__).parent / "profiles"


def entry(profile: Profile, count: int = 3) -> dict[str, Any]:
    return fleet.entry(profile, count, Path("/state"), Path("/state/kubeconfig"), "uid", "/charts")


def test_profiles_are_listed() -> None:
    assert fleet.profiles() == ["a100-ib", "cloud-vm", "gb200-nvl72", "h100-ib", "h100-roce"]


def test_an_unknown_profile_names_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"no hardware profile 'h900'; there are a100-ib, cloud-vm"):
        fleet.load_profile("h900")


@pytest.mark.parametrize("name", fleet.profiles())
def test_the_promise_is_an_entry_of_inventory(name: str) -> None:
    profile = fleet.load_profile(name)
    made = json.loads(json.dumps(entry(profile)))
    cluster = parse("rehearsal", made)
    assert isinstance(cluster, Cluster)
    assert (cluster.rehearsal, cluster.cluster_uid, cluster.charts) == (True, "uid", "/charts")
    assert cluster.driver_version == profile.driver.version
    group = cluster.groups[0]
    assert group.nodes == ("gpu-0000", "gpu-0001", "gpu-0002")


@pytest.mark.parametrize("name", fleet.profiles())
def test_the_promise_is_what_the_hardware_has(name: str) -> None:
    profile = fleet.load_profile(name)
    group = parse("rehearsal", entry(profile)).groups[0]
    truth = fleet.hardware(profile, "gpu-0001")
    assert group.gpus == len(truth.gpus)
    assert group.nics == len(truth.nics)
    assert (group.rdma != "none") == truth.rdma
    assert bool(group.rdma_resources) == truth.rdma


def test_h100_ib() -> None:
    profile = fleet.load_profile("h100-ib")
    group = parse("rehearsal", entry(profile)).groups[0]
    assert dict(group.resources) == {"nvidia.com/gpu": 8, "rdma/rdma_shared_device_a": 63}
    assert (group.nics, group.nic_gbits_s, group.rdma) == (8, 400.0, "ib")
    assert {gpu.numa for gpu in fleet.hardware(profile, "gpu-0000").gpus} == {0, 1}


def test_cloud_vm_promises_neither_rdma_nor_dra() -> None:
    cluster = parse("rehearsal", entry(fleet.load_profile("cloud-vm")))
    assert (cluster.wants_rdma, cluster.dra, cluster.gpu_taints) == (False, "off", [])
    assert cluster.groups[0].capacity == "spot"


def test_h100_roce_has_a_network_for_each_rail_and_a_second_taint() -> None:
    cluster = parse("rehearsal", entry(fleet.load_profile("h100-roce")))
    assert [(one.name, one.interface, one.cidr) for one in cluster.networks[:2]] == [
        ("rail-0", "enp26s0np0", "172.16.0.0/15"),
        ("rail-1", "enp60s0np0", "172.18.0.0/15"),
    ]
    assert len(cluster.networks) == 8
    assert [taint["effect"] for taint in cluster.gpu_taints] == ["NoSchedule", "NoExecute"]


def test_a100_ib_has_an_older_driver_and_so_no_dra() -> None:
    cluster = parse("rehearsal", entry(fleet.load_profile("a100-ib")))
    assert (cluster.driver_version, cluster.driver_owner, cluster.dra) == ("570.158.01", "host", "off")
    assert (cluster.groups[0].nics, cluster.groups[0].nic_gbits_s) == (8, 200.0)


def test_gb200_trays_are_arm_machines_of_one_nvlink_domain_each_18() -> None:
    profile = fleet.load_profile("gb200-nvl72")
    nodes = fleet.nodes(profile, 20, 10250)
    assert {node["status"]["nodeInfo"]["architecture"] for node in nodes[1:]} == {"arm64"}
    assert nodes[0]["metadata"]["labels"]["kubernetes.io/arch"] == "amd64"
    domains = [fleet.clique(profile, name) for name in fleet.gpu_nodes(20)]
    assert len(set(domains[:18])) == len(set(domains[18:])) == 1 < len(set(domains))
    assert fleet.clique(profile, fleet.CONTROL_PLANE) == ""
    assert fleet.clique(fleet.load_profile("h100-ib"), "gpu-0000") == ""


def test_serial_numbers_follow_from_the_node_and_differ() -> None:
    profile = fleet.load_profile("h100-ib")
    first, again = fleet.hardware(profile, "gpu-0000"), fleet.hardware(profile, "gpu-0000")
    assert first == again
    gpus = [gpu for node in ("gpu-0000", "gpu-0001") for gpu in fleet.hardware(profile, node).gpus]
    assert len({gpu.uuid for gpu in gpus}) == len({gpu.serial for gpu in gpus}) == 16


def test_the_control_plane_has_no_gpus() -> None:
    truth = fleet.hardware(fleet.load_profile("h100-ib"), fleet.CONTROL_PLANE)
    assert (truth.gpus, truth.nics, truth.rdma) == ((), (), False)


def test_nodes_are_as_after_joining() -> None:
    nodes = fleet.nodes(fleet.load_profile("h100-ib"), 300, 10250)
    assert [node["metadata"]["name"] for node in nodes[:2]] == ["cp-0", "gpu-0000"]
    assert len(nodes) == 301
    for key in ("InternalIP", "Hostname"):
        addresses = [one["address"] for node in nodes for one in node["status"]["addresses"] if one["type"] == key]
        assert len(set(addresses)) == 301
    assert len({node["spec"]["podCIDR"] for node in nodes}) == 301
    gpu = nodes[1]
    assert gpu["metadata"]["annotations"] == {"kwok.x-k8s.io/node": "fake"}
    assert gpu["spec"]["taints"] == [{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}]
    assert gpu["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"] == 10250
    assert not [name for name in gpu["status"]["capacity"] if "nvidia" in name or "rdma" in name]
    assert "127.0.0.1" in [one["address"] for one in gpu["status"]["addresses"]]


@pytest.mark.parametrize("count", [0, -1, fleet.MOST_NODES + 1])
def test_a_fleet_has_a_sensible_size(count: int) -> None:
    with pytest.raises(InputError, match=f"{count} nodes cannot be rehearsed; give 1 to {fleet.MOST_NODES}"):
        fleet.nodes(fleet.load_profile("h100-ib"), count, 10250)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("title", None, "title is None; it must be of type str"),
        ("machine.cpus", "many", "machine.cpus is 'many'; it must be of type int"),
        ("machine.cores", 8, "unknown key machine.cores; known are cpus,"),
        ("gpus.devices", [], None),
        ("gpus.devices", "eight", r"gpus.devices must be a list"),
        ("gpus.devices", [{"bus_id": "00000000:19:00.0"}], r"gpus.devices\[0\].numa is missing"),
        ("driver.owner", "nobody", "driver.owner is 'nobody'; it may be operator, host"),
        ("nics.link", "Ethernet", "nics.link is 'Ethernet'; it may be IB, RoCE"),
        ("nics", None, "nics must be a table"),
        ("rdma", "none", "`nics` describes RDMA rails"),
        ("rdma", "roce", "network.rails has one network for each rail"),
        ("resources", ["nvidia.com/gpu"], "resources must be a table"),
        ("network.pods", "10.64.0.0/40", "network.pods: '10.64.0.0/40' does not appear to be"),
        ("os", "Ubuntu", "os must be a table"),
    ],
)
def test_a_wrong_profile_is_named_in_one_line(tmp_path: Path, path: str, value: Any, message: str | None) -> None:
    data = yaml.safe_load((PROFILES / "h100-ib.yaml").read_text())
    table = data
    *parents, key = path.split(".")
    for parent in parents:
        table = table[parent]
    table[key] = value
    file = tmp_path / "odd.yaml"
    file.write_text(yaml.safe_dump(data))
    if message is None:
        assert fleet.read_profile(file).gpus.devices == ()
        return
    with pytest.raises(InputError, match=message) as caught:
        fleet.read_profile(file)
    assert "\n" not in str(caught.value)


def test_a_profile_that_is_no_yaml(tmp_path: Path) -> None:
    file = tmp_path / "odd.yaml"
    file.write_text("title: [")
    with pytest.raises(InputError, match=r"profile odd.yaml cannot be read") as caught:
        fleet.read_profile(file)
    assert "\n" not in str(caught.value)
