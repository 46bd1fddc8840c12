"""The rollout of what disturbs pods, against a real API: its commands run in a real shell, the kubelet is played."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from gpuready.charts_values.errors import GpureadyError, RefusedError, ToolError, UnreachableError
from gpuready.charts_values.kube import Api, Object
from gpuready.deploys.nodes import copies
from gpuready.deploys.nodes.plan import Disruption, File
from gpuready.deploys.nodes.rollout import Rollout, Timing
from gpuready.deploys.nodes.standing import CORDONED, standing
from gpuready.rehearsal.fleet import CONDITIONS
from gpuready.rehearsal.state import State

from .commands import until
from .platform import GPU_TAINT

NAMESPACE = "rollout"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
TIMING = Timing(drain_s=20, ready_s=6, hold_s=0.5, canary_hold_s=0.5, command_s=10)
SYSTEMCTL = """#!/bin/sh
echo "$@" >> "$ROOT/log"
case "$1" in
  stop) echo inactive > "$ROOT/kubelet" ;;
  start) echo active > "$ROOT/kubelet"; echo $$ > "$ROOT/pid" ;;
  show) echo "MainPID=$(cat "$ROOT/pid")"; echo "ActiveState=$(cat "$ROOT/kubelet")" ;;
esac
"""
# The machine goes down and comes up: its kubelet runs again, under another boot id.
SYSTEMD_RUN = """#!/bin/sh
echo "$@" >> "$ROOT/log"
echo another > "$ROOT/boot_id"; echo active > "$ROOT/kubelet"; echo $$ > "$ROOT/pid"
"""
BOOT_ID = "/proc/sys/kernel/random/boot_id"


@dataclass
class PlayedNode:
    """A node whose shell is real and whose kubelet is played, by the rule that state files must fit the policy."""

    api: Api
    name: str
    root: Path
    silent: bool = False
    network: bool | None = None
    commands: list[str] = field(default_factory=list)
    unschedulable_at_stop: bool = False
    pods_at_stop: int = -1

    def __post_init__(self) -> None:
        for name, text in (
            ("systemctl", SYSTEMCTL),
            ("id", "#!/bin/sh\necho 0\n"),
            ("journalctl", "#!/bin/sh\necho boom\n"),
            ("systemd-run", SYSTEMD_RUN),
            ("update-grub", '#!/bin/sh\necho update-grub >> "$ROOT/log"\n'),
        ):
            path = self.root / "bin" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            path.chmod(0o755)
        for name, text in (("kubelet", "active\n"), ("pid", "1\n"), ("log", ""), ("boot_id", "one\n")):
            (self.root / name).write_text(text)
        self.state.write_text(json.dumps({"policyName": "none"}))

    @property
    def state(self) -> Path:
        return self.root / "cpu_manager_state"

    @property
    def config(self) -> Path:
        return self.root / "50-gpuready.conf"

    @property
    def log(self) -> list[str]:
        return [line for line in (self.root / "log").read_text().splitlines() if not line.startswith("show")]

    def run(self, command: str, *, timeout: float = 60.0) -> tuple[bool, str]:
        self.commands.append(command)
        if command.startswith("systemctl stop") and self.pods_at_stop < 0:
            node = self.api.get(f"/api/v1/nodes/{self.name}")
            self.unschedulable_at_stop = bool(node["spec"].get("unschedulable"))
            self.pods_at_stop = len(mine(self.api, self.name))
        environment = {**os.environ, "PATH": f"{self.root / 'bin'}:{os.environ['PATH']}", "ROOT": str(self.root)}
        command = command.replace(BOOT_ID, str(self.root / "boot_id"))
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=timeout, env=environment)
        if command.startswith(("systemctl start", "systemd-run")):
            self._start()
        return done.returncode == 0, done.stdout + done.stderr

    def reconnect(self) -> bool:
        return True

    def _start(self) -> None:
        wants = self.config.read_text().split()[-1] if self.config.exists() else "none"
        has = json.loads(self.state.read_text())["policyName"] if self.state.exists() else wants
        if wants == "broken" or has != wants:
            (self.root / "kubelet").write_text("failed\n")
        elif not self.silent:
            self.state.write_text(json.dumps({"policyName": wants}))
            if self.network is not None:
                # One that came up finds its network, or does not with the new file.
                report(self.api, self.name, ready=self.network or wants == "none")
            beat(self.api, self.name)

    def change(self, policy: str = "static") -> Disruption:
        file = File(str(self.config), f"cpuManagerPolicy: {policy}\n")
        return Disruption(reasons=("kubelet",), files=(file,), removals=(str(self.state),))


def beat(api: Api, name: str) -> None:
    """What a kubelet does first: renew its lease and report its conditions."""
    lease = f"/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{name}"
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + f".{time.time_ns() // 1000 % 1000000:06d}Z"
    api.patch(lease, {"spec": {"renewTime": stamp}})


def report(api: Api, name: str, *, ready: bool) -> None:
    """The condition Ready as a kubelet writes it, with and without a network plugin."""
    status, reason, message = ("True", "KubeletReady", "") if ready else CONDITIONS["Ready"]
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    condition = {"type": "Ready", "status": status, "reason": reason, "message": message, "lastHeartbeatTime": stamp}
    api.patch(f"/api/v1/nodes/{name}/status", {"status": {"conditions": [condition]}}, kind="strategic")


def mine(api: Api, node: str) -> list[Object]:
    pods = api.list(PODS, fieldSelector=f"spec.nodeName={node}", resourceVersion="")
    return [pod for pod in pods if not pod["metadata"].get("deletionTimestamp")]


@pytest.fixture(scope="module")
def api(rehearsal: State) -> Iterator[Api]:
    """The bare cluster with a namespace; every node is as it was afterwards."""
    api = Api.connect(rehearsal.kubeconfig)
    path = f"/api/v1/namespaces/{NAMESPACE}"
    api.create("/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    until(lambda: api.find(f"{path}/serviceaccounts/default"), lambda found: found is not None)
    yield api
    api.delete(path)
    for node in api.list("/api/v1/nodes", resourceVersion=""):
        kept = {"annotations": {CORDONED: None}}
        api.patch(f"/api/v1/nodes/{node['metadata']['name']}", {"metadata": kept, "spec": {"unschedulable": None}})


@pytest.fixture
def node(api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], PlayedNode]:
    monkeypatch.setattr(copies, "BEFORE", str(tmp_path / "before"))

    def make(name: str) -> PlayedNode:
        return PlayedNode(api, name, tmp_path / name)

    return make


def start(api: Api, node: str, *, budget: int | None = None, owned: bool = True) -> None:
    """A pod on the node: of a Deployment, behind a budget where one is given, or of nobody."""
    tolerations = [GPU_TAINT, {"key": "node.kubernetes.io/not-ready", "operator": "Exists"}]
    spec: Object = {
        "nodeSelector": {"kubernetes.io/hostname": node},
        "tolerations": tolerations,
        "containers": [{"name": "main", "image": "some/image:1"}],
    }
    labels = {"app": node}
    if owned:
        wanted: Object = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": node},
            "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": spec}},
        }
        api.create(f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments", wanted)
    else:
        api.create(PODS, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": node}, "spec": spec})
    if budget is not None:
        limits: Object = {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": {"name": node},
            "spec": {"minAvailable": budget, "selector": {"matchLabels": labels}},
        }
        api.create(f"/apis/policy/v1/namespaces/{NAMESPACE}/poddisruptionbudgets", limits)
    until(lambda: mine(api, node), lambda pods: bool(pods) and pods[0]["status"]["phase"] == "Running")
    if budget is not None:
        until(lambda: healthy(api, node), lambda found: found == 1)


def healthy(api: Api, node: str) -> int:
    """How many pods the budget of a node counts.

    A new pod on a node that is not Ready may be called unready once, by the controller of nodes. The kubelet then
    says again what it knows.
    """
    for pod in mine(api, node):
        ready = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
        api.patch(f"{PODS}/{pod['metadata']['name']}/status", ready, kind="strategic")
    budget = api.get(f"/apis/policy/v1/namespaces/{NAMESPACE}/poddisruptionbudgets/{node}")
    return int(budget["status"].get("currentHealthy") or 0)


def cordoned(api: Api, node: str) -> tuple[bool, bool]:
    found = api.get(f"/api/v1/nodes/{node}")
    return bool(found["spec"].get("unschedulable")), CORDONED in (found["metadata"].get("annotations") or {})


def fails(run: Rollout, played: PlayedNode, change: Disruption, kind: type[GpureadyError]) -> str:
    with pytest.raises(kind) as error:
        run.change(played.name, played, change)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_node_is_drained_changed_and_given_back(api: Api, node: Callable[[str], PlayedNode]) -> None:
    played, said = node("gpu-0000"), list[str]()
    start(api, played.name)
    Rollout(api, said.append, TIMING).change(played.name, played, played.change())
    assert (played.unschedulable_at_stop, played.pods_at_stop) == (True, 0)
    assert played.log == ["stop kubelet", "daemon-reload", "start kubelet"]
    assert played.config.read_text() == "cpuManagerPolicy: static\n"
    assert json.loads(played.state.read_text()) == {"policyName": "static"}
    assert cordoned(api, played.name) == (False, False)
    assert said[-1] == "gpu-0000: done"
    until(lambda: mine(api, played.name), lambda pods: len(pods) == 1)


def test_a_failure_puts_everything_back_and_stops_the_rollout(api: Api, node: Callable[[str], PlayedNode]) -> None:
    played, other = node("gpu-0001"), node("gpu-0002")
    played.config.write_text("cpuManagerPolicy: none\n")
    played.config.chmod(0o600)
    run = Rollout(api, lambda _: None, TIMING)
    text = fails(run, played, played.change("broken"), ToolError)
    assert "kubelet is failed (it logged: boom); what was there is back, and the node is as it was" in text
    assert played.config.read_text() == "cpuManagerPolicy: none\n"
    assert played.config.stat().st_mode & 0o777 == 0o600
    assert json.loads(played.state.read_text()) == {"policyName": "none"}
    assert (played.root / "kubelet").read_text() == "active\n"
    assert cordoned(api, played.name) == (False, False)
    assert "gpu-0002: not touched, since gpu-0001 failed" in fails(run, other, other.change(), RefusedError)
    assert other.commands == []


def test_a_file_that_was_not_there_goes_again(api: Api, node: Callable[[str], PlayedNode]) -> None:
    played = node("gpu-0001")
    fails(Rollout(api, lambda _: None, TIMING), played, played.change("broken"), ToolError)
    assert not played.config.exists()


def test_a_state_file_that_stays_stops_the_kubelet_and_is_noticed(api: Api, node: Callable[[str], PlayedNode]) -> None:
    played = node("gpu-0002")
    change = Disruption(reasons=("kubelet",), files=played.change().files)
    assert "kubelet is failed" in fails(Rollout(api, lambda _: None, TIMING), played, change, ToolError)


@pytest.fixture
def unplayed(api: Api) -> Iterator[str]:
    """A Ready node that nobody plays: kwok would renew the lease of one of its own at any time."""
    name = "unplayed"
    api.create("/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
    report(api, name, ready=True)
    yield name
    api.delete(f"/api/v1/nodes/{name}")


def test_a_kubelet_that_never_reports_is_not_taken_for_ready(
    api: Api, node: Callable[[str], PlayedNode], unplayed: str
) -> None:
    played = node(unplayed)
    played.silent = True
    brief = Timing(drain_s=20, ready_s=2, hold_s=0.5, canary_hold_s=0.5)
    text = fails(Rollout(api, lambda _: None, brief), played, played.change(), ToolError)
    assert "the new kubelet has not reported yet" in text
    assert "putting back what was there failed, too" in text
    assert cordoned(api, played.name) == (True, True)


def test_a_budget_holds_the_drain_and_nothing_is_changed(api: Api, node: Callable[[str], PlayedNode]) -> None:
    played = node("gpu-0003")
    start(api, played.name, budget=1)
    short = Timing(drain_s=3, ready_s=6, hold_s=0.5, canary_hold_s=0.5)
    text = fails(Rollout(api, lambda _: None, short), played, played.change(), ToolError)
    assert "1 pods were still there after 3 s; rollout/gpu-0003-" in text
    assert "disruption budget" in text
    assert text.endswith("nothing was changed on it")
    assert played.log == []
    assert cordoned(api, played.name) == (False, False)
    assert len(mine(api, played.name)) == 1


def test_a_pod_of_nobody_is_not_lost(api: Api, node: Callable[[str], PlayedNode]) -> None:
    played = node("gpu-0004")
    start(api, played.name, owned=False)
    text = fails(Rollout(api, lambda _: None, TIMING), played, played.change(), RefusedError)
    assert "a drain would lose pod rollout/gpu-0004, which no controller makes again" in text
    assert cordoned(api, played.name) == (False, False)
    assert len(mine(api, played.name)) == 1


def test_a_cordon_that_is_not_ours_stays(api: Api, node: Callable[[str], PlayedNode]) -> None:
    played = node("gpu-0005")
    api.patch(f"/api/v1/nodes/{played.name}", {"spec": {"unschedulable": True}})
    Rollout(api, lambda _: None, TIMING).change(played.name, played, played.change())
    assert cordoned(api, played.name) == (True, False)


def test_an_interrupted_run_is_taken_up(api: Api, node: Callable[[str], PlayedNode]) -> None:
    played = node("gpu-0007")
    (played.root / "kubelet").write_text("inactive\n")
    marked = {"metadata": {"annotations": {CORDONED: "rollout"}}, "spec": {"unschedulable": True}}
    api.patch(f"/api/v1/nodes/{played.name}", marked)
    change = Disruption(reasons=("an earlier run was interrupted",))
    Rollout(api, lambda _: None, TIMING).change(played.name, played, change)
    assert (played.root / "kubelet").read_text() == "active\n"
    assert cordoned(api, played.name) == (False, False)


def test_a_machine_that_has_joined_nothing_is_changed_at_once(api: Api, node: Callable[[str], PlayedNode]) -> None:
    played = node("bare-0")
    (played.root / "kubelet").write_text("activating\n")
    Rollout(api, lambda _: None, TIMING).change(played.name, played, played.change())
    assert played.config.exists()
    assert played.log == ["daemon-reload"]


def test_a_node_must_be_what_it_was(api: Api, node: Callable[[str], PlayedNode]) -> None:
    # The nodes of this cluster lack a network plugin, which is no reason to wait for them to be Ready.
    lacking = standing(api.get("/api/v1/nodes/gpu-0006"))
    assert (lacking.ready, lacking.network_only, lacking.well) == (False, True, True)
    # One that was Ready has to be Ready again.
    played = node("gpu-0001")
    report(api, played.name, ready=True)
    until(lambda: standing(api.get(f"/api/v1/nodes/{played.name}")).ready, bool)
    played.network = False
    short = Timing(drain_s=20, ready_s=3, hold_s=0.5, canary_hold_s=0.5)
    try:
        text = fails(Rollout(api, lambda _: None, short), played, played.change(), ToolError)
        assert "it was not as before within 3 s: NotReady, KubeletNotReady: container runtime network not ready" in text
        assert text.endswith("what was there is back, and the node is as it was")
        assert standing(api.get(f"/api/v1/nodes/{played.name}")).ready
        assert cordoned(api, played.name) == (False, False)
    finally:
        report(api, played.name, ready=False)


def test_one_reboot_after_the_boot_loader_was_told(api: Api, node: Callable[[str], PlayedNode]) -> None:
    played = node("gpu-0002")
    change = Disruption(
        reasons=("kernel arguments",), files=played.change("none").files, commands=("update-grub",), reboot=True
    ) + Disruption(reasons=("nouveau",), reboot=True, proofs=("true",))
    Rollout(api, lambda _: None, TIMING).change(played.name, played, change)
    told = [line.partition(" --timer")[0] for line in played.log]
    assert told == ["stop kubelet", "daemon-reload", "update-grub", "--on-active=1"]
    assert played.log[-1].endswith("systemctl reboot")
    assert (played.root / "boot_id").read_text() == "another\n"
    assert cordoned(api, played.name) == (False, False)


def test_a_reboot_that_brought_nothing_is_put_back_without_another(api: Api, node: Callable[[str], PlayedNode]) -> None:
    played = node("gpu-0002")
    change = Disruption(
        reasons=("kernel arguments",),
        files=played.change("none").files,
        commands=("update-grub",),
        reboot=True,
        proofs=("echo it runs without iommu=pt; false",),
    )
    text = fails(Rollout(api, lambda _: None, TIMING), played, change, ToolError)
    assert "it runs without iommu=pt" in text
    assert text.endswith("the node is as it was, but for its reboot")
    assert not played.config.exists()
    assert [sum(word in line for line in played.log) for word in ("systemctl reboot", "update-grub")] == [1, 2]


def test_an_unhealthy_node_and_a_shell_without_root_are_left_alone(api: Api, node: Callable[[str], PlayedNode]) -> None:
    lost: dict[str, Any] = {"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown", "message": "stopped"}
    found = standing({"metadata": {}, "status": {"conditions": [lost]}})
    assert (found.well, found.complaint) == (False, "NotReady, NodeStatusUnknown: stopped")
    played = node("gpu-0007")
    (played.root / "bin" / "id").write_text("#!/bin/sh\necho 1000\n")
    text = fails(Rollout(api, lambda _: None, TIMING), played, played.change(), RefusedError)
    assert "the shell is not root's" in text
    assert cordoned(api, played.name) == (False, False)


def test_a_node_that_goes_away_is_one_line(
    api: Api, node: Callable[[str], PlayedNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    played = node("gpu-0007")
    real = played.run

    def run(command: str, *, timeout: float = 60.0) -> tuple[bool, str]:
        if "base64" in command:
            raise UnreachableError("gpu-0007 does not answer over SSH: closed")
        return real(command, timeout=timeout)

    monkeypatch.setattr(played, "run", run)
    text = fails(Rollout(api, lambda _: None, TIMING), played, played.change(), ToolError)
    assert text.startswith("gpu-0007: gpu-0007 does not answer over SSH: closed; what was there is back")


def test_writing_is_whole_and_keeps_the_mode(tmp_path: Path) -> None:
    path = tmp_path / "a folder" / "file"
    text = 'it\'s "text" with $signs\nand lines\n'
    subprocess.run(["sh", "-c", copies.write(File(str(path), text, "600"))], check=True)
    assert (path.read_text(), path.stat().st_mode & 0o777) == (text, 0o600)
    path.chmod(0o640)
    subprocess.run(["sh", "-c", copies.write(File(str(path), "new\n", "600"))], check=True)
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("new\n", 0o640)
    assert [one.name for one in path.parent.iterdir()] == ["file"]
    subprocess.run(["sh", "-c", copies.write(File(str(path), None))], check=True)
    assert not path.exists()
    assert shlex.quote(str(path)) in copies.restore(str(path))
