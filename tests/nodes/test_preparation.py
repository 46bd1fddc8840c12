"""Preparation over SSH, on machines with real kubelets: settings arrive, stay, come back after a failure, and go."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gpuready.charts_values.kube import Api
from gpuready.rehearsal.state import State

from .conftest import Shell

INVENTORY = """
import json, os
from gpuready.charts_values import inventory as _inventory

_entry = {"maintenance": json.loads(os.environ["MAINTAIN"]), "node": json.loads(os.environ["NODE"])}
_this = _inventory.choose({"rehearsal": {"rehearsal": True, **_entry}}, __file__)
cluster = ["@local"]
gpu_nodes = (_inventory.hosts(_this), {"gpuready": _this})
"""
DEPLOY = """
import sys
from gpuready.charts_values.errors import GpureadyError
from gpuready.deploys.nodes import operations, preparation
from pyinfra.context import host

try:
    if "gpu_nodes" in host.groups:
        preparation.prepare(host.data.get("gpuready"))
    operations.prepared(name="Nodes: prepared")
    if "cluster" in host.groups:
        operations.prepared(name="Cluster: its turn")
except GpureadyError as error:
    print(f"gpuready: {error}", file=sys.stderr)
    sys.exit(2)
"""
# A reboot by itself: machines that share their kernel have no arguments of their own.
REBOOT = """
from gpuready.charts_values.kube import Api
from gpuready.deploys.nodes import operations
from gpuready.deploys.nodes.plan import Disruption
from gpuready.deploys.nodes.shell import PyinfraShell
from pyinfra.context import host

cluster = host.data.get("gpuready")
operations.rolled_out(
    shared=operations.Shared.of(host.state, lambda: Api.connect(cluster.kubeconfig, cluster.context)),
    shell=PyinfraShell(host, sudo=True),
    change=Disruption(reasons=("kernel arguments",), reboot=True, proofs=("test -e /proc/cmdline",)),
    withheld=False,
    difference="",
    _serial=True,
)
"""
STATIC = {
    "cpu_manager": {"policy": "static"},
    "memory_manager": {"policy": "Static"},
    "reserved": {"cpus": "0", "kube_memory": "512Mi", "system_memory": "256Mi"},
}
# containerd cannot start with it, however good the file looks.
FATAL = {**STATIC, "limits": {"nofile": 8}}
Prepare = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def prepare(machines: State, tmp_path: Path) -> Prepare:
    """`prepare(settings, maintain=[...])`: one run of pyinfra over all machines."""
    (tmp_path / "inventory").write_text(INVENTORY)
    (tmp_path / "nodes.py").write_text(DEPLOY)
    (tmp_path / "reboot.py").write_text(REBOOT)

    def run(
        node: dict[str, Any], *options: str, maintain: tuple[str, ...] = ("*",), deploy: str = "nodes.py"
    ) -> subprocess.CompletedProcess[str]:
        more = {"GPUREADY_STATE_DIR": str(machines.folder), "NODE": json.dumps(node), "MAINTAIN": json.dumps(maintain)}
        pyinfra = Path(sys.executable).with_name("pyinfra")
        return subprocess.run(
            [pyinfra, "inventory", deploy, *(options or ("-y",))],
            cwd=tmp_path,
            env={**os.environ, **more, "PYINFRA_PROGRESS": "off", "PYINFRA_YES": ""},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


def configz(machines: State, name: str) -> dict[str, Any]:
    found: dict[str, Any] = Api.connect(machines.kubeconfig).get(f"/api/v1/nodes/{name}/proxy/configz")["kubeletconfig"]
    return found


def steady(machines: State) -> bool:
    """Every machine is Ready, and nobody's cordon is left."""
    nodes = Api.connect(machines.kubeconfig).list("/api/v1/nodes", resourceVersion="")
    mine = [node for node in nodes if node["metadata"]["name"].startswith("machine-")]
    ready = [one["status"] for node in mine for one in node["status"]["conditions"] if one["type"] == "Ready"]
    return ready == ["True", "True"] and not any(node["spec"].get("unschedulable") for node in mine)


def test_settings_arrive_stay_come_back_and_go(machines: State, shell: Shell, prepare: Prepare) -> None:
    # Without a maintenance it is said what would be done, and no kubelet is touched.
    shown = prepare(STATIC, "--dry", "--diff", maintain=())
    assert "machine-0: withheld, since it disturbs pods: kubelet: /etc/kubernetes/kubelet.conf.d/50-gpuready.conf" in (
        shown.stderr
    )
    assert "+cpuManagerPolicy: static" in shown.stderr
    assert configz(machines, "machine-0")["cpuManagerPolicy"] == "none"

    done = prepare(STATIC)
    assert done.returncode == 0, done.stderr
    # The cluster's own work waits for every node's last step.
    assert done.stderr.index("operation: Nodes: kubelet") < done.stderr.index("operation: Cluster: its turn")
    for name in ("machine-0", "machine-1"):
        config = configz(machines, name)
        assert (config["topologyManagerPolicy"], config["topologyManagerScope"]) == ("restricted", "pod")
        assert (config["cpuManagerPolicy"], config["memoryManagerPolicy"]) == ("static", "Static")
        # 512 MiB + 256 MiB + the 50 MiB at which this kubelet evicts.
        assert config["reservedMemory"] == [{"numaNode": 0, "limits": {"memory": "818Mi"}}]
        assert shell(name, "cat /var/lib/kubelet/cpu_manager_state", user="root")[1].count('"policyName":"static"') == 1
    assert steady(machines)

    again = prepare(STATIC)
    assert again.returncode == 0, again.stderr
    total = next(line.split() for line in again.stderr.splitlines() if "Grand total" in line)
    assert total[3:] == ["-", "-", total[2]], again.stderr

    bad = prepare(FATAL)
    assert bad.returncode == 1, bad.stderr
    assert "what was there is back, and the node is as it was" in bad.stderr
    assert bad.stderr.count("not touched, since machine-") == 1
    for name in ("machine-0", "machine-1"):
        assert "LimitNOFILE=8" not in shell(name, "systemctl cat containerd kubelet", user="root")[1]
    assert steady(machines)

    back = prepare({})
    assert back.returncode == 0, back.stderr
    assert "/var/lib/kubelet/cpu_manager_state: policy static -> none" in back.stderr
    assert configz(machines, "machine-1")["cpuManagerPolicy"] == "none"
    assert steady(machines)


def test_a_refusal_stops_before_anything_is_stopped(machines: State, shell: Shell, prepare: Prepare) -> None:
    before = shell("machine-0", "systemctl show -p MainPID kubelet", user="root")
    refused = prepare({"cpu_manager": {"policy": "static"}})
    assert refused.returncode == 2
    assert "CPU Manager static needs a reservation" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert shell("machine-0", "systemctl show -p MainPID kubelet", user="root") == before


def test_a_node_comes_back_from_its_reboot(machines: State, shell: Shell, prepare: Prepare) -> None:
    booted = shell("machine-1", "cat /proc/sys/kernel/random/boot_id")[1]
    done = prepare({}, "-y", "--limit", "machine-1", deploy="reboot.py")
    assert done.returncode == 0, done.stderr
    assert shell("machine-1", "cat /proc/sys/kernel/random/boot_id")[1] != booted
    assert steady(machines)
