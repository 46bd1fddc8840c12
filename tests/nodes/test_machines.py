"""Machines that are real nodes: SSH, a real kubelet, reboots, and that nothing of them is ever left."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from gpuready.charts_values import inventory
from gpuready.charts_values.errors import InputError
from gpuready.charts_values.kube import Api, Object
from gpuready.rehearsal import controlplane, processes, state
from gpuready.rehearsal.machines import host, nodes, plan
from gpuready.rehearsal.state import State

from ..rehearsal import commands
from .conftest import Shell

NAMES = ("machine-0", "machine-1")
PODS = "/api/v1/namespaces/default/pods"
REHEARSE = [sys.executable, "-P", "-m", "gpuready.validators.cli", "rehearse"]
# Everything of one rehearsal's machines, which a busy host may take long for.
SECONDS = 90.0


@pytest.fixture
def state_dir(able: None, tmp_path: Path) -> Iterator[Path]:
    """The folder of a cluster that the test starts itself; nothing of it outlives the test."""
    folder = tmp_path / "state"
    yield folder
    controlplane.down(folder)
    assert left(folder) == []


def left(folder: Path) -> list[str]:
    """What this host still has of the machines of a state folder."""
    found = [f"process {one.pid}" for one in processes.marked(folder)]
    found += [f"process {pid}" for pid in host.pids(plan.group(folder))]
    found += [str(root) for root in host.hierarchies() if (root / plan.group(folder)).exists()]
    found += [f"interface {one.name}" for one in Path("/sys/class/net").iterdir() if one.name == plan.link(folder)]
    found += [line for line in Path("/proc/mounts").read_text().splitlines() if str(folder) in line]
    return found + ([str(folder)] if folder.exists() else [])


def namespaces(pids: Iterable[int] | None = None) -> set[str]:
    """The network namespaces that the processes are in, or any process; one that ends meanwhile is in none."""
    if pids is None:
        pids = [int(process.name) for process in Path("/proc").iterdir() if process.name.isdigit()]
    found = set()
    for pid in pids:
        try:
            found.add(str(Path(f"/proc/{pid}/ns/net").readlink()))
        except OSError:
            continue
    return found


def ready(api: Api, name: str) -> bool:
    conditions = api.get(f"/api/v1/nodes/{name}")["status"]["conditions"]
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def run_pod(api: Api, name: str, node: str, command: str) -> Object:
    """Run a pod on a machine to its end."""
    container = {"name": "main", "image": "busybox:1.36", "command": ["sh", "-c", command]}
    spec = {"nodeName": node, "restartPolicy": "Never", "containers": [container]}
    api.create(PODS, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
    return commands.until(
        lambda: api.get(f"{PODS}/{name}"), lambda pod: pod["status"]["phase"] in ("Succeeded", "Failed"), SECONDS
    )


# -- nodes ---------------------------------------------------------------------------------------------------


def test_they_are_ready_nodes_beside_the_fleet(machines: State) -> None:
    api = Api.connect(machines.kubeconfig)
    found = {one["metadata"]["name"]: one for one in api.list("/api/v1/nodes")}
    assert set(found) == {"cp-0", "gpu-0000", *NAMES}
    assert machines.machines
    for name in NAMES:
        one = found[name]
        assert ready(api, name)
        assert plan.MARK in one["metadata"]["labels"]
        assert [taint["key"] for taint in one["spec"]["taints"]] == [plan.MARK]
        assert one["status"]["nodeInfo"]["kubeletVersion"] == found["gpu-0000"]["status"]["nodeInfo"]["kubeletVersion"]
        address = next(each["address"] for each in one["status"]["addresses"] if each["type"] == "InternalIP")
        assert ip_address(address) in ip_network(machines.machines.network)
        # The fleet's nodes have the first networks of the range.
        assert one["spec"]["podCIDR"] not in {found[other]["spec"]["podCIDR"] for other in ("cp-0", "gpu-0000")}


def test_status_and_inventory_know_them(machines: State, monkeypatch: pytest.MonkeyPatch) -> None:
    status = commands.gpuready(machines, "rehearse", "status", "-o", "json")
    assert status.returncode == 0, status.stderr
    said = json.loads(status.stdout)["machines"]
    assert tuple(said) == NAMES and all(one["processes"] > 0 and one["rss_bytes"] > 0 for one in said.values())
    assert nodes.NAME in json.loads(status.stdout)["pids"]
    monkeypatch.setenv("GPUREADY_STATE_DIR", str(machines.folder))
    cluster = inventory.select({"rehearsal": {"rehearsal": True}}, "rehearsal", None)
    assert tuple(name for name, _ in inventory.hosts(cluster)) == NAMES
    assert machines.machines and machines.machines.network in cluster.node_cidrs


def test_another_number_is_refused(machines: State) -> None:
    with pytest.raises(InputError, match=r"2 machines are up .*gpuready rehearse down"):
        controlplane.up(machines.folder, ssh_nodes=1)
    with pytest.raises(InputError, match="give 0 to 8"):
        controlplane.up(machines.folder, ssh_nodes=9)


# -- SSH -----------------------------------------------------------------------------------------------------


def test_root_and_a_user_with_sudo_log_in(shell: Shell) -> None:
    assert shell("machine-0", "id -un; hostname", user="root") == (0, "root\nmachine-0")
    assert shell("machine-1", "id -un; sudo -n id -un; hostname") == (0, "ops\nroot\nmachine-1")


def test_systemd_is_content(shell: Shell) -> None:
    assert shell("machine-0", "systemctl is-system-running --wait; systemctl --failed --no-legend")[1] == "running"


def test_pyinfra_connects_by_the_inventory_alone(machines: State) -> None:
    done = commands.run(
        "pyinfra", "inventory", "exec", "--limit", "machine-*", "--", "id -un", state_dir=machines.folder
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    for name in NAMES:
        assert f"[{name}] root" in said


# -- the kubelet ---------------------------------------------------------------------------------------------


def test_a_pod_runs_and_its_exit_code_arrives(machines: State) -> None:
    api = Api.connect(machines.kubeconfig)
    pod = run_pod(api, "fails", "machine-0", "echo done; exit 3")
    assert pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 3
    assert api.text(f"{PODS}/fails/log") == "done\n"
    assert machines.machines
    assert ip_address(pod["status"]["podIP"]) in ip_network(machines.machines.machines[0].pods)
    api.delete(f"{PODS}/fails")


def test_pods_reach_each_other_across_machines(machines: State) -> None:
    api = Api.connect(machines.kubeconfig)
    # Any image will do: it idles.
    container = {"name": "main", "image": "example.org/any:v1"}
    spec = {"nodeName": "machine-0", "terminationGracePeriodSeconds": 0, "containers": [container]}
    api.create(PODS, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "server"}, "spec": spec})
    server = commands.until(lambda: api.get(f"{PODS}/server"), lambda pod: pod["status"]["phase"] == "Running", SECONDS)
    client = run_pod(api, "client", "machine-1", f"ping -c 3 -W 10 {server['status']['podIP']}")
    assert client["status"]["phase"] == "Succeeded", api.text(f"{PODS}/client/log")
    for name in ("server", "client"):
        api.delete(f"{PODS}/{name}")


def test_a_daemon_set_of_the_fleet_is_ready_there_too(machines: State) -> None:
    """Cilium's tolerates every taint: real kubelets run its pods, and its actor knows these nodes as well."""
    api = Api.connect(machines.kubeconfig)
    helm = [str(machines.bin / "helm"), "--kubeconfig", str(machines.kubeconfig), "--namespace", "kube-system"]
    chart = str(commands.ROOT / "rehearsal" / "charts" / "cilium")
    install = [
        *helm,
        "install",
        "cilium",
        chart,
        "--set",
        "operator.replicas=1",
        "--wait",
        "--timeout",
        f"{SECONDS:.0f}s",
    ]
    done = subprocess.run(install, capture_output=True, text=True, timeout=2 * SECONDS, check=False)
    try:
        assert done.returncode == 0, done.stderr
        status = api.get("/apis/apps/v1/namespaces/kube-system/daemonsets/cilium")["status"]
        assert (status["desiredNumberScheduled"], status["numberReady"]) == (4, 4)
        known = commands.until(
            lambda: {one["metadata"]["name"] for one in api.list("/apis/cilium.io/v2/ciliumnodes")},
            lambda names: len(names) == 4,
        )
        assert known == {"cp-0", "gpu-0000", *NAMES}
        # The kubelet's own word is left as it is.
        conditions = api.get("/api/v1/nodes/machine-0")["status"]["conditions"]
        assert "NetworkUnavailable" not in {one["type"] for one in conditions}
    finally:
        subprocess.run([*helm, "uninstall", "cilium", "--wait"], capture_output=True, timeout=2 * SECONDS, check=False)


def test_configz_through_the_api_server(machines: State) -> None:
    api = Api.connect(machines.kubeconfig)
    found = json.loads(api.text("/api/v1/nodes/machine-0/proxy/configz"))["kubeletconfig"]
    assert found["authentication"]["anonymous"]["enabled"] is False
    assert found["authorization"]["mode"] == "Webhook"


def test_the_kubelet_answers_nobody_else(machines: State) -> None:
    assert machines.machines
    url = f"https://{machines.machines.machines[0].address}:10250/configz"
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    token = Api.connect(machines.kubeconfig).create(
        "/api/v1/namespaces/default/serviceaccounts/default/token",
        {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}},
    )["status"]["token"]
    for headers, code in (({}, 401), ({"Authorization": f"Bearer {token}"}, 403)):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30, context=context)
        assert caught.value.code == code
        caught.value.close()


def test_the_files_lie_where_kubeadm_puts_them(shell: Shell) -> None:
    files = "/etc/kubernetes/kubelet.conf /var/lib/kubelet/config.yaml /var/lib/kubelet/kubeadm-flags.env"
    assert shell("machine-0", f"sudo ls {files} /etc/default/kubelet > /dev/null")[0] == 0
    assert "10-kubeadm.conf" in shell("machine-0", "systemctl cat kubelet | grep '^# '")[1]
    assert shell("machine-0", "sudo systemctl restart kubelet && systemctl is-active kubelet containerd") == (
        0,
        "active\nactive",
    )


def test_kernel_settings_stay_on_the_machine(shell: Shell) -> None:
    swappiness = Path("/proc/sys/vm/swappiness")
    before = swappiness.read_text().strip()
    other = "1" if before != "1" else "2"
    # The kubelet sets this one on every node.
    assert shell("machine-0", "sudo sysctl -n vm.overcommit_memory kernel.panic") == (0, "1\n10")
    assert shell("machine-0", f"sudo sysctl -n -w vm.swappiness={other}; cat {swappiness}") == (0, f"{other}\n{other}")
    assert swappiness.read_text().strip() == before
    assert shell("machine-1", f"cat {swappiness}") == (0, before)
    # No setting of the host's hardware can be written either.
    assert shell("machine-0", "echo 1 > /sys/kernel/profiling", user="root")[0] != 0


# -- reboots and deaths --------------------------------------------------------------------------------------


def test_a_reboot_keeps_the_disk(machines: State, shell: Shell) -> None:
    api = Api.connect(machines.kubeconfig)
    boot = api.get("/api/v1/nodes/machine-1")["status"]["nodeInfo"]["bootID"]
    assert shell("machine-1", "touch kept && sudo systemctl reboot")[0] in (0, -1)
    commands.until(
        lambda: api.get("/api/v1/nodes/machine-1")["status"]["nodeInfo"]["bootID"], lambda now: now != boot, SECONDS
    )
    commands.until(lambda: ready(api, "machine-1"), bool, SECONDS)
    assert shell("machine-1", "ls; cat /proc/sys/kernel/random/boot_id")[1].splitlines()[0] == "kept"


def test_a_killed_holder_is_mended(machines: State, shell: Shell) -> None:
    assert shell("machine-0", "touch kept")[0] == 0
    holder = state.need(machines.folder).processes[nodes.NAME]
    os.kill(holder.pid, signal.SIGKILL)
    commands.until(lambda: holder.alive, lambda alive: not alive)
    status = commands.gpuready(machines, "rehearse", "status")
    assert status.returncode == 1 and "machines died" in status.stdout
    said: list[str] = []
    now = controlplane.up(machines.folder, say=said.append, leash=os.getpid())
    assert "the machines had died; booting machine-0, machine-1" in said
    assert now.entry == machines.entry
    assert shell("machine-0", "ls") == (0, "kept")
    found = controlplane.status(machines.folder)
    assert found and found.healthy


def test_a_killed_up_is_cleaned_by_down(state_dir: Path) -> None:
    before = namespaces()
    command = [*REHEARSE, "up", "--state-dir", str(state_dir), "--nodes", "1", "--ssh-nodes", "1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        group = f"{plan.group(state_dir)}/machine-0"
        # The machine's own first processes, besides systemd-nspawn.
        commands.until(lambda: len(host.pids(group)), lambda count: count > 3, SECONDS)
        ours = namespaces(host.pids(group))
        first.kill()
    holder = next(pid for pid in host.pids(f"{plan.group(state_dir)}/holder"))
    os.kill(holder, signal.SIGKILL)
    assert controlplane.down(state_dir)
    assert left(state_dir) == []
    assert not (ours - before) & namespaces()


# -- a host that cannot --------------------------------------------------------------------------------------


def test_a_missing_tool_is_one_line_and_the_rest_goes_on(state_dir: Path, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("ip", "nsenter", "mount"):
        (tools / name).symlink_to("/bin/true")
    command = [*REHEARSE, "up", "--state-dir", str(state_dir), "--nodes", "1", "--ssh-nodes", "2", "-o", "json"]
    done = subprocess.run(
        command, env=os.environ | {"PATH": str(tools)}, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    wanted = "  no machines: systemd-nspawn is not on this host; apt install systemd-container"
    assert [line for line in done.stderr.splitlines() if "machines" in line] == [wanted]
    said = json.loads(done.stdout)
    assert said["nodes"] == ["gpu-0000"] and "machines" not in said
    now = state.need(state_dir)
    assert now.entry and "ssh_nodes" not in now.entry
