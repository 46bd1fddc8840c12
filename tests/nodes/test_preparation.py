"""Preparation over SSH, on machines with real kubelets: settings arrive, stay, come back after a failure, and go."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gpuready.charts_values.kube import Api
from gpuready.charts_values.node_settings import numbers
from gpuready.deploys.nodes import machine
from gpuready.rehearsal.state import State

from ..rehearsal import commands
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
from functools import partial
from gpuready.charts_values.errors import GpureadyError
from gpuready.deploys.nodes import operations, preparation, rollout
from pyinfra.context import host

# How long a node is watched before the next one's turn: the rest is as it is.
operations.Rollout = partial(rollout.Rollout, timing=rollout.Timing(hold_s=2, canary_hold_s=2))
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
FATAL = {**STATIC, "limits": {"nofile": 8}, "module_options": {"dummy": "numdummies=0"}}
# One whole CPU, Guaranteed.
WHOLE_CPU = {"limits": {"cpu": "1", "memory": "32Mi"}}
PODS = "/api/v1/namespaces/default/pods"
# What takes a moment on an idle host, and longer where other tests run beside these.
SECONDS = 90.0
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
        # Told yes beforehand, pyinfra would not find out what a --dry would change.
        caller = {key: value for key, value in os.environ.items() if key not in ("PYINFRA_YES", "CLUSTER")}
        return subprocess.run(
            [pyinfra, "inventory", deploy, *(options or ("-y",))],
            cwd=tmp_path,
            env={**caller, **more, "PYINFRA_PROGRESS": "off"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=400,
        )

    return run


def configz(machines: State, name: str) -> dict[str, Any]:
    found: dict[str, Any] = Api.connect(machines.kubeconfig).get(f"/api/v1/nodes/{name}/proxy/configz")["kubeletconfig"]
    return found


@contextlib.contextmanager
def running(api: Api, name: str, resources: dict[str, Any]) -> Iterator[str]:
    """A pod on machine-0, and its container's id."""
    container = {"name": "main", "image": "busybox:1.36", "command": ["sleep", "3600"], "resources": resources}
    spec = {"nodeName": "machine-0", "terminationGracePeriodSeconds": 0, "containers": [container]}
    api.create(PODS, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
    try:
        pod = commands.until(
            lambda: api.get(f"{PODS}/{name}"), lambda one: one["status"]["phase"] in ("Running", "Failed"), SECONDS
        )
        assert pod["status"]["phase"] == "Running", pod["status"]
        yield pod["status"]["containerStatuses"][0]["containerID"].rpartition("/")[2]
    finally:
        api.delete(f"{PODS}/{name}")
        commands.until(lambda: api.find(f"{PODS}/{name}"), lambda one: one is None, SECONDS)


def cpus(shell: Shell, container: str) -> tuple[int, ...]:
    """The CPUs that the kernel lets a container on machine-0 run on."""
    one = f"grep -qs {container} $one/cgroup && sed -n 's/^Cpus_allowed_list:[[:space:]]*//p' $one/status"
    said = shell("machine-0", f"for one in /proc/[0-9]*; do {one}; done", user="root")[1].split()
    assert len(set(said)) == 1, said
    return numbers(said[0])


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
    api = Api.connect(machines.kubeconfig)
    online = numbers(shell("machine-0", "cat /sys/devices/system/cpu/online")[1])
    with running(api, "guaranteed", WHOLE_CPU) as pod:
        assert cpus(shell, pod) == online

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
    with running(api, "best-effort", {}) as other:
        assert cpus(shell, other) == online
        with running(api, "guaranteed", WHOLE_CPU) as pod:
            own = cpus(shell, pod)
            # A CPU of its own, and not the reserved one; the others get what is left, within a reconciliation.
            assert len(own) == 1 and own != (0,)
            rest = tuple(one for one in online if one not in own)
            commands.until(lambda: cpus(shell, other), lambda now: now == rest, SECONDS)

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
        # What disturbs nobody has gone on, on the other node as well.
        options = shell(name, f"cat {machine.OPTIONS_FILE}")[1]
        assert options.splitlines()[-1] == "options dummy numdummies=0"
    assert steady(machines)

    back = prepare({})
    assert back.returncode == 0, back.stderr
    assert "/var/lib/kubelet/cpu_manager_state: policy static -> none" in back.stderr
    assert configz(machines, "machine-1")["cpuManagerPolicy"] == "none"
    assert shell("machine-1", f"test -e {machine.OPTIONS_FILE}")[0] == 1
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
