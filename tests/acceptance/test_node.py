"""The machines of `ssh_nodes` after provisioning, each promise of inventory a test of its own, by testinfra.

    CLUSTER=prod .venv/bin/pytest tests/acceptance/test_node.py -v

One SSH connection for each machine serves all its tests; nothing is changed there.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import testinfra
import yaml
from gpuready.charts_values import node_settings
from gpuready.charts_values.errors import GpureadyError
from gpuready.charts_values.groups import Group
from gpuready.charts_values.inventory import Cluster
from gpuready.charts_values.node_settings import HUGEPAGES, SYSCTL_LEAST, NodeSettings
from gpuready.validators import machines
from gpuready.validators.collect import machines as ssh
from gpuready.validators.target import resolve

DROP_INS = "/etc/kubernetes/kubelet.conf.d"


@dataclass(frozen=True)
class Node:
    """A machine with what inventory promises of it; ``host`` is testinfra's."""

    name: str
    host: Any
    cluster: Cluster
    group: Group | None
    settings: NodeSettings

    @property
    def container(self) -> bool:
        """Whether it shares the kernel of its host."""
        return bool(self.host.run("systemd-detect-virt --container --quiet").rc == 0)

    @property
    def units(self) -> list[str]:
        """The units that a kubelet and its runtime run in."""
        if self.cluster.platform != "k3s":
            return ["containerd", "kubelet"]
        return ["k3s" if self.host.service("k3s").is_enabled else "k3s-agent"]


def _cluster(config: pytest.Config) -> Cluster:
    wanted = argparse.Namespace(cluster=os.environ.get("CLUSTER"), kubeconfig=None, context=None)
    wanted.inventory = config.getoption("--inventory")
    return resolve(wanted).expected.cluster


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for each machine; one skip that says why where there is none."""
    if "node" not in metafunc.fixturenames:
        return
    try:
        names, why = list(_cluster(metafunc.config).ssh_nodes), "inventory names no ssh_nodes"
    except GpureadyError as error:
        names, why = [], str(error)
    none = [pytest.param(None, id="none", marks=pytest.mark.skip(reason=why))]
    metafunc.parametrize("node", names or none, indirect=True, scope="session")


@pytest.fixture(scope="session")
def control() -> Iterator[Path]:
    """Where the connections are kept while the tests run."""
    with tempfile.TemporaryDirectory(prefix="gpuready-") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def node(request: pytest.FixtureRequest, control: Path) -> Iterator[Node]:
    """One machine; its connection is shared by its tests and ends with them."""
    cluster, name = _cluster(request.config), str(request.param)
    data = cluster.ssh_nodes[name]
    kept = {"ControlMaster": "auto", "ControlPersist": "60", "ControlPath": f"{control}/{name}"}
    options = [*(part for key, value in kept.items() for part in ("-o", f"{key}={value}")), *ssh.options(data)]
    where = ssh.host(name, data)
    host = testinfra.get_host(f"ssh://{where}", sudo=ssh.needs_sudo(data), ssh_extra_args=shlex.join(options))
    group = machines.group_of(cluster, name, None)
    yield Node(name, host, cluster, group, machines.settings_of(cluster, group))
    leave = ["ssh", *options, "-O", "exit", "--", where]
    subprocess.run(leave, stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=False)


def _own_kernel(node: Node) -> None:
    if node.container:
        pytest.skip(f"{node.name} is a container and has its host's")


def _text(node: Node, path: str) -> str:
    found = node.host.file(path)
    return str(found.content_string) if found.exists else ""


# -- services ----------------------------------------------------------------------------------------------------


def test_kubelet_and_runtime_run_and_come_back_after_a_boot(node: Node) -> None:
    for unit in node.units:
        service = node.host.service(unit)
        assert service.is_running, f"{unit} does not run on {node.name}"
        assert service.is_enabled, f"{unit} would not start at boot on {node.name}"


def test_services_have_their_limits(node: Node) -> None:
    keys = {"memlock": "LimitMEMLOCK", "nofile": "LimitNOFILE", "tasks": "TasksMax"}
    limited = node_settings.limited_units(node.cluster.platform)
    for unit in (one for one in node.units if one in limited):
        for name, value in node_settings.limits(node.settings).items():
            said = node.host.check_output("systemctl show -p %s --value %s", keys[name], unit)
            assert said == value, f"{unit} on {node.name}"


def test_topology_manager_is_in_the_kubelets_files(node: Node) -> None:
    if node.cluster.platform == "k3s":
        pytest.skip("k3s gives its kubelet flags; gpuready check asks the kubelet itself")
    config = yaml.safe_load(_text(node, "/var/lib/kubelet/config.yaml")) or {}
    folder = node.host.file(DROP_INS)
    names = sorted(folder.listdir()) if folder.is_directory else []
    for name in names:
        if name.endswith(".conf"):
            config |= yaml.safe_load(_text(node, f"{DROP_INS}/{name}")) or {}
    wanted = node.settings.topology_manager
    has = config.get("topologyManagerPolicy", "none"), config.get("topologyManagerScope", "container")
    assert has == (wanted.policy, wanted.scope)


def test_containerd_reads_its_configuration(node: Node) -> None:
    if node.cluster.platform == "k3s":
        pytest.skip("k3s writes containerd's configuration itself")
    dump = node.host.run("containerd config dump")
    assert dump.rc == 0, dump.stderr


# -- the kernel --------------------------------------------------------------------------------------------------


def test_modules_are_loaded(node: Node) -> None:
    _own_kernel(node)
    wanted = node_settings.modules(node.settings, node.group, node.cluster.ofed_owner)
    absent = [name for name in wanted if not node.host.file(f"/sys/module/{name.replace('-', '_')}").exists]
    assert absent == []


def test_sysctl(node: Node) -> None:
    wanted = node_settings.sysctl(node.settings, node.group)
    shared = node.container
    for key, value in wanted.items():
        # A kernel may lack one of those that gpuready sets by itself.
        there = key in node.settings.sysctl or node.host.file(f"/proc/sys/{key.replace('.', '/')}").exists
        if key not in SYSCTL_LEAST and there and (not shared or key.startswith("net.")):
            assert str(node.host.sysctl(key)).split() == value.split(), f"{key} on {node.name}"


def test_inotify(node: Node) -> None:
    _own_kernel(node)
    for key, least in SYSCTL_LEAST.items():
        assert node.host.sysctl(key) >= int(node.settings.sysctl.get(key, least)), f"{key} on {node.name}"


def test_swap_is_off_and_stays_off(node: Node) -> None:
    if node.settings.swap == "keep":
        pytest.skip("inventory keeps swap as it is")
    fields = [line.split() for line in _text(node, "/etc/fstab").splitlines() if not line.lstrip().startswith("#")]
    assert [one for one in fields if len(one) > 2 and one[2] == "swap"] == []
    if not node.container:
        assert _text(node, "/proc/swaps").splitlines()[1:] == []


def test_hugepages(node: Node) -> None:
    for size, count in node.settings.hugepages.items():
        path = f"/sys/kernel/mm/hugepages/hugepages-{HUGEPAGES[size]}kB/nr_hugepages"
        assert _text(node, path).strip() == str(count), size


def test_kernel_runs_with_its_arguments(node: Node) -> None:
    _own_kernel(node)
    running = _text(node, "/proc/cmdline").split()
    assert [one for one in node.settings.kernel_arguments if one not in running] == []


def test_kernel_is_held(node: Node) -> None:
    _own_kernel(node)
    if not node.settings.hold_kernel or not node.host.exists("apt-mark"):
        pytest.skip("inventory does not hold the kernel, or this is no apt")
    running = _text(node, "/proc/sys/kernel/osrelease").strip()
    assert f"linux-image-{running}" in node.host.check_output("apt-mark showhold").split()


def test_clock_is_synchronised(node: Node) -> None:
    _own_kernel(node)
    if not node.settings.time_sync:
        pytest.skip("inventory promises no time synchronisation")
    assert node.host.check_output("timedatectl show -p NTPSynchronized --value") == "yes"


# -- GPUs --------------------------------------------------------------------------------------------------------


def _gpus(node: Node) -> int:
    """Display controllers of NVIDIA on the PCI bus."""
    script = (
        'n=0; for d in /sys/bus/pci/devices/*; do case "$(cat $d/vendor 2>/dev/null) $(cat $d/class 2>/dev/null)" in '
        '"0x10de 0x0300"*|"0x10de 0x0302"*) n=$((n + 1)) ;; esac; done; echo $n'
    )
    return int(node.host.check_output(script))


def test_promised_gpus_are_on_the_bus(node: Node) -> None:
    if node.group is None or not node.group.gpus:
        pytest.skip("inventory promises no GPUs on this machine")
    assert _gpus(node) >= node.group.gpus


def test_nouveau_is_not_loaded(node: Node) -> None:
    assert not node.host.file("/sys/module/nouveau").exists or not _gpus(node)


def test_driver_has_the_owner_of_inventory(node: Node) -> None:
    if not _gpus(node):
        pytest.skip("it has no GPU")
    assert node.host.file("/usr/bin/nvidia-smi").exists == (node.cluster.driver_owner == "host")
