"""The life of a rehearsal cluster: up, status, mend, down, and that nothing is ever left."""

from __future__ import annotations

import json
import os
import signal
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gpuready.charts_values import inventory
from gpuready.charts_values.errors import ApiError, InputError, RefusedError, ToolError
from gpuready.charts_values.kube import Api
from gpuready.rehearsal import components, controlplane, processes, state
from gpuready.rehearsal.state import State

CLI = [sys.executable, "-P", "-m", "gpuready.validators.cli", "rehearse"]
PYTHON = [sys.executable, "-P", "-c"]
SECONDS = 60.0


@pytest.fixture(scope="module")
def small(binaries: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[State]:
    """A cluster of one node, whose processes these tests kill."""
    folder = tmp_path_factory.mktemp("small") / "state"
    yield controlplane.up(folder, nodes=1, leash=os.getpid())
    controlplane.down(folder)


class Taker(socketserver.TCPServer):
    allow_reuse_address = True


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited {SECONDS:.0f} s in vain for {what}"
        time.sleep(0.02)


def rehearse(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*CLI, *arguments], capture_output=True, text=True, timeout=120, check=False)


def listening(pid: int) -> set[str]:
    """The addresses, in the kernel's hexadecimal, on which a process accepts TCP connections."""
    sockets = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            sockets.add(str(link.readlink()))
        except OSError:
            continue
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                found.add(fields[1].partition(":")[0])
    return found


# -- up ------------------------------------------------------------------------------------------------------


def test_up_as_json_status_down(state_dir: Path) -> None:
    up = rehearse("up", "--state-dir", str(state_dir), "--nodes", "2", "--profile", "cloud-vm", "-o", "json")
    assert up.returncode == 0, up.stderr
    said = json.loads(up.stdout)
    assert said["nodes"] == ["gpu-0000", "gpu-0001"]
    assert said["state_dir"] == str(state_dir)
    assert said["kubeconfig"] == str(state_dir / "kubeconfig")
    assert said["server"].startswith("https://127.0.0.1:")
    assert list(said["pids"]) == list(components.ORDER)

    status = rehearse("status", "--state-dir", str(state_dir), "-o", "json")
    assert status.returncode == 0
    assert json.loads(status.stdout) | {"seconds": said["seconds"]} == said | {"up": True, "dead": []}

    again = rehearse("up", "--state-dir", str(state_dir), "--nodes", "2")
    assert again.returncode == 0
    assert f"export KUBECONFIG={state_dir}/kubeconfig" in again.stdout.splitlines()
    assert f"export GPUREADY_STATE_DIR={state_dir}" in again.stdout.splitlines()
    assert "it was up already" in again.stderr

    down = rehearse("down", "--state-dir", str(state_dir))
    assert down.returncode == 0
    assert not state_dir.exists()
    assert not [pid for pid in said["pids"].values() if processes.of(pid)]


def test_inventory_reads_the_entry(small: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUREADY_STATE_DIR", str(small.folder))
    cluster = inventory.select({"rehearsal": {"rehearsal": True}}, "rehearsal", None)
    assert cluster.rehearsal and cluster.cluster_uid == small.uid
    assert [group.nodes for group in cluster.groups] == [("gpu-0000",)]
    namespace = Api.connect(cluster.kubeconfig).get("/api/v1/namespaces/kube-system")
    assert namespace["metadata"]["uid"] == small.uid


def test_only_the_loopback_interface_and_only_its_owner(small: State) -> None:
    for name, process in small.processes.items():
        assert listening(process.pid) <= {"0100007F"}, name
    assert listening(small.processes["kube-apiserver"].pid) == {"0100007F"}
    assert small.folder.stat().st_mode & 0o777 == 0o700
    assert small.kubeconfig.stat().st_mode & 0o777 == 0o600
    assert (small.folder / "components" / "tokens.csv").stat().st_mode & 0o777 == 0o600
    assert small.data.stat().st_mode & 0o777 == 0o700


def test_etcd_answers_only_to_the_api_server(small: State) -> None:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    plain = socket.create_connection(("127.0.0.1", small.ports["etcd"]), timeout=10)
    with plain, pytest.raises(ssl.SSLError, match="certificate"), context.wrap_socket(plain) as stranger:
        stranger.sendall(b"GET /version HTTP/1.0\r\n\r\n")
        # TLS 1.3 says only now that a certificate is missing.
        stranger.recv(100)


def test_rbac_is_on(small: State) -> None:
    admin = Api.connect(small.kubeconfig)
    token = admin.create(
        "/api/v1/namespaces/default/serviceaccounts/default/token",
        {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}},
    )["status"]["token"]
    kubeconfig = json.loads(small.kubeconfig.read_text())
    kubeconfig["users"][0]["user"] = {"token": token}
    nobody = small.folder.parent / "nobody.kubeconfig"
    nobody.write_text(json.dumps(kubeconfig))
    with pytest.raises(ApiError, match="cannot list resource") as caught:
        Api.connect(nobody).list("/api/v1/nodes")
    assert caught.value.forbidden
    assert len(admin.list("/api/v1/nodes")) == 2


def test_a_pod_runs_logs_and_goes(small: State) -> None:
    api = Api.connect(small.kubeconfig)
    pods = "/api/v1/namespaces/default/pods"
    spec = {
        "tolerations": [{"operator": "Exists"}],
        "initContainers": [{"name": "first", "image": "example.org/first"}],
        "containers": [{"name": "main", "image": "example.org/main"}],
    }
    api.create(pods, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "plain"}, "spec": spec})
    until(lambda: api.get(f"{pods}/plain")["status"]["phase"] == "Running", "the pod to run")
    status = api.get(f"{pods}/plain")["status"]
    assert status["initContainerStatuses"][0]["state"]["terminated"]["reason"] == "Completed"
    # Its condition Ready is the controller-manager's to take: this node is bare, and so not Ready.
    assert status["containerStatuses"][0]["ready"] is True
    assert api.text(f"{pods}/plain/log", container="main").startswith("simulated: ")
    api.delete(f"{pods}/plain")
    until(lambda: api.find(f"{pods}/plain") is None, "the pod to go")


def test_a_gated_pod_is_left_alone(small: State) -> None:
    """kwok plays the pod that came later, and leaves the gated one to the actors."""
    api = Api.connect(small.kubeconfig)
    pods = "/api/v1/namespaces/default/pods"
    gate = {"rehearsal.gpuready.io/gate": "a test"}
    for name, marks in (("gated", gate), ("free", {})):
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "annotations": marks},
            "spec": {
                "nodeName": "gpu-0000",
                "tolerations": [{"operator": "Exists"}],
                "containers": [{"name": "main", "image": "example.org/main"}],
            },
        }
        api.create(pods, pod)
    until(lambda: api.get(f"{pods}/free")["status"]["phase"] == "Running", "the free pod to run")
    assert api.get(f"{pods}/gated")["status"]["phase"] == "Pending"
    for name in ("gated", "free"):
        api.delete(f"{pods}/{name}")
        until(lambda name=name: api.find(f"{pods}/{name}") is None, f"{name} to go")


def test_another_size_or_profile_is_refused_while_it_is_up(small: State) -> None:
    before = state.need(small.folder)
    for other in ({"nodes": 2}, {"profile": "cloud-vm"}):
        with pytest.raises(InputError, match="gpuready rehearse down"):
            controlplane.up(small.folder, **other)
    assert state.need(small.folder) == before


@pytest.mark.parametrize("wrong", [{"nodes": 0}, {"nodes": 10**6}, {"profile": "abacus"}, {"leash": 2**22 - 1}])
def test_wrong_input_leaves_nothing(state_dir: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(InputError):
        controlplane.up(state_dir, **wrong)
    assert not state_dir.exists()


# -- what died -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", components.ORDER)
def test_a_killed_process_is_noticed_and_mended(small: State, name: str) -> None:
    before = state.need(small.folder)
    os.kill(before.processes[name].pid, signal.SIGKILL)
    until(lambda: not before.processes[name].alive, f"{name} to die")
    status = rehearse("status", "--state-dir", str(small.folder))
    assert status.returncode == 1
    assert f"{name} died" in status.stdout
    said: list[str] = []
    after = controlplane.up(small.folder, say=said.append, leash=os.getpid())
    assert said == [f"{name} had died; starting again"]
    assert after.uid == before.uid and after.ports == before.ports
    changed = {one for one in components.ORDER if after.processes[one] != before.processes[one]}
    assert changed == {name}
    found = controlplane.status(small.folder)
    assert found and found.healthy
    namespace = Api.connect(small.kubeconfig).get("/api/v1/namespaces/kube-system")
    assert namespace["metadata"]["uid"] == small.uid


def test_a_process_that_only_starts_to_die(small: State) -> None:
    """`up` right after kill -9, when the kernel has not finished with the process."""
    before = state.need(small.folder)
    os.kill(before.processes["kube-apiserver"].pid, signal.SIGKILL)
    controlplane.up(small.folder, leash=os.getpid())
    found = controlplane.status(small.folder)
    assert found and found.healthy


def test_all_at_once(small: State) -> None:
    for process in state.need(small.folder).processes.values():
        os.kill(process.pid, signal.SIGKILL)
    after = controlplane.up(small.folder, leash=os.getpid())
    assert Api.connect(after.kubeconfig).get("/api/v1/namespaces/kube-system")["metadata"]["uid"] == small.uid


def test_a_taken_port_is_named(small: State) -> None:
    before = state.need(small.folder)
    os.kill(before.processes["kube-scheduler"].pid, signal.SIGKILL)
    until(lambda: not before.processes["kube-scheduler"].alive, "the scheduler to die")
    # Another program that takes connections, and drops them.
    where = ("127.0.0.1", before.ports["kube-scheduler"])
    with Taker(where, socketserver.BaseRequestHandler) as taker:
        thread = threading.Thread(target=taker.serve_forever)
        thread.start()
        with pytest.raises(ToolError, match=r"address already in use.*gpuready rehearse down"):
            controlplane.up(small.folder)
        taker.shutdown()
        thread.join()
    assert controlplane.up(small.folder, leash=os.getpid()).dead() == []


# -- what was cut short --------------------------------------------------------------------------------------


def test_a_killed_up_is_cleaned_by_the_next(state_dir: Path) -> None:
    with subprocess.Popen([*CLI, "up", "--state-dir", str(state_dir)], stderr=subprocess.DEVNULL) as first:
        until(lambda: len(processes.marked(state_dir)) >= 2, "etcd and the API server")
        first.kill()
    left = processes.marked(state_dir)
    assert left
    status = rehearse("status", "--state-dir", str(state_dir))
    assert status.returncode == 1 and "its start was cut short" in status.stdout
    said: list[str] = []
    now = controlplane.up(state_dir, nodes=1, say=said.append, leash=os.getpid())
    assert said[0] == "an earlier start was cut short; starting afresh"
    assert now.dead() == [] and not [process for process in left if process.alive]


def test_a_killed_up_is_cleaned_by_down(state_dir: Path) -> None:
    with subprocess.Popen([*CLI, "up", "--state-dir", str(state_dir)], stderr=subprocess.DEVNULL) as first:
        until(lambda: len(processes.marked(state_dir)) >= 2, "etcd and the API server")
        first.kill()
    # Not even its record is needed.
    (state_dir / "state.json").write_text("{")
    assert controlplane.down(state_dir)
    assert processes.marked(state_dir) == [] and not state_dir.exists()


def test_an_interrupted_up_leaves_nothing(state_dir: Path) -> None:
    with subprocess.Popen([*CLI, "up", "--state-dir", str(state_dir)], stderr=subprocess.DEVNULL) as first:
        until(lambda: len(processes.marked(state_dir)) >= 2, "etcd and the API server")
        first.send_signal(signal.SIGINT)
    assert first.returncode == 130
    assert processes.marked(state_dir) == [] and not state_dir.exists()


def test_its_data_is_gone(state_dir: Path) -> None:
    """As after a restart of the machine, which empties its memory and not its disk."""
    now = controlplane.up(state_dir, nodes=1, leash=os.getpid())
    processes.stop_all(processes.marked(state_dir), grace=0)
    for file in sorted(now.data.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    now.data.rmdir()
    said: list[str] = []
    after = controlplane.up(state_dir, nodes=1, say=said.append, leash=os.getpid())
    assert said[0] == "its data is gone; starting afresh"
    assert after.uid != now.uid and after.dead() == []


def test_the_leash(state_dir: Path) -> None:
    """A cluster on a leash ends with its owner, even where that is killed."""
    code = (
        "import os, sys; from pathlib import Path; from gpuready.rehearsal import controlplane\n"
        "controlplane.up(Path(sys.argv[1]), nodes=1, leash=os.getpid()); print('up', flush=True); input()"
    )
    with subprocess.Popen(
        [*PYTHON, code, str(state_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout and owner.stdout.readline() == "up\n"
        pids = state.need(state_dir).processes.values()
        assert all(process.alive for process in pids)
        owner.kill()
    until(lambda: not state_dir.exists(), "the cluster to end")
    assert not [process for process in pids if process.alive]


# -- several -------------------------------------------------------------------------------------------------


def test_two_side_by_side(small: State, state_dir: Path) -> None:
    other = controlplane.up(state_dir, nodes=1, leash=os.getpid())
    assert other.uid != small.uid
    assert not set(other.ports.values()) & set(small.ports.values())
    assert controlplane.down(state_dir)
    found = controlplane.status(small.folder)
    assert found and found.healthy


def test_two_ups_at_once(state_dir: Path) -> None:
    command = [*CLI, "up", "--state-dir", str(state_dir), "--nodes", "1", "-o", "json"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [json.loads(process.communicate(timeout=SECONDS)[0]) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert answers[0]["pids"] == answers[1]["pids"]


# -- down ----------------------------------------------------------------------------------------------------


def test_down_and_status_where_nothing_is_up(state_dir: Path) -> None:
    assert controlplane.status(state_dir) is None
    assert not controlplane.down(state_dir)
    down = rehearse("down", "--state-dir", str(state_dir))
    assert (down.returncode, down.stdout) == (0, f"No rehearsal cluster was up in {state_dir}.\n")
    status = rehearse("status", "--state-dir", str(state_dir))
    assert status.returncode == 1 and "gpuready rehearse up" in status.stdout
    assert not state_dir.exists()


def test_a_folder_of_somebody_else_is_never_emptied(binaries: object, tmp_path: Path) -> None:
    precious = tmp_path / "precious.txt"
    precious.write_text("mine")
    for call in (controlplane.up, controlplane.down):
        with pytest.raises(RefusedError, match="holds files, but no rehearsal cluster"):
            call(tmp_path)
    assert precious.read_text() == "mine"


def test_data_lie_in_memory_where_there_is_room(tmp_path: Path) -> None:
    assert state.choose_data_folder(tmp_path, room=1 << 60) == tmp_path / "data"
    assert state.choose_data_folder(tmp_path, room=0) == state.memory_folder(tmp_path)
    assert state.memory_folder(tmp_path) != state.memory_folder(tmp_path / "other")


def test_data_of_somebody_else_are_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "data").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RefusedError, match="belongs to somebody else"):
        state.make_data_folder(tmp_path / "data")


def test_a_damaged_record_is_named(small: State) -> None:
    file = small.folder / "state.json"
    whole = file.read_text()
    try:
        file.write_text(whole[:100])
        with pytest.raises(InputError, match="mend it with: gpuready rehearse up"):
            controlplane.status(small.folder)
    finally:
        file.write_text(whole)
