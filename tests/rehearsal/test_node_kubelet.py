"""The kubelet's settings as a real kubelet reads them: by the drop-in of kubeadm's nodes and by the arguments of k3s.

It is started without a cluster and ends once it has said what its configuration came to.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from gpuready.charts_values import node_settings
from gpuready.deploys.nodes import kubelet
from gpuready.deploys.nodes.facts import FLAGS, Kubelet, NodeFacts, Numa
from gpuready.deploys.nodes.standing import holds
from gpuready.deploys.nodes.systems import system_of
from gpuready.rehearsal.engine import Binaries

GIB = 2**20  # in KiB
BASE = {
    "apiVersion": "kubelet.config.k8s.io/v1beta1",
    "kind": "KubeletConfiguration",
    "containerRuntimeEndpoint": "unix:///run/nobody.sock",
    "failCgroupV1": False,
    # What an upgrade by kubeadm would write there.
    "topologyManagerPolicy": "none",
    "evictionHard": {"nodefs.available": "7%"},
}
TABLES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "everything": {
        "topology_manager": {
            "policy": "best-effort",
            "scope": "container",
            "options": {"prefer-closest-numa-nodes": True, "max-allowable-numa-nodes": 16},
        },
        "cpu_manager": {"policy": "static", "options": {"full-pcpus-only": True, "strict-cpu-reservation": True}},
        "memory_manager": {"policy": "Static"},
        "reserved": {"cpus": "0-1,4", "kube_memory": "4Gi", "system_memory": "1Gi", "eviction_memory": "100Mi"},
    },
    "shares": {
        "cpu_manager": {"policy": "static"},
        "memory_manager": {"policy": "Static", "reserved": {0: "3072Mi", 1: "2148Mi"}},
        "reserved": {"kube_cpu": "1500m", "system_cpu": 2, "kube_memory": "4Gi", "system_memory": "1Gi"},
    },
}


def machine(config: dict[str, Any]) -> NodeFacts:
    """A machine of two sockets whose kubelet has ``config``."""
    return NodeFacts(
        name="gpu-0",
        os_id="debian",
        os_version="12",
        online=tuple(range(8)),
        numa=(Numa(0, (0, 1, 2, 3), 64 * GIB), Numa(1, (4, 5, 6, 7), 64 * GIB)),
        memory_kib=128 * GIB,
        kubelet=Kubelet(version="v1.35.4", config=config),
    )


def read(binaries: Binaries, folder: Path, *arguments: str) -> dict[str, Any]:
    """What the configuration of a kubelet comes to, as far as gpuready sets it."""
    (folder / "config.yaml").write_text(yaml.safe_dump(BASE))
    command = [
        *(str(binaries["kubelet"]), f"--config={folder / 'config.yaml'}", "--v=5"),
        *(f"--root-dir={folder / 'root'}", f"--cert-dir={folder / 'certs'}", *arguments),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    _, found, rest = done.stderr.partition('"KubeletConfiguration" configuration=<\n')
    assert found, done.stderr[-1500:]
    text, _, _ = rest.partition("\n >\n")
    config: dict[str, Any] = json.loads(text)
    # It prints the names of its Go types, such as CPUManagerPolicy.
    shown = {key.lower(): value for key, value in config.items()}
    shares = [{"numaNode": one["NumaNode"], "limits": one["Limits"]} for one in shown["reservedmemory"] or ()]
    return {**{key: shown[key.lower()] for key in FLAGS}, "reservedMemory": shares}


@pytest.mark.parametrize("name", TABLES)
def test_both_channels_bring_the_settings(binaries: Binaries, tmp_path: Path, name: str) -> None:
    settings = node_settings.parse("inventory, cluster 'lab'", TABLES[name])
    seen = machine(dict(BASE))
    wanted = kubelet.wanted(settings, seen)
    by_file, _ = kubelet.plan(settings, seen, "kubeadm", system_of(seen)[0])
    drop_in = next(one for one in by_file.files if one.path.endswith(".conf"))
    folder = tmp_path / "kubelet.conf.d"
    folder.mkdir()
    (folder / Path(drop_in.path).name).write_text(drop_in.content or "")
    by_flags, _ = kubelet.plan(settings, seen, "k3s", system_of(seen)[0])
    (file,) = by_flags.files
    flags = [f"--{one}" for one in yaml.safe_load(file.content or "")["kubelet-arg+"]]
    for arguments in ([f"--config-dir={folder}"], flags):
        shown = read(binaries, tmp_path, *arguments)
        wrong = {key: shown.get(key) for key, value in wanted.items() if not holds(shown.get(key), value)}
        assert wrong == {}, arguments
        # The rule by which Memory Manager starts, on what the kubelet itself made of it.
        if shown["memoryManagerPolicy"] == "Static":
            total = sum(node_settings.quantity("", "", one["limits"]["memory"]) for one in shown["reservedMemory"])
            assert total == kubelet.memory_reservation("", shown)
    # Both are what the rollout will hold against /configz.
    assert by_file.expected == by_flags.expected == wanted
    # Thresholds that the node has beside ours stay.
    assert read(binaries, tmp_path, f"--config-dir={folder}")["evictionHard"]["nodefs.available"] == "7%"
