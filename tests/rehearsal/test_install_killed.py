"""The installer, killed at ten points and run again, ends where an undisturbed run ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpuready.charts_values.kube import Api, Object
from gpuready.rehearsal import controlplane
from gpuready.rehearsal.state import State

from .commands import BIN, ROOT, environment, until
from .installer import install, plan
from .platform import NIC_POLICIES, POLICY

# Where it is killed: at a line of its log, while helm works on a release, or when helm has written the release's
# record and not its end. Each run gets further than the last.
POINTS = (
    "Loading: deploys/gpu.py",
    "helm upgrade cilium",
    "Starting operation: Cilium: wait until observed",
    "Starting operation: NFD: namespace node-feature-discovery",
    "helm upgrade node-feature-discovery",
    "record of network-operator",
    "Starting operation: NicClusterPolicy nic-cluster-policy: applied",
    "Starting operation: NicClusterPolicy nic-cluster-policy: wait until observed",
    "record of gpu-operator",
    "Starting operation: GPU Operator: wait until observed",
)
# What differs between two clusters, or from moment to moment.
_OWN = re.compile(r"kubernetes\.io/hostname|timestamp|gpuready\.io/|\.clique$|bind-|host-name")


def test_killed_at_ten_points(state_dir: Path, tmp_path: Path, installed: State) -> None:
    now = controlplane.up(state_dir, nodes=2, profile="h100-ib", leash=os.getpid())
    for number, point in enumerate(POINTS):
        log = tmp_path / f"{number}.log"
        _run_and_kill(now, log, point)
        until(lambda: list(_helms(now)), lambda seen: seen == [], 20)
        assert "Traceback" not in log.read_text()

    install(state_dir)

    assert [name for name, did in plan(state_dir).items() if did] == []
    assert _end(now) == _end(installed)
    leftovers = [one for one in Path("/tmp").glob("gpuready-charts-*") if one.stat().st_mtime > time.time() - 300]
    assert leftovers == []


def _run_and_kill(now: State, log: Path, point: str) -> None:
    """Start the literal command, and kill it -9 at the point; fails the test where it gets past it."""
    api = Api.connect(now.kubeconfig)
    with log.open("w") as output:
        process = subprocess.Popen(
            [BIN / "pyinfra", "-y", "inventory", "deploys/gpu.py"],
            cwd=ROOT,
            env=environment(now.folder),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            deadline = time.monotonic() + 120
            while not _reached(now, api, log, point, process.pid):
                assert process.poll() is None, f"it ended before {point!r}:\n{log.read_text()[-3000:]}"
                assert time.monotonic() < deadline, f"it did not get to {point!r}:\n{log.read_text()[-3000:]}"
                time.sleep(0.005)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()


def _reached(now: State, api: Api, log: Path, point: str, pid: int) -> bool:
    if point.startswith("record of "):
        return bool(api.list("/api/v1/secrets", labelSelector=f"owner=helm,name={point.split()[-1]}"))
    if not point.startswith("helm "):
        return point in log.read_text()
    _, verb, release = point.split()
    return any(verb in words and release in words for words in _helms(now, pid))


def _helms(now: State, parent: int | None = None) -> Iterator[list[str]]:
    """The command lines of the helm processes of a cluster; of ``parent``'s alone where it is given."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
            owner = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        mine = words[0].endswith("helm") and str(now.kubeconfig) in words
        if mine and parent in (None, owner):
            yield words


def _end(now: State) -> dict[str, Any]:
    """What an installation leaves, without what is each cluster's own."""
    api = Api.connect(now.kubeconfig)
    helm = [now.bin / "helm", "--kubeconfig", now.kubeconfig]
    listed = subprocess.run([*helm, "list", "-A", "-o", "json"], check=True, capture_output=True, timeout=60).stdout
    releases = {one["name"]: one for one in json.loads(listed)}
    values = {}
    for name, one in releases.items():
        command = [*helm, "get", "values", name, "-n", one["namespace"], "-o", "json"]
        values[name] = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout)
    values["cilium"].pop("k8sServicePort")
    node = api.get("/api/v1/nodes/gpu-0000")
    return {
        "releases": {name: (one["namespace"], one["chart"], one["status"]) for name, one in releases.items()},
        "values": values,
        "policies": [api.get(path)["spec"] for path in (POLICY, f"{NIC_POLICIES}/nic-cluster-policy")],
        "labels": {key: value for key, value in node["metadata"]["labels"].items() if not _OWN.search(key)},
        # A kubelet goes on saying 0 of what a plug-in once offered.
        "allocatable": {key: value for key, value in node["status"]["allocatable"].items() if value != "0"},
        "daemonsets": _rolled_out(api),
    }


def _rolled_out(api: Api) -> dict[str, bool]:
    def whole(item: Object) -> bool:
        status = item["status"]
        return bool(status["desiredNumberScheduled"] == status["numberReady"])

    return {one["metadata"]["name"]: whole(one) for one in api.list("/apis/apps/v1/daemonsets", resourceVersion="")}
