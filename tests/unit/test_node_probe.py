"""The probe: one file for any Python, that reads a tree as it finds it and never fails as a whole."""

from __future__ import annotations

import ast
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gpuready.charts_values.errors import ToolError
from gpuready.deploys.nodes import facts
from gpuready.validators import probe as script

SCRIPT = Path(__file__).resolve().parents[2] / "validators/probe.py"
BRIDGE, GPU, NIC = "0000:16:00.0", "0000:18:00.0", "0000:19:00.0"


def probe(root: Path, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-I", str(SCRIPT), "--root", str(root), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def put(root: Path, path: str, text: str | bytes) -> None:
    file = root / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())


def config_space(acs: int | None, ats: bool | None = None) -> bytes:
    """4 KiB of PCI configuration with the PCI Express capability and, behind each other, ACS and ATS."""
    data = bytearray(4096)
    data[0x34] = 0x40
    data[0x40:0x42] = bytes((0x10, 0x00))
    struct.pack_into("<H", data, 0x48, 0x2000 | 0x10)
    here = 0x100
    for number, control in ((0x0D, acs), (0x0F, None if ats is None else (0x8000 if ats else 0))):
        if control is not None:
            struct.pack_into("<IHH", data, here, number | 1 << 16 | (here + 0x40) << 20, 0x1F, control)
            here += 0x40
    return bytes(data)


def device(root: Path, address: str, parent: str, **files: str | bytes) -> None:
    real = root / "sys/devices/pci0000:15" / parent / address
    for key, value in files.items():
        put(real, key.removesuffix("_"), value)
    link = root / "sys/bus/pci/devices" / address
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(os.path.relpath(real, link.parent))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    device(tmp_path, BRIDGE, "", class_="0x060400\n", vendor="0x1000\n", config=config_space(0x1D))
    more = {"numa_node": "1\n", "current_link_width": "8\n", "max_link_width": "16\n"}
    device(tmp_path, GPU, BRIDGE, class_="0x030200\n", vendor="0x10de\n", config=config_space(None, True), **more)
    device(tmp_path, NIC, BRIDGE, class_="0x020700\n", vendor="0x15b3\n", config=b"\x00" * 64)
    put(tmp_path, "/etc/os-release", 'ID=ubuntu\nVERSION_ID="24.04"\nID_LIKE=debian\n')
    put(tmp_path, "/sys/devices/system/cpu/online", "0-3\n")
    for cpu in range(4):
        here = f"/sys/devices/system/cpu/cpu{cpu}/topology"
        put(tmp_path, f"{here}/thread_siblings_list", f"{cpu % 2},{cpu % 2 + 2}\n")
        put(tmp_path, f"{here}/physical_package_id", f"{cpu % 2}\n")
    for node in range(2):
        put(tmp_path, f"/sys/devices/system/node/node{node}/cpulist", f"{node},{node + 2}\n")
        put(tmp_path, f"/sys/devices/system/node/node{node}/meminfo", f"Node {node} MemTotal:  1048576 kB\n")
    put(tmp_path, "/proc/meminfo", "MemTotal:  2097152 kB\nMemAvailable: 1 kB\n")
    put(tmp_path, "/proc/swaps", "Filename Type Size Used Priority\n/swap.img file 1024 12 -2\n")
    put(tmp_path, "/var/lib/kubelet/config.yaml", "cpuManagerPolicy: static\nreservedSystemCPUs: '0'\n")
    put(tmp_path, "/etc/default/kubelet", "KUBELET_EXTRA_ARGS=--config-dir=/etc/kubernetes/kubelet.conf.d\n")
    put(tmp_path, "/etc/kubernetes/kubelet.conf.d/50-gpuready.conf", "topologyManagerPolicy: restricted\n")
    put(tmp_path, "/etc/kubernetes/kubelet.conf.d/60-other.conf", "topologyManagerScope: pod\n")
    put(tmp_path, "/var/lib/kubelet/cpu_manager_state", '{"policyName":"static"}')
    put(tmp_path, "/etc/containerd/config.toml", 'version = 3\n[x]\n  password = "hush"\n')
    return tmp_path


def test_pci_and_its_capabilities(tree: Path) -> None:
    found = probe(tree)
    assert found["errors"] == {}
    bridge, gpu, nic = found["pci"]
    assert bridge["acs"] == {"capability": 0x1F, "control": 0x1D}
    assert (gpu["numa_node"], gpu["link_width"], gpu["link_width_max"], gpu["bridges"]) == (1, 8, 16, [BRIDGE])
    assert (gpu["ats"], gpu["acs"]) == ({"enabled": True}, None)
    assert (gpu["relaxed_ordering"], gpu["max_read_request_bytes"]) == (True, 512)
    # Without root the kernel shows 64 bytes.
    assert (nic["acs"], nic["relaxed_ordering"]) == (None, None)


def test_facts_of_a_tree(tree: Path) -> None:
    seen = facts.from_probe("gpu-0", probe(tree, "--file", "/etc/containerd/config.toml", "--file", "/none"))
    assert (seen.os_id, seen.os_version, seen.os_like) == ("ubuntu", "24.04", ("debian",))
    assert (seen.online, seen.cores, seen.sockets, seen.threads_per_core) == ((0, 1, 2, 3), ((0, 2), (1, 3)), 2, 2)
    assert [(one.node, one.cpus, one.memory_kib) for one in seen.numa] == [(0, (0, 2), 1048576), (1, (1, 3), 1048576)]
    assert (seen.swaps, seen.swap_used_kib) == (("/swap.img",), 12)
    assert seen.gpu_numa == {1: 1}
    assert seen.joined == ("/var/lib/kubelet/config.yaml",)
    # The kubelet stands still and will read the directory; what others set there counts, ours is told apart.
    assert seen.kubelet.config == {
        "cpuManagerPolicy": "static",
        "reservedSystemCPUs": "0",
        "topologyManagerScope": "pod",
    }
    assert seen.kubelet.live == {**seen.kubelet.config, "topologyManagerPolicy": "restricted"}
    assert seen.kubelet.state == {"/var/lib/kubelet/cpu_manager_state": '{"policyName":"static"}'}
    assert seen.files["/none"] is None
    # A bundle must not hold what opens a registry, and the file must not lose it.
    assert "hush" not in json.dumps(seen.raw["containerd"])
    assert "hush" in (seen.containerd.config or "")


def test_modules_are_told_where_their_list_is_hidden(tree: Path) -> None:
    put(tree, "/sys/module/nvidia/initstate", "live\n")
    put(tree, "/sys/module/kernel/parameters/panic", "0\n")
    assert probe(tree)["modules"] == ["nvidia"]
    put(tree, "/proc/modules", "overlay 1 0 - Live 0x0\n")
    assert probe(tree)["modules"] == ["overlay"]


def test_an_empty_tree_is_no_failure(tmp_path: Path) -> None:
    found = probe(tmp_path)
    assert found["errors"] == {}
    assert facts.from_probe("bare", found).joined == ()


def test_a_broken_part_costs_itself_alone(tree: Path) -> None:
    put(tree, "/proc/swaps", "Filename Type Size Used Priority\n/swap.img file much 12 -2\n")
    found = probe(tree)
    assert list(found["errors"]) == ["memory"]
    assert found["errors"]["memory"].startswith("ValueError")
    assert (found["memory"], found["cpu"]["online"]) == (None, "0-3")
    assert facts.from_probe("gpu-0", found).memory_kib == 0


def test_a_command_that_does_not_answer_is_said_and_costs_its_part_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in {"containerd": "exec /bin/sleep 30", "kubelet": "echo Kubernetes v1.36.2"}.items():
        put(tmp_path, name, f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(script, "CALL_S", 0.5)
    found = script.probe()
    silent = "containerd {} gave no answer in 0.5 s"
    assert found["errors"] == {"containerd": f"{silent.format('--version')}; {silent.format('config dump')}"}
    assert found["kubelet"]["version"] == "v1.36.2"
    assert (found["containerd"]["version"], found["containerd"]["dump"]) == (None, None)


def test_one_round_trip_probes_this_machine() -> None:
    command = facts.command(["/etc/os-release", "/a b'c"])
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=True)
    seen = facts.read("here", done.stdout)
    assert seen.memory_kib > 0
    assert seen.files["/a b'c"] is None
    assert "ID=" in (seen.files["/etc/os-release"] or "")
    # sudo and shells take a command of this length; Linux takes 128 KiB for one argument.
    assert len(command) < 65536


def test_what_is_no_probe_is_one_line() -> None:
    with pytest.raises(ToolError, match=r"gpu-0: the probe printed no JSON but 'python3: not found'"):
        facts.read("gpu-0", "python3: not\nfound")
    with pytest.raises(ToolError, match="the probe has schema 9"):
        facts.read("gpu-0", '{"schema": 9}')


def test_it_runs_on_nodes_of_old() -> None:
    tree = ast.parse(SCRIPT.read_text(encoding="utf-8"), feature_version=(3, 6))
    used = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    assert used <= sys.stdlib_module_names
    # Both came with a later Python, and ruff likes to write the second.
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not attributes & {"removeprefix", "removesuffix", "UTC"}
    assert not any(isinstance(node, ast.ImportFrom) for node in ast.walk(tree))


def test_the_schema_is_described_in_full() -> None:
    described = SCRIPT.read_text(encoding="utf-8").partition('"""')[2].partition('"""')[0]
    for key in probe(Path("/nonexistent")):
        assert f"``{key}``" in described, key
