"""Our custom resources, and what the charts make of our values, against the real definitions on a real API server."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from gpuready.charts_values import bill, inventory, resources, values
from gpuready.charts_values.errors import ApiError
from gpuready.charts_values.inventory import Cluster
from gpuready.charts_values.kube import Api, Object
from gpuready.charts_values.values import Observed
from gpuready.rehearsal import controlplane, engine, fleet
from gpuready.rehearsal.state import State
from gpuready.validators.acceptance import manifests

from .commands import until

DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
POLICIES = "/apis/nvidia.com/v1/clusterpolicies/cluster-policy"
NIC_POLICIES = "/apis/mellanox.com/v1alpha1/nicclusterpolicies/nic-cluster-policy"
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "operator-ofed": {"ofed_owner": "operator"},
    "host-driver": {"driver_owner": "host", "ofed_owner": "host"},
    "dra-gpus": {"dra": "gpus"},
    "k3s": {"platform": "k3s"},
}


@pytest.fixture(scope="module")
def kinds(
    binaries: engine.Binaries, shared: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[State, Api]]:
    """A cluster that knows the kinds of the real charts, and nothing else."""
    folder = tmp_path_factory.mktemp("kinds") / "state"
    now = controlplane.up(folder, nodes=1, profile="h100-ib", leash=os.getpid())
    api = Api.connect(now.kubeconfig)
    made = set()
    for pinned in bill.load():
        for file in sorted((shared / "charts" / f"{pinned.chart}-{pinned.version}" / "crds").glob("*.yaml")):
            for definition in filter(None, yaml.safe_load_all(file.read_text(encoding="utf-8"))):
                if definition["metadata"]["name"] not in made:
                    made.add(definition["metadata"]["name"])
                    api.create(DEFINITIONS, definition)
    assert len(made) > 10

    def served() -> list[str]:
        found = api.list(DEFINITIONS, resourceVersion="")
        return [item["metadata"]["name"] for item in found if _established(item)]

    until(served, lambda names: made <= set(names))
    yield now, api
    controlplane.down(folder)


def _established(definition: Object) -> bool:
    conditions = definition.get("status", {}).get("conditions") or ()
    return any((one["type"], one["status"]) == ("Established", "True") for one in conditions)


def promised(now: State, variant: str) -> Cluster:
    assert now.entry is not None
    return dataclasses.replace(inventory.parse("rehearsal", now.entry), **VARIANTS[variant])


def dry(api: Api, path: str, item: Object) -> Object:
    """Apply it without effect; an unknown field is an error."""
    query = {"fieldManager": "test", "dryRun": "All", "fieldValidation": "Strict"}
    return api.patch(path, item, kind="apply", **query)


def lost(wanted: Any, got: Any, path: str = "spec") -> list[str]:
    """The paths of ``wanted`` that ``got`` has not, or has differently."""
    if isinstance(wanted, dict) and isinstance(got, dict):
        return [one for key, value in wanted.items() for one in lost(value, got.get(key), f"{path}.{key}")]
    return [] if wanted == got else [path]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_nic_cluster_policy_passes_the_real_definition(kinds: tuple[State, Api], variant: str) -> None:
    now, api = kinds
    (policy,) = resources.custom_resources(promised(now, variant))
    # Defaults may come in; nothing of ours may go.
    assert lost(policy["spec"], dry(api, NIC_POLICIES, policy)["spec"]) == []


def test_the_networks_of_rails_pass_the_real_definitions(kinds: tuple[State, Api]) -> None:
    now, api = kinds
    entry = fleet.entry(fleet.load_profile("h100-roce"), 2, now.folder, now.kubeconfig, "", None)
    policy, *rest = resources.custom_resources(inventory.parse("rehearsal", entry))
    assert lost(policy["spec"], dry(api, NIC_POLICIES, policy)["spec"]) == []
    networks = [one for one in rest if one["kind"] == "MacvlanNetwork"]
    assert len(networks) == 8
    for one in networks:
        path = f"/apis/mellanox.com/v1alpha1/macvlannetworks/{one['metadata']['name']}"
        assert dry(api, path, one)["spec"] == one["spec"]


def test_the_probes_compute_domain_passes_the_real_definition(kinds: tuple[State, Api]) -> None:
    _, api = kinds
    domain = manifests.compute_domain("nccl-pair-r1", "r1", "nccl-pair")
    domain["metadata"]["namespace"] = "default"
    path = "/apis/resource.nvidia.com/v1beta1/namespaces/default/computedomains/nccl-pair-r1"
    assert lost(domain["spec"], dry(api, path, domain)["spec"]) == []


def test_a_misspelt_field_does_not_pass(kinds: tuple[State, Api]) -> None:
    now, api = kinds
    (policy,) = resources.custom_resources(promised(now, "default"))
    policy["spec"]["rdmaSharedDevicePlugn"] = {}
    with pytest.raises(ApiError, match="rdmaSharedDevicePlugn"):
        dry(api, NIC_POLICIES, policy)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_stand_ins_cluster_policy_passes_the_real_definition(
    kinds: tuple[State, Api], variant: str, root: Path
) -> None:
    now, api = kinds
    cluster = promised(now, variant)
    release = next(one for one in bill.releases(cluster) if one.name == "gpu-operator")
    given = values.values(release, cluster, Observed(False, "192.0.2.1", 6443, 1))
    chart = root / "rehearsal" / "charts" / release.chart
    rendered = subprocess.run(
        [now.bin / "helm", "template", release.name, chart, "--kube-version", "1.35.4", "--values", "-"],
        input=yaml.safe_dump(given),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    (policy,) = [one for one in yaml.safe_load_all(rendered) if one and one["kind"] == "ClusterPolicy"]
    spec = dry(api, POLICIES, policy)["spec"]
    assert spec["driver"]["enabled"] is (cluster.driver_owner == "operator")
    assert spec["devicePlugin"]["enabled"] is (cluster.dra != "gpus")
    assert spec["daemonsets"]["tolerations"] == values.tolerations(cluster)


def test_the_dra_stand_in_refuses_what_the_real_chart_refuses(kinds: tuple[State, Api], root: Path) -> None:
    now, _ = kinds
    command = [now.bin / "helm", "template", "x", root / "rehearsal/charts/dra-driver-nvidia-gpu"]
    command += ["--kube-version", "1.35.4"]

    def render(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *options], capture_output=True, text=True, timeout=60)

    assert "gpuResourcesEnabledOverride" in render().stderr
    both = render("--set", "gpuResourcesEnabledOverride=true")
    assert both.returncode == 0
    assert both.stdout.count("kind: DeviceClass") == 4
    domains = render("--set", "resources.gpus.enabled=false")
    assert "name: gpu.nvidia.com" not in domains.stdout
