"""What Helm is given: the layers, what inventory implies, and that the real charts have every key."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from gpuready.charts_values import bill, inventory, resources, values
from gpuready.charts_values.errors import InputError
from gpuready.charts_values.inventory import Cluster
from gpuready.charts_values.values import Observed, merge

GROUP: dict[str, Any] = {
    "nodes": ["gpu-0", "gpu-1"],
    "gpu_product": "NVIDIA-H100-80GB-HBM3",
    "resources": {"nvidia.com/gpu": 8, "rdma/rdma_shared_device_a": 63},
    "rdma": "ib",
    "taints": [
        {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"},
        {"key": "team", "value": "a", "effect": "NoExecute"},
    ],
}
ENTRY: dict[str, Any] = {
    "pod_cidr": "10.244.0.0/16",
    "service_cidr": "10.96.0.0/16",
    "driver_version": "580.173.02",
    "dra": "compute-domains",
    "groups": {"h100": GROUP},
}
OBSERVED = Observed(kube_proxy=False, api_host="192.0.2.1", api_port=6443, operator_nodes=3)
# Every way in which an entry or an observation changes what is set.
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "dra-gpus": {"dra": "gpus"},
    "dra-off": {"dra": "off"},
    "host-driver": {"driver_owner": "host", "ofed_owner": "host"},
    "operator-ofed": {"ofed_owner": "operator"},
    "k3s": {"platform": "k3s"},
}


def cluster(folder: Path | None = None, **changes: Any) -> Cluster:
    return inventory.parse("lab", {**ENTRY, **changes}, folder)


def release(name: str) -> bill.Release:
    return next(one for one in bill.load() if one.name == name)


def leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Each key path with its value; lists are values."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def fault(chart: Mapping[str, Any], path: tuple[str, ...], value: Any) -> str | None:
    """What is wrong with setting a path in a chart's values; an empty map, an empty list and a null are open."""
    here: Any = chart
    for key in path:
        if here is None or here in ({}, []):
            return None
        if not isinstance(here, Mapping) or key not in here:
            return f"{'.'.join(path)} does not exist"
        here = here[key]
    if here is None or (isinstance(here, type(value)) and isinstance(here, bool) == isinstance(value, bool)):
        return None
    # The API port is "" by default, and its schema takes a number as well.
    if path == ("k8sServicePort",) and isinstance(value, int):
        return None
    return f"{'.'.join(path)} is a {type(here).__name__} in the chart, not a {type(value).__name__}"


def test_maps_merge_the_rest_replaces_and_none_deletes() -> None:
    low = {"a": {"b": 1, "c": [1, 2]}, "gone": {"x": 1}, "s": "text"}
    high = {"a": {"c": [3], "d": None}, "gone": None, "s": {"now": "a map"}, "never": None}
    assert merge(low, high) == {"a": {"b": 1, "c": [3]}, "s": {"now": "a map"}}
    assert low["a"]["c"] == [1, 2], "a layer was changed"


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kube_proxy", [False, True])
def test_the_real_chart_has_every_key_that_we_set(shared: Path, variant: str, kube_proxy: bool) -> None:
    promised = cluster(**VARIANTS[variant])
    devices = "eno1" if variant == "default" else ""
    seen = Observed(kube_proxy, api_host="192.0.2.1", api_port=6443, operator_nodes=1, devices=devices)
    faults = []
    for one in bill.releases(promised):
        folder = shared / "charts" / f"{one.chart}-{one.version}"
        chart = yaml.safe_load((folder / "values.yaml").read_text(encoding="utf-8"))
        paths = list(leaves(values.values(one, promised, seen)))
        assert paths, one.name
        faults += [f"{one.name}: {found}" for path, value in paths if (found := fault(chart, path, value))]
    # What the chart's file shows as a comment it does not have as a key.
    shown = (shared / f"charts/cilium-{release('cilium').version}/values.yaml").read_text(encoding="utf-8")
    assert "\n# devices: " in shown
    assert faults == (["cilium: devices does not exist"] if seen.devices else [])


def test_a_misspelt_key_is_found(shared: Path) -> None:
    chart = yaml.safe_load((shared / "charts/cilium-1.19.6/values.yaml").read_text(encoding="utf-8"))
    assert fault(chart, ("cni", "exclusve"), False) == "cni.exclusve does not exist"
    assert fault(chart, ("cni", "exclusive"), "false") == "cni.exclusive is a bool in the chart, not a str"
    assert fault(chart, ("cni", "exclusive"), False) is None


def test_pins_are_what_the_real_charts_say(shared: Path) -> None:
    for one in bill.load():
        meta = yaml.safe_load((shared / f"charts/{one.chart}-{one.version}/Chart.yaml").read_text(encoding="utf-8"))
        assert meta["name"] == one.chart
        # The GPU Operator's source tree carries a development version.
        assert meta["version"] in (one.version, "v1.0.0-devel")
        assert meta.get("kubeVersion") == one.chart_range


def test_cilium_leaves_other_networks_alone() -> None:
    made = values.values(release("cilium"), cluster(), OBSERVED)
    assert made["cni"]["exclusive"] is False
    assert made["ipam"]["operator"]["clusterPoolIPv4PodCIDRList"] == ["10.244.0.0/16"]
    assert made["rollOutCiliumPods"] is True


def test_kube_proxy_decides_how_cilium_reaches_the_api() -> None:
    without = values.values(release("cilium"), cluster(), OBSERVED)
    assert (without["kubeProxyReplacement"], without["k8sServiceHost"], without["k8sServicePort"]) == (
        "true",
        "192.0.2.1",
        6443,
    )
    beside = values.values(release("cilium"), cluster(), Observed(True, "192.0.2.1", 6443, 3))
    assert beside["kubeProxyReplacement"] == "false"
    assert "k8sServiceHost" not in beside


def test_cilium_stays_off_the_rails_where_its_devices_are_known() -> None:
    assert "devices" not in values.values(release("cilium"), cluster(), OBSERVED)
    told = dataclasses.replace(OBSERVED, devices="eno1 eno2")
    assert values.values(release("cilium"), cluster(), told)["devices"] == "eno1 eno2"
    assert "devices" in values.text(cluster(), "cilium").splitlines()[1]


@pytest.mark.parametrize(("nodes", "replicas"), [(0, 1), (1, 1), (2, 2), (50, 2)])
def test_operator_replicas_follow_the_nodes_that_take_them(nodes: int, replicas: int) -> None:
    made = values.values(release("cilium"), cluster(), Observed(False, "h", 6443, nodes))
    assert made["operator"]["replicas"] == replicas


def test_what_must_land_on_gpu_nodes_tolerates_their_taints() -> None:
    promised = cluster()
    wanted = {"key": "team", "operator": "Equal", "value": "a", "effect": "NoExecute"}
    gpu = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    lists = [
        values.values(release("node-feature-discovery"), promised)["worker"]["tolerations"],
        values.values(release("gpu-operator"), promised)["daemonsets"]["tolerations"],
        values.values(release("dra-driver-nvidia-gpu"), promised)["kubeletPlugin"]["tolerations"],
        resources.custom_resources(promised)[0]["spec"]["tolerations"],
    ]
    for one in lists:
        assert wanted in one
        assert one.count(gpu) == 1


def test_one_nfd() -> None:
    promised = cluster()
    assert values.values(release("gpu-operator"), promised)["nfd"]["enabled"] is False
    assert values.values(release("network-operator"), promised)["nfd"] == {
        "enabled": False,
        "deployNodeFeatureRules": True,
    }


def test_driver_version_and_owner() -> None:
    ours = values.values(release("gpu-operator"), cluster(driver_version="580.126.20"))["driver"]
    assert (ours["enabled"], ours["version"], ours["upgradePolicy"]["autoUpgrade"]) == (True, "580.126.20", False)
    assert ours["rdma"] == {"enabled": False}
    host = values.values(release("gpu-operator"), cluster(driver_owner="host", ofed_owner="host"))["driver"]
    assert (host["enabled"], host["rdma"]) == (False, {"enabled": False, "useHostMofed": True})


@pytest.mark.parametrize(("owner", "root"), [("operator", "/run/nvidia/driver"), ("host", "/")])
def test_dra_finds_the_driver_where_its_owner_puts_it(owner: str, root: str) -> None:
    made = values.values(release("dra-driver-nvidia-gpu"), cluster(driver_owner=owner))
    assert made["nvidiaDriverRoot"] == root


def test_dra_serves_gpus_only_without_the_device_plugin() -> None:
    domains = cluster()
    assert values.values(release("dra-driver-nvidia-gpu"), domains)["resources"]["gpus"]["enabled"] is False
    assert "devicePlugin" not in values.values(release("gpu-operator"), domains)

    gpus = cluster(dra="gpus")
    made = values.values(release("dra-driver-nvidia-gpu"), gpus)
    assert made["resources"]["gpus"]["enabled"] is made["gpuResourcesEnabledOverride"] is True
    operator = values.values(release("gpu-operator"), gpus)
    assert operator["devicePlugin"]["enabled"] is False
    label = operator["driver"]["manager"]["env"][0]["value"]
    assert made["kubeletPlugin"]["nodeSelector"] == {label: "true"}


def test_the_clusters_own_file_has_the_last_word(tmp_path: Path) -> None:
    folder = tmp_path / "charts_values" / "lab"
    folder.mkdir(parents=True)
    (folder / "cilium.yaml").write_text("MTU: 9000\nrollOutCiliumPods: null\ncni:\n  exclusive: true\n")
    made = values.values(release("cilium"), cluster(tmp_path), OBSERVED)
    assert (made["MTU"], made["cni"]) == (9000, {"exclusive": True})
    assert "rollOutCiliumPods" not in made

    (folder / "cilium.yaml").write_text("- a list\n")
    with pytest.raises(InputError, match=r"cilium\.yaml holds a list"):
        values.values(release("cilium"), cluster(tmp_path), OBSERVED)
    (folder / "cilium.yaml").write_text("a: b: c\n")
    with pytest.raises(InputError, match=r"cilium\.yaml cannot be read"):
        values.values(release("cilium"), cluster(tmp_path), OBSERVED)


@pytest.mark.parametrize(
    ("name", "text", "path"),
    [
        ("cilium", "ipam: 5", "ipam"),
        ("cilium", "ipam: {operator: [10.0.0.0/8]}", "ipam.operator"),
        ("gpu-operator", "driver: '580'", "driver"),
        ("nic-cluster-policy", "rdmaSharedDevicePlugin: none", "rdmaSharedDevicePlugin"),
    ],
)
def test_a_table_stays_a_table(tmp_path: Path, name: str, text: str, path: str) -> None:
    folder = tmp_path / "charts_values" / "lab"
    folder.mkdir(parents=True)
    (folder / f"{name}.yaml").write_text(f"{text}\n")
    with pytest.raises(InputError, match=rf"{name}\.yaml: `{path}` must be a table of keys, or null to take it away"):
        if name == "nic-cluster-policy":
            resources.custom_resources(cluster(tmp_path))
        else:
            values.values(release(name), cluster(tmp_path), OBSERVED)


def test_documents_name_release_chart_version_and_namespace() -> None:
    found = list(yaml.safe_load_all(values.text(cluster())))
    assert [one["release"] for one in found] == [one.name for one in bill.load()]
    for one, pinned in zip(found, bill.load(), strict=True):
        assert list(one) == ["release", "chart", "version", "namespace", "values"]
        assert (one["chart"], one["version"], one["namespace"]) == (pinned.chart, pinned.version, pinned.namespace)
    assert "kubeProxyReplacement" in values.text(cluster(), "cilium").splitlines()[1]
    assert "kubeProxyReplacement" not in yaml.safe_load(values.text(cluster(), "cilium"))["values"]
    with pytest.raises(InputError, match=r"no release 'istio'; it has cilium, node-feature-discovery"):
        values.text(cluster(), "istio")


def test_nic_cluster_policy_names_what_inventory_expects() -> None:
    (policy,) = resources.custom_resources(cluster())
    assert policy["metadata"]["name"] == "nic-cluster-policy"
    assert json.loads(policy["spec"]["rdmaSharedDevicePlugin"]["config"]) == {
        "configList": [{"resourceName": "rdma_shared_device_a", "rdmaHcaMax": 63, "selectors": {"vendors": ["15b3"]}}]
    }
    assert "ofedDriver" not in policy["spec"]


@pytest.mark.parametrize(
    ("owner", "rdma", "selectors"),
    [
        # The link type is that of a network device, which the kernel's own modules do not give to an InfiniBand port.
        ("inbox", "ib", {"vendors": ["15b3"]}),
        ("host", "ib", {"vendors": ["15b3"], "linkTypes": ["infiniband"]}),
        ("operator", "ib", {"vendors": ["15b3"], "linkTypes": ["infiniband"]}),
        ("host", "roce", {"vendors": ["15b3"]}),
    ],
)
def test_an_ethernet_nic_beside_infiniband_stays_out_of_the_pool(
    owner: str, rdma: str, selectors: dict[str, Any]
) -> None:
    group = {**GROUP, "rdma": rdma, "host_network": rdma == "roce"}
    promised = cluster(ofed_owner=owner, groups={"h100": group})
    config = json.loads(resources.custom_resources(promised)[0]["spec"]["rdmaSharedDevicePlugin"]["config"])
    assert config["configList"][0]["selectors"] == selectors


def test_a_pool_of_infiniband_and_ethernet_has_both() -> None:
    roce = {**GROUP, "nodes": ["gpu-9"], "rdma": "roce", "host_network": True}
    promised = cluster(ofed_owner="host", groups={"h100": GROUP, "roce": roce})
    config = json.loads(resources.custom_resources(promised)[0]["spec"]["rdmaSharedDevicePlugin"]["config"])
    assert config["configList"][0]["selectors"] == {"vendors": ["15b3"]}


def test_ofed_only_where_the_operator_owns_it() -> None:
    spec = resources.custom_resources(cluster(ofed_owner="operator"))[0]["spec"]
    assert spec["ofedDriver"]["upgradePolicy"]["autoUpgrade"] is False
    assert {"name": "SKIP_PREFLIGHT_CHECKS", "value": "false"} in spec["ofedDriver"]["env"]
    assert "ofedDriver" not in resources.custom_resources(cluster(ofed_owner="host"))[0]["spec"]


def test_without_rdma_there_is_no_policy_and_no_network_operator() -> None:
    plain = {**GROUP, "rdma": "none", "resources": {"nvidia.com/gpu": 4}}
    promised = cluster(groups={"vm": plain}, dra="off")
    assert resources.custom_resources(promised) == []
    assert [one.name for one in bill.releases(promised)] == ["cilium", "node-feature-discovery", "gpu-operator"]


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        ({"nvidia.com/gpu": 8, "rdma/rdma_shared_device_a": 31}, "different counts of rdma/rdma_shared_device_a"),
        ({"nvidia.com/gpu": 8, "rdma/b": 63}, "name their RDMA differently"),
        ({"nvidia.com/gpu": 8, "rdma/a": 63, "rdma/b": 63}, "several rdma/\\* resources"),
    ],
)
def test_rdma_that_one_policy_cannot_give_is_refused(other: dict[str, int], complaint: str) -> None:
    second = {**GROUP, "nodes": ["gpu-9"], "resources": other}
    with pytest.raises(InputError, match=complaint):
        resources.custom_resources(cluster(groups={"h100": GROUP, "other": second}))


# -- releases of others -------------------------------------------------------------------------------------------


def adopted(name: str, **changes: Any) -> tuple[bill.Release, Cluster]:
    promised = cluster(adopt=[f"{name}=theirs@elsewhere"], **changes)
    return next(one for one in bill.releases(promised) if one.key == name), promised


def test_nothing_of_an_adopted_release_is_lost() -> None:
    theirs = {
        "MTU": 8900,
        "hubble": None,
        "cni": {"chainingMode": "none"},
        "ipam": {"mode": "kubernetes"},
        "kubeProxyReplacement": "false",
    }
    taken, promised = adopted("cilium")
    made = values.taken_over(taken, promised, OBSERVED, theirs)
    assert made == {
        **theirs,
        "cni": {"chainingMode": "none", "exclusive": False},
        "rollOutCiliumPods": True,
        "operator": {"rollOutPods": True},
    }


def test_lists_of_an_adopted_release_are_united() -> None:
    kept = {"key": "mine", "operator": "Exists"}
    env = [{"name": "A", "value": "1"}, {"name": "NODE_LABEL_FOR_GPU_POD_EVICTION", "value": "x"}]
    theirs = {
        "daemonsets": {"tolerations": [kept]},
        "driver": {"manager": {"env": env}, "version": "570.1", "repository": "mirror"},
        "dcgm": {"enabled": True},
    }
    taken, promised = adopted("gpu-operator", dra="gpus")
    made = values.taken_over(taken, promised, OBSERVED, theirs)
    assert made["daemonsets"]["tolerations"] == [kept, *values.tolerations(promised)]
    assert made["driver"]["manager"]["env"] == [
        {"name": "A", "value": "1"},
        {"name": "NODE_LABEL_FOR_GPU_POD_EVICTION", "value": values.DRA_NODE_LABEL},
    ]
    assert made["driver"]["version"] == "580.173.02"
    assert (made["driver"]["repository"], made["dcgm"]) == ("mirror", {"enabled": True})
    assert made["nfd"] == {"enabled": False}
    # Once taken over, it is as it is to be.
    assert values.taken_over(taken, promised, OBSERVED, made) == made


@pytest.mark.parametrize("wide", [{"operator": "Exists"}, {"key": "nvidia.com/gpu", "operator": "Exists"}])
def test_what_a_toleration_of_theirs_covers_is_not_added(wide: dict[str, str]) -> None:
    taken, promised = adopted("gpu-operator", groups={"h100": {**GROUP, "taints": []}})
    made = values.taken_over(taken, promised, OBSERVED, {"daemonsets": {"tolerations": [wide]}})
    assert made["daemonsets"]["tolerations"] == [wide]


def test_the_clusters_own_file_reaches_an_adopted_release(tmp_path: Path) -> None:
    folder = tmp_path / "charts_values" / "lab"
    folder.mkdir(parents=True)
    (folder / "cilium.yaml").write_text("MTU: null\ncni:\n  exclusive: true\n")
    taken, _ = adopted("cilium")
    promised = cluster(tmp_path, adopt=["cilium=theirs@elsewhere"])
    made = values.taken_over(taken, promised, OBSERVED, {"MTU": 8900})
    assert "MTU" not in made
    assert made["cni"] == {"exclusive": True}


def test_drivers_are_replaced_while_a_maintenance_lasts() -> None:
    def upgrades(*named: str) -> bool:
        made = values.values(release("gpu-operator"), cluster(maintenance=list(named)))
        return bool(made["driver"]["upgradePolicy"]["autoUpgrade"])

    assert (upgrades(), upgrades("*"), upgrades("gpu-0")) == (False, True, True)
