"""What somebody changed by hand: shown with old and new, and put back; and what only a maintenance may change."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gpuready.charts_values.kube import Api, Object
from gpuready.deploys.disruption import SKIP_LABEL, driver_pods, runs_version
from gpuready.rehearsal import controlplane
from gpuready.rehearsal.state import State

from .commands import until
from .installer import install, inventory, plan, pyinfra, set_status
from .platform import CHARTS, NIC_POLICIES, POLICY

CONFIG = "/api/v1/namespaces/kube-system/configmaps/cilium-config"
NFD_MASTER = "/apis/apps/v1/namespaces/node-feature-discovery/deployments/node-feature-discovery-master"
NETWORK_OPERATOR = "/apis/apps/v1/namespaces/nvidia-network-operator/deployments/network-operator"
NIC_POLICY = f"{NIC_POLICIES}/nic-cluster-policy"


@pytest.fixture
def restored(installed: State) -> Iterator[State]:
    """The installed cluster; the literal command takes back what a test has changed."""
    yield installed
    install(installed.folder)


def api(now: State) -> Api:
    return Api.connect(now.kubeconfig)


def edit(now: State, path: str, change: Object) -> None:
    """As `kubectl edit` does."""
    api(now).patch(path, change, fieldManager="kubectl-edit")


def helm(now: State, *words: str | Path) -> None:
    command = [now.bin / "helm", *words, "--kubeconfig", now.kubeconfig]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


def shown(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stderr


def dry(now: State, file: Path | str = "inventory") -> str:
    """What a dry run shows."""
    return shown(pyinfra(now.folder, "--dry", file=file, PYINFRA_YES=""))


def changed(operations: dict[str, bool]) -> list[str]:
    return [name for name, did in operations.items() if did]


def test_what_was_changed_by_hand_is_shown_and_put_back(restored: State) -> None:
    edit(restored, CONFIG, {"data": {"cni-exclusive": "true"}})
    edit(restored, NFD_MASTER, {"spec": {"replicas": 0}})
    api(restored).delete(NETWORK_OPERATOR)
    edit(restored, NIC_POLICY, {"spec": {"rdmaSharedDevicePlugin": {"version": "other"}}})
    edit(restored, POLICY, {"spec": {"dcgmExporter": {"enabled": False}}})
    # No driver pod has taken this up: undoing it restarts nothing.
    edit(restored, POLICY, {"spec": {"driver": {"version": "999.1"}}})
    chart = CHARTS / "dra-driver-nvidia-gpu"
    helm(restored, "upgrade", chart.name, chart, "-n", chart.name, "--reuse-values", "--set", "nvidiaDriverRoot=/")

    lines = dry(restored)
    for line in (
        "Cilium 1.19.6: ConfigMap cilium-config: data.cni-exclusive: true -> false",
        "NFD 0.19.0: Deployment node-feature-discovery-master: spec.replicas: 0 -> 1",
        "Network Operator 26.4.1: Deployment network-operator: does not exist",
        "NicClusterPolicy nic-cluster-policy: spec.rdmaSharedDevicePlugin.version: other -> network-operator-v26.4.1",
        "GPU Operator v26.7.0: ClusterPolicy cluster-policy: spec.dcgmExporter.enabled: false -> true; "
        "spec.driver.version: 999.1 -> 580.173.02",
        "DRA driver 0.4.0: nvidiaDriverRoot: / -> /run/nvidia/driver",
    ):
        assert line in lines
    assert "withheld" not in lines

    install(restored.folder)
    assert api(restored).get(CONFIG)["data"]["cni-exclusive"] == "false"
    assert api(restored).get(POLICY)["spec"]["driver"]["version"] == "580.173.02"
    assert changed(plan(restored.folder)) == []


def test_a_release_that_was_uninstalled_is_installed_again(restored: State) -> None:
    helm(restored, "uninstall", "dra-driver-nvidia-gpu", "-n", "dra-driver-nvidia-gpu")
    secrets = "/api/v1/namespaces/node-feature-discovery/secrets"
    for one in api(restored).list(secrets, labelSelector="owner=helm", resourceVersion=""):
        api(restored).delete(f"{secrets}/{one['metadata']['name']}")
    workers = "/apis/apps/v1/namespaces/node-feature-discovery/daemonsets"
    before = {one["metadata"]["uid"] for one in api(restored).list(workers)}

    done = shown(pyinfra(restored.folder))
    assert "NFD 0.19.0: not installed" in done
    assert "DRA driver 0.4.0: not installed" in done
    assert {one["metadata"]["uid"] for one in api(restored).list(workers)} == before


def test_the_network_of_a_live_cilium_is_never_put_back(restored: State) -> None:
    for key, value in (("cluster-pool-ipv4-cidr", "10.99.0.0/16"), ("kube-proxy-replacement", "false")):
        before = api(restored).get(CONFIG)["data"][key]
        edit(restored, CONFIG, {"data": {key: value}})
        done = pyinfra(restored.folder)
        edit(restored, CONFIG, {"data": {key: before}})
        assert done.returncode == 2, done.stderr
        line = f"ConfigMap kube-system/cilium-config says {key} {value}, and release cilium made it {before}"
        assert line in done.stderr


# -- maintenance --------------------------------------------------------------------------------------------------

NEW = "580.200.01"


def test_another_driver_waits_for_a_maintenance_and_goes_node_by_node(state_dir: Path, tmp_path: Path) -> None:
    now = controlplane.up(state_dir, nodes=2, profile="h100-ib", leash=os.getpid())
    install(state_dir)

    def promising(name: str, **changes: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        return inventory(folder, **changes)

    def drivers() -> dict[str, bool]:
        """Which nodes run the new driver."""
        return {one.node: runs_version(one, NEW) for one in driver_pods(api(now), "gpu-operator")}

    def current() -> list[bool]:
        """Of each driver pod, whether it is as the DaemonSet says."""
        return [one.current for one in driver_pods(api(now), "gpu-operator")]

    withheld = promising("withheld", driver_version=NEW)
    line = (
        f"GPU Operator: driver.version: 580.173.02 -> {NEW}: withheld, since it restarts the driver on every GPU node"
    )
    before = {one["metadata"]["uid"] for one in _pods(now)}
    assert line in shown(pyinfra(state_dir, file=withheld))
    assert line in dry(now, withheld)
    assert {one["metadata"]["uid"] for one in _pods(now)} == before
    assert changed(plan(state_dir, withheld)) == []

    done = pyinfra(state_dir, file=promising("typo", driver_version=NEW, maintenance=["gpu-9999"]))
    assert "`maintenance` names 'gpu-9999', which is no node" in done.stderr

    install(state_dir, promising("one", driver_version=NEW, maintenance=["gpu-0001"]))
    assert drivers() == {"gpu-0000": False, "gpu-0001": True}
    assert _labels(now, "gpu-0000")[SKIP_LABEL] == "true"
    # The maintenance is over: the other node keeps its driver, and everybody is told.
    over = shown(pyinfra(state_dir, file=withheld))
    assert "driver of an older release on gpu-0000; it is replaced when `maintenance` names them" in over
    assert SKIP_LABEL not in _labels(now, "gpu-0000")
    assert drivers() == {"gpu-0000": False, "gpu-0001": True}
    policy = api(now).get(POLICY)["spec"]["driver"]["upgradePolicy"]
    assert policy["autoUpgrade"] is False

    install(state_dir, promising("all", driver_version=NEW, maintenance=["*"]))
    assert drivers() == {"gpu-0000": True, "gpu-0001": True}
    until(lambda: api(now).get(POLICY)["status"]["state"], lambda seen: seen == "ready")
    install(state_dir, withheld)
    assert changed(plan(state_dir, withheld)) == []

    # Another driver by hand, which runs already: neither put back, nor by Helm on its way to something else.
    edit(now, POLICY, {"spec": {"driver": {"version": "580.300.01"}}})
    until(current, lambda seen: seen == [False, False])
    for pod in _pods(now):
        api(now).delete(f"/api/v1/namespaces/gpu-operator/pods/{pod['metadata']['name']}")
    until(current, lambda seen: seen == [True, True])
    before = {one["metadata"]["uid"] for one in _pods(now)}
    mine = f"580.300.01 -> {NEW}: withheld, since it restarts the driver once more"
    assert mine in shown(pyinfra(state_dir, file=withheld))
    set_status(api(now), "gpu-operator", "failed")
    lines = shown(pyinfra(state_dir, file=withheld))
    assert mine in lines
    assert "is failed: withheld, since Helm would put back the driver that was edited by hand" in lines
    assert {one["metadata"]["uid"] for one in _pods(now)} == before
    install(state_dir, promising("back", driver_version=NEW, maintenance=["*"]))
    assert drivers() == {"gpu-0000": True, "gpu-0001": True}


def _pods(now: State) -> list[Object]:
    query = {"labelSelector": "app.kubernetes.io/component=nvidia-driver", "resourceVersion": ""}
    return api(now).list("/api/v1/namespaces/gpu-operator/pods", **query)


def _labels(now: State, name: str) -> dict[str, str]:
    return dict(api(now).get(f"/api/v1/nodes/{name}")["metadata"]["labels"])
