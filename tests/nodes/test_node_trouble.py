"""What goes wrong on a node, by the command itself: exit code, one line per node, and that the next run finishes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gpuready.charts_values.kube import Api
from gpuready.deploys.nodes import copies
from gpuready.deploys.nodes.standing import CORDONED
from gpuready.rehearsal import controlplane
from gpuready.rehearsal.machines import host, plan
from gpuready.rehearsal.progress import quiet
from gpuready.rehearsal.state import State

from ..rehearsal import commands

NAMES = ("machine-0", "machine-1")
PYINFRA = str(Path(sys.executable).with_name("pyinfra"))
COMMAND = (PYINFRA, "inventory", "deploys/gpu.py")
NODES = ("--limit", "gpu_nodes")
KUBELET_FILE = "/etc/kubernetes/kubelet.conf.d/50-gpuready.conf"
# Refused by the unit below once it is in the file, so that the kubelet starts again without it alone.
SETTING = {"topology_manager": {"policy": "best-effort"}}
UNIT = "/run/systemd/system/kubelet.service.d/99-broken.conf"
INVENTORY = """
import json, os
from functools import partial as _partial
from gpuready.charts_values import inventory as _inventory
from gpuready.deploys.nodes import operations as _operations, rollout as _rollout

# How long a node is watched before the next one's turn: the rest is as it is.
_timing = _rollout.Timing(hold_s=2, canary_hold_s=2)
_operations.Rollout = _partial(_rollout.Rollout, timing=_timing)
_this = _inventory.choose({"rehearsal": {"rehearsal": True, **json.loads(os.environ["ENTRY"])}}, __file__)
cluster = (["@local"], {"gpuready": _this})
gpu_nodes = (_inventory.hosts(_this), {"gpuready": _this})
"""
# The end of what never ends; a host where other tests run beside these takes a multiple of its usual time.
SECONDS = 400.0
Done = subprocess.CompletedProcess[str]


class Place:
    """A folder with an inventory whose entry a test varies, and the consoles of the machines."""

    def __init__(self, now: State, folder: Path) -> None:
        self.now, self.folder = now, folder
        self.api = Api.connect(now.kubeconfig)
        self._inits: dict[str, int] = {}
        (folder / "inventory").write_text(INVENTORY)
        (folder / "deploys").symlink_to(commands.ROOT / "deploys")
        assert now.entry
        group: dict[str, Any] = next(iter(now.entry["groups"].values()))
        plain = {**group, "rdma": "none", "resources": {"nvidia.com/gpu": 8}}
        # Three releases are enough to see that they go on.
        self.entry: dict[str, Any] = {"groups": {"plain": plain}, "dra": "off"}

    def environment(self, **entry: Any) -> dict[str, str]:
        return commands.environment(self.now.folder, ENTRY=json.dumps(self.entry | entry))

    def run(self, *options: str, **entry: Any) -> Done:
        """The command, with keys of the entry replaced."""
        done = subprocess.run(
            [*COMMAND, *options],
            cwd=self.folder,
            env=self.environment(**entry),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        assert "password:" not in done.stdout + done.stderr
        return done

    def interrupted(self, at: str, act: Callable[[int], object], **entry: Any) -> tuple[int, str]:
        """The command on the nodes, with ``act`` called with its pid once it prints ``at``; exit code and output."""
        with subprocess.Popen(
            [*COMMAND, *NODES],
            cwd=self.folder,
            env=self.environment(**entry),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stderr
            text = ""
            for line in process.stderr:
                text += line
                if at and at in line:
                    at = ""
                    act(process.pid)
            assert not at, text
            return process.wait(timeout=SECONDS), text

    def ssh_nodes(self, **changes: dict[str, Any]) -> dict[str, Any]:
        """The machines of inventory, with data of some replaced."""
        assert self.now.entry
        return {name: data | changes.get(name, {}) for name, data in self.now.entry["ssh_nodes"].items()}

    def console(self, name: str, command: str) -> str:
        """Root's command on a machine, past SSH."""
        if name not in self._inits:
            self._inits[name] = next(pid for pid in host.pids(f"{plan.group(self.now.folder)}/{name}") if _init(pid))
        done = subprocess.run(
            ["nsenter", "-t", str(self._inits[name]), "-a", "sh", "-c", command],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def cordoned(self, name: str) -> tuple[bool, bool]:
        """Whether a node is cordoned, and whether that is ours."""
        node = self.api.get(f"/api/v1/nodes/{name}")
        marks = node["metadata"].get("annotations") or {}
        return bool(node["spec"].get("unschedulable")), CORDONED in marks

    def kubelet(self, name: str) -> tuple[str, str]:
        """The main process of the kubelet, and the text of gpuready's file."""
        text = self.console(name, f"systemctl show -P MainPID kubelet; cat {KUBELET_FILE} 2> /dev/null || true")
        pid, _, file = text.partition("\n")
        return pid, file

    def settled(self, **entry: Any) -> Done:
        """The run after the trouble: it ends well, and the one after that changes nothing."""
        done = self.run(*NODES, **entry)
        assert done.returncode == 0, done.stderr
        again = self.run(*NODES, **entry)
        total = next(line.split() for line in again.stderr.splitlines() if "Grand total" in line)
        assert (again.returncode, total[3:]) == (0, ["-", "-", total[2]]), again.stderr
        for name in NAMES:
            assert self.cordoned(name) == (False, False)
            left = self.console(
                name,
                f"ls -d {copies.BEFORE} 2> /dev/null || true; find /etc -name '*.gpuready-new'; systemctl --failed -q",
            )
            assert left == ""
            assert self.console(name, "systemctl is-active kubelet containerd ssh").split() == ["active"] * 3
        return done


@pytest.fixture(scope="module")
def place(able: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Two machines and one simulated node, which these tests have for themselves."""
    folder = tmp_path_factory.mktemp("trouble")
    try:
        yield Place(controlplane.up(folder / "state", nodes=1, ssh_nodes=2, leash=os.getpid(), say=quiet), folder)
    finally:
        controlplane.down(folder / "state")


def _init(pid: int) -> bool:
    """Whether a process is the first one of a machine."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    return bool(re.search(r"^NSpid:\t\d+\t1$", status, re.MULTILINE)) and "Name:\tsystemd\n" in status


def said(done: Done, *parts: str) -> list[str]:
    """The lines of a run that name any of the parts, without what pyinfra puts before them."""
    lines = (re.sub(r"^\s*(\[[^]]*\]\s*)?", "", line) for line in done.stderr.splitlines())
    return [line for line in lines if any(part in line for part in parts)]


def unprepared(done: Done) -> list[str]:
    return said(done, "not prepared, since")


# -- nodes that cannot be asked ------------------------------------------------------------------------------


def test_a_node_that_is_away_is_named_and_the_releases_go_on(place: Place) -> None:
    place.console("machine-1", "systemctl stop ssh")
    done = place.run(maintenance=[])
    assert done.returncode == 1, done.stderr
    assert said(done, "Could not connect") == [
        "Could not connect ([Errno None] Unable to connect to port 22 on "
        f"{place.ssh_nodes()['machine-1']['ssh_hostname']})"
    ]
    assert unprepared(done) == ["machine-1: not prepared, since it was not reached; mend it, then run again"]
    # It is the last that is said before the results.
    assert done.stderr.index("not prepared, since") > done.stderr.index("operation: GPU Operator: wait until observed")
    assert place.console("machine-0", "ls /etc/sysctl.d/90-gpuready.conf")
    assert place.console("machine-1", "ls /etc/sysctl.d/90-gpuready.conf || true") == ""
    place.console("machine-1", "systemctl start ssh")
    done = place.run(*NODES, maintenance=[])
    assert done.returncode == 0, done.stderr
    assert place.console("machine-1", "ls /etc/sysctl.d/90-gpuready.conf")


def test_a_wrong_key_and_a_sudo_that_refuses(place: Place, tmp_path: Path) -> None:
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    place.console("machine-1", "mv /etc/sudoers.d/ops /root/")
    done = place.run(maintenance=[], ssh_nodes=place.ssh_nodes(**{"machine-0": {"ssh_key": str(key)}}))
    place.console("machine-1", "mv /root/ops /etc/sudoers.d/")
    assert done.returncode == 1, done.stderr
    assert len(said(done, "Authentication error")) == 1
    assert said(done, "NOPASSWD") == [
        "machine-1: sudo does not let ops be root without a password; give NOPASSWD, or SSH as root"
    ]
    assert unprepared(done) == [
        "machine-0: not prepared, since it was not reached; mend it, then run again",
        "machine-1: not prepared, since it failed, as said above; mend it, then run again",
    ]


def test_no_python_and_a_full_disk(place: Place) -> None:
    place.console("machine-0", "mv /usr/bin/python3 /usr/bin/python3.away")
    place.console("machine-1", "mount -t tmpfs -o size=4k tmpfs /etc/sysctl.d && yes > /etc/sysctl.d/fill || true")
    done = place.run(*NODES, maintenance=[])
    place.console("machine-0", "mv /usr/bin/python3.away /usr/bin/python3")
    place.console("machine-1", "umount /etc/sysctl.d")
    assert done.returncode == 1, done.stderr
    assert said(done, "Python") == ["machine-0: Python 3.6 or newer is missing; install python3"]
    assert said(done, "No space left"), done.stderr
    assert "operation: Nodes: /etc/modules-load.d" in done.stderr


# -- changes that fail half way ------------------------------------------------------------------------------


def test_a_full_disk_under_the_kubelets_settings(place: Place) -> None:
    folder = Path(KUBELET_FILE).parent
    for name in NAMES:
        place.console(
            name, f"mkdir -p {folder} && mount -t tmpfs -o size=4k tmpfs {folder} && yes > {folder}/fill || true"
        )
    done = place.run(*NODES)
    for name in NAMES:
        assert place.console(name, f"ls -A {folder}") == "fill"
        place.console(name, f"umount {folder}")
        assert place.cordoned(name) == (False, False)
    assert done.returncode == 1, done.stderr
    failed, kept = said(done, "; what was there is back", "not touched, since")
    assert f"writing {KUBELET_FILE} failed" in failed and "No space left on device" in failed
    assert "mend that one, then run again" in kept


def test_a_kubelet_that_does_not_start_with_the_change(place: Place) -> None:
    for name in NAMES:
        check = f"! grep -q best-effort {KUBELET_FILE}"
        place.console(
            name, f"mkdir -p {Path(UNIT).parent}; printf '[Service]\nExecStartPre=sh -c \"{check}\"\n' > {UNIT}"
        )
    before = {name: place.kubelet(name) for name in NAMES}
    done = place.run(*NODES, node=SETTING | {"sysctl": {"vm.overcommit_memory": "1"}})
    assert done.returncode == 1, done.stderr
    failed, kept = said(done, "; what was there is back", "not touched, since")
    first, second = failed.partition(":")[0], kept.partition(":")[0]
    assert {first, second} == set(NAMES)
    assert failed.startswith(f"{first}: `systemctl start kubelet` failed: ")
    assert failed.endswith("; what was there is back, and the node is as it was")
    # The other's kubelet was never touched, and what disturbs nobody was done on both.
    assert place.kubelet(second) == before[second]
    assert place.kubelet(first)[1] == before[first][1]
    for name in NAMES:
        assert place.cordoned(name) == (False, False)
        assert "vm.overcommit_memory = 1" in place.console(name, "cat /etc/sysctl.d/90-gpuready.conf")
        place.console(name, f"rm {UNIT} && systemctl daemon-reload")


def test_a_connection_that_is_cut_is_taken_up_to_put_back(place: Place) -> None:
    before = {name: place.kubelet(name)[1] for name in NAMES}

    def cut(_: int) -> None:
        for name in NAMES:
            place.console(name, "pkill -KILL -u ops sshd")

    code, text = place.interrupted("stopping kubelet", cut, node=SETTING)
    assert code == 1, text
    line = "does not answer over SSH: the connection was cut; what was there is back, and the node is as it was"
    assert text.count(line) == 1, text
    assert "Traceback" not in text
    for name in NAMES:
        assert place.kubelet(name)[1] == before[name]
        assert place.cordoned(name) == (False, False)


def test_a_budget_that_forbids_the_drain_is_named(place: Place) -> None:
    labels = {"app": "kept"}
    spec = {
        "affinity": {
            "podAntiAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": [
                    {"labelSelector": {"matchLabels": labels}, "topologyKey": "kubernetes.io/hostname"}
                ]
            }
        },
        "nodeSelector": {plan.MARK: ""},
        "tolerations": [{"operator": "Exists"}],
        "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "main", "image": "busybox:1.36", "command": ["sleep", "3600"]}],
    }
    meta = {"name": "kept", "namespace": "default"}
    deployments, budgets = "/apis/apps/v1/namespaces/default/deployments", "/apis/policy/v1/namespaces/default"
    template = {"metadata": {"labels": labels}, "spec": spec}
    body: dict[str, Any] = {"replicas": 2, "selector": {"matchLabels": labels}, "template": template}
    place.api.create(deployments, {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": body})
    budget = {"minAvailable": 2, "selector": {"matchLabels": labels}}
    body = {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": meta, "spec": budget}
    place.api.create(f"{budgets}/poddisruptionbudgets", body)
    path = f"{budgets}/poddisruptionbudgets/kept"
    commands.until(
        lambda: place.api.get(path).get("status", {}).get("currentHealthy"), lambda count: count == 2, SECONDS
    )
    before = [place.kubelet(name) for name in NAMES]
    done = place.run(*NODES, node={**SETTING, "drain_timeout": 2})
    place.api.delete(path)
    place.api.delete(f"{deployments}/kept")
    assert done.returncode == 1, done.stderr
    held, _ = said(done, "nothing was changed on it", "not touched, since")
    assert re.match(r"machine-\d: 1 pods were still there after 2 s; default/kept-\S+: ", held)
    assert "The disruption budget kept needs 2 healthy pods and has 2 currently" in held
    assert [place.kubelet(name) for name in NAMES] == before
    assert [place.cordoned(name) for name in NAMES] == [(False, False)] * 2


def test_an_installer_that_is_killed_and_a_kubelet_that_is_broken_are_finished(place: Place) -> None:
    code, text = place.interrupted("stopping kubelet", lambda pid: os.kill(pid, signal.SIGKILL), node=SETTING)
    assert code == -signal.SIGKILL
    found = re.search(r"(machine-\d): stopping kubelet", text)
    assert found
    name = found[1]
    assert place.cordoned(name) == (True, True)
    # Now nothing starts there, neither the change nor what was there.
    place.console(name, f"mkdir -p {Path(UNIT).parent}; printf '[Service]\nExecStartPre=false\n' > {UNIT}")
    done = place.run(*NODES, "--limit", name, node=SETTING)
    assert done.returncode == 1, done.stderr
    (line,) = said(done, "putting back what was there failed, too")
    assert line.endswith(f"its old files lie in {copies.BEFORE} on the node. It stays cordoned.")
    assert place.cordoned(name) == (True, True)
    place.console(name, f"rm {UNIT}")
    done = place.settled(node=SETTING)
    assert "an earlier run was interrupted here" in done.stderr
    assert all("best-effort" in place.kubelet(one)[1] for one in NAMES)


# -- platforms of others -------------------------------------------------------------------------------------


def test_hosted_and_vcluster_leave_their_files_alone(place: Place) -> None:
    look = (
        "cd /etc/kubernetes; find . -type f -exec sha256sum {} + | sort; sha256sum /var/lib/kubelet/config.yaml "
        "/var/lib/kubelet/kubeadm-flags.env /etc/default/kubelet"
    )
    before = [place.console(name, look) for name in NAMES]
    wanted = {"topology_manager": {"policy": "none"}}
    hosted = place.run(*NODES, platform="hosted", node=wanted, maintenance=[])
    assert hosted.returncode == 0, hosted.stderr
    assert len(said(hosted, f"withheld, since it disturbs pods: kubelet: {KUBELET_FILE}")) == 2
    assert [place.console(name, look) for name in NAMES] == before
    private = place.run(*NODES, platform="vcluster", node=wanted)
    assert private.returncode == 0, private.stderr
    assert len(said(private, "these belong into vcluster.yaml")) == 2
    assert private.stderr.count("privateNodes:\n  kubelet:\n    config:\n      topologyManagerPolicy: none") == 2
    assert [place.console(name, look) for name in NAMES] == before
