"""The literal command on a rehearsal cluster: it installs, then changes nothing, then only what was changed."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from gpuready.charts_values import bill, inventory
from gpuready.charts_values.errors import DeadlineError
from gpuready.charts_values.inventory import Cluster
from gpuready.charts_values.kube import Api
from gpuready.deploys import observed
from gpuready.rehearsal import controlplane
from gpuready.rehearsal.state import State

from . import installer
from .installer import footprint, install, own_values, plan, pyinfra, set_status


def api(now: State) -> Api:
    return Api.connect(now.kubeconfig)


def entry(now: State) -> Cluster:
    assert now.entry is not None
    return inventory.parse("rehearsal", now.entry)


def release(name: str) -> bill.Release:
    return next(one for one in bill.load() if one.name == name)


def changed(operations: dict[str, bool]) -> list[str]:
    return [name for name, did in operations.items() if did]


@pytest.fixture
def restored(installed: State) -> Iterator[State]:
    """The installed cluster; the literal command takes back what a test has changed."""
    yield installed
    install(installed.folder)


def test_from_bare_nodes_to_no_changes(state_dir: Path) -> None:
    now = controlplane.up(state_dir, nodes=2, profile="h100-ib", leash=os.getpid())
    before = footprint(api(now))
    first = plan(state_dir)
    assert footprint(api(now)) == before, "a dry run changed something"
    # The kubelets are healthy already; everything else is to come.
    assert [name for name, would in first.items() if not would] == ["GPU nodes: kubelets healthy"]
    titles = [name.partition(":")[0] for name in first if ": release" in name]
    assert titles == [one.title for one in bill.releases(entry(now))]

    install(state_dir)

    assert changed(install(state_dir)) == []
    for node in api(now).list("/api/v1/nodes"):
        if node["metadata"]["name"] != "cp-0":
            offered = node["status"]["allocatable"]
            assert {key: int(offered[key]) for key in entry(now).groups[0].resources} == entry(now).groups[0].resources


def test_nodes_are_labelled_for_dra_before_the_gpu_operator_comes(installed: State, tmp_path: Path) -> None:
    names = list(plan(installed.folder, installer.inventory(tmp_path, dra="gpus")))
    assert names.index("GPU nodes: label for DRA") < names.index("GPU Operator: release v26.7.0")


def test_what_runs_is_what_the_files_say(installed: State) -> None:
    config = api(installed).get("/api/v1/namespaces/kube-system/configmaps/cilium-config")["data"]
    assert config["cni-exclusive"] == "false"
    assert config["cluster-pool-ipv4-cidr"] == entry(installed).pod_cidr
    assert config["kube-proxy-replacement"] == "true"
    policy = api(installed).get("/apis/nvidia.com/v1/clusterpolicies/cluster-policy")["spec"]
    assert policy["driver"]["version"] == entry(installed).driver_version
    assert policy["driver"]["upgradePolicy"]["autoUpgrade"] is False
    for one in bill.releases(entry(installed)):
        labels = api(installed).get(f"/api/v1/namespaces/{one.namespace}")["metadata"]["labels"]
        assert (labels.get("pod-security.kubernetes.io/enforce") == "privileged") is one.privileged


def test_a_dry_run_of_an_installed_cluster_shows_nothing_to_do(installed: State) -> None:
    assert changed(plan(installed.folder)) == []


def test_a_changed_value_is_a_change_of_that_release_alone(restored: State, tmp_path: Path) -> None:
    file = installer.inventory(tmp_path)
    own_values(file, "gpu-operator", "dcgmExporter:\n  enabled: false\n")
    planned = changed(plan(restored.folder, file))
    assert planned == ["GPU Operator: release v26.7.0"]
    shown = pyinfra(restored.folder, "--dry", file=file, PYINFRA_YES="").stderr
    assert 'GPU Operator v26.7.0: dcgmExporter: (none) -> {"enabled":false}' in shown
    # The wait after it is one as well: the operator's word may still be about the old values.
    assert changed(install(restored.folder, file)) == [*planned, "GPU Operator: wait until observed"]
    policy = api(restored).get("/apis/nvidia.com/v1/clusterpolicies/cluster-policy")["spec"]
    assert policy["dcgmExporter"]["enabled"] is False


def test_a_changed_custom_resource_is_a_change_of_it_alone(restored: State, tmp_path: Path) -> None:
    file = installer.inventory(tmp_path)
    own_values(file, "nic-cluster-policy", "rdmaSharedDevicePlugin:\n  useCdi: true\n")
    planned = changed(plan(restored.folder, file))
    assert planned == ["NicClusterPolicy nic-cluster-policy: applied"]
    install(restored.folder, file)
    path = "/apis/mellanox.com/v1alpha1/nicclusterpolicies/nic-cluster-policy"
    assert api(restored).get(path)["spec"]["rdmaSharedDevicePlugin"]["useCdi"] is True
    # Taken out of the file, it goes from the object as well.
    assert changed(plan(restored.folder)) == planned


def test_what_somebody_else_set_is_left_alone(restored: State) -> None:
    path = "/apis/mellanox.com/v1alpha1/nicclusterpolicies/nic-cluster-policy"
    api(restored).patch(path, {"metadata": {"annotations": {"example.org/owner": "someone"}}})
    assert changed(plan(restored.folder)) == []
    api(restored).patch(path, {"metadata": {"annotations": {"example.org/owner": None}}})


@pytest.mark.parametrize("status", ["failed", "pending-install", "pending-upgrade"])
def test_an_interrupted_release_is_put_right_and_not_uninstalled(restored: State, status: str) -> None:
    path = f"/apis/apps/v1/namespaces/{release('node-feature-discovery').namespace}/daemonsets"
    before = {one["metadata"]["uid"] for one in api(restored).list(path)}
    # Edited by hand and back again: another manager's field now, at which Helm would stop.
    master = "/apis/apps/v1/namespaces/node-feature-discovery/deployments/node-feature-discovery-master"
    tolerations = api(restored).get(master)["spec"]["template"]["spec"]["tolerations"]
    for edited in ([], tolerations):
        body = {"spec": {"template": {"spec": {"tolerations": edited}}}}
        api(restored).patch(master, body, fieldManager="kubectl-edit")
    set_status(api(restored), "node-feature-discovery", status)
    assert changed(plan(restored.folder)) == ["NFD: release 0.19.0"]
    done = pyinfra(restored.folder)
    assert done.returncode == 0, done.stderr
    assert f"is {status}" in done.stderr
    assert {one["metadata"]["uid"] for one in api(restored).list(path)} == before


def test_a_deleted_release_record_is_not_taken_for_an_installation(restored: State) -> None:
    """What was installed is there, but nothing says by whom: Helm takes it over by its own labels."""
    secrets = f"/api/v1/namespaces/{release('node-feature-discovery').namespace}/secrets"
    for one in api(restored).list(secrets, labelSelector="owner=helm", resourceVersion=""):
        api(restored).delete(f"{secrets}/{one['metadata']['name']}")
    assert changed(plan(restored.folder)) == ["NFD: release 0.19.0"]


# -- the wait -----------------------------------------------------------------------------------------------------


def _expecting(now: State, **resources: int) -> Cluster:
    """The cluster's entry with other promises."""
    promised = entry(now)
    group = promised.groups[0]
    return dataclasses.replace(
        promised, groups=(dataclasses.replace(group, resources={**group.resources, **resources}),)
    )


def _waits_for(now: State, cluster: Cluster, goal: observed.Goal) -> str:
    """The line with which the wait ends at its deadline."""
    with pytest.raises(DeadlineError) as failed:
        observed.wait(api(now), cluster, dataclasses.replace(goal, deadline_s=0.2))
    assert "\n" not in str(failed.value)
    return str(failed.value)


def test_each_goal_is_reached(installed: State) -> None:
    for one in bill.releases(entry(installed)):
        observed.wait(api(installed), entry(installed), observed.goal(one))


def test_missing_gpus_are_named_by_node(installed: State) -> None:
    said = _waits_for(installed, _expecting(installed, **{"nvidia.com/gpu": 9}), observed.goal(release("gpu-operator")))
    assert said == (
        "GPU Operator: 4 of 4 nodes offer another number of GPUs: gpu-0000 (8 of 9) gpu-0001 (8 of 9) "
        "gpu-0002 (8 of 9) gpu-0003 (8 of 9) (deadline 0.2 s)"
    )


def test_missing_rdma_is_named_by_node(installed: State) -> None:
    goal = observed.Goal("NicClusterPolicy", 1, observed.nic_policy)
    said = _waits_for(installed, _expecting(installed, **{"rdma/rdma_shared_device_a": 64}), goal)
    assert "4 of 4 nodes lack rdma/rdma_shared_device_a: gpu-0000 gpu-0001 gpu-0002 gpu-0003" in said


def test_dra_that_serves_no_gpus_is_noticed(installed: State) -> None:
    served = dataclasses.replace(entry(installed), dra="gpus")
    said = _waits_for(installed, served, observed.goal(release("dra-driver-nvidia-gpu")))
    assert "4 of 4 nodes have no ResourceSlice of gpu.nvidia.com" in said
    said = _waits_for(installed, served, observed.goal(release("gpu-operator")))
    assert "4 nodes still offer nvidia.com/gpu, which DRA is to serve" in said


def test_on_a_bare_cluster_every_goal_says_what_is_missing(rehearsal: State) -> None:
    for one in bill.releases(entry(rehearsal)):
        said = _waits_for(rehearsal, entry(rehearsal), observed.goal(one))
        assert f"no workload of release {one.name} in namespace {one.namespace}" in said
    goal = observed.Goal("NicClusterPolicy", 1, observed.nic_policy)
    assert "nic-cluster-policy is not taken up" in _waits_for(rehearsal, entry(rehearsal), goal)


def test_a_failed_operation_is_one_line_and_ends_the_run(state_dir: Path, tmp_path: Path, root: Path) -> None:
    now = controlplane.up(state_dir, nodes=1, profile="cloud-vm", leash=os.getpid())
    charts = tmp_path / "charts"
    shutil.copytree(root / "rehearsal" / "charts", charts)
    template = charts / "node-feature-discovery" / "templates" / "gc.yaml"
    template.write_text('{{ fail "this cannot be rendered" }}')

    done = pyinfra(state_dir, GPUREADY_CHARTS=str(charts))

    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (line,) = [one for one in done.stderr.splitlines() if "this cannot be rendered" in one]
    assert "helm upgrade: " in line
    assert "GPU Operator: release" not in done.stderr
    spaces = {one["metadata"]["name"] for one in api(now).list("/api/v1/namespaces")}
    assert "node-feature-discovery" in spaces
    assert "gpu-operator" not in spaces
    # Put right, the run goes on from where it stopped.
    assert changed(plan(state_dir))[0] == "NFD: release 0.19.0"
