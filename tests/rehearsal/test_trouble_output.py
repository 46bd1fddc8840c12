"""Reports that find no place: a full disk, a reader that left. What was found is not lost, a failure not hidden."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from gpuready.rehearsal.state import State

from .commands import BIN, ROOT, environment, run
from .spoilt import Done, check, command, complaint, confined, listed
from .trouble import Proxy


@pytest.fixture(scope="module")
def bundles(installed: State, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """A bundle that passes and one that fails, by exit code."""
    folder = tmp_path_factory.mktemp("bundles")
    found = {0: folder / "good", 1: folder / "bad"}
    for bundle in found.values():
        run("gpuready", "check", "--save", str(bundle), state_dir=installed.folder)
    nodes = found[1] / "cluster" / "nodes.json"
    nodes.write_text(nodes.read_text().replace('"nvidia.com/gpu": "8"', '"nvidia.com/gpu": "7"'))
    return found


def shell(text: str, now: State, **more: Any) -> Done:
    """A line of bash in which `gpuready` is ours."""
    env = environment(now.folder, PATH=f"{BIN}:{os.environ['PATH']}")
    return subprocess.run(["bash", "-c", text], cwd=ROOT, env=env, text=True, timeout=60, check=False, **more)


@pytest.mark.parametrize("code", [0, 1])
def test_a_reader_that_leaves_costs_nothing(installed: State, bundles: dict[int, Path], code: int) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    line = f"gpuready check --from {bundles[code]}"
    done = shell(line, installed, stdin=subprocess.DEVNULL, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (code, "")


@pytest.mark.parametrize("code", [0, 1])
def test_a_closed_stdout_leaves_the_exit_code(installed: State, bundles: dict[int, Path], code: int) -> None:
    done = shell(f"gpuready check --from {bundles[code]} >&-", installed, capture_output=True)
    assert (done.returncode, done.stderr) == (code, "")


@pytest.mark.parametrize(("code", "then"), [(0, 2), (1, 1)])
def test_a_stdout_that_is_full_costs_a_pass(installed: State, bundles: dict[int, Path], code: int, then: int) -> None:
    done = shell(f"gpuready check --from {bundles[code]} > /dev/full", installed, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (then, "gpuready: cannot write to stdout: No space left on device\n")


@pytest.mark.parametrize("text", ["list", "explain gpu.policy", "rbac check", "rehearse status"])
def test_other_commands_say_so_too(installed: State, text: str) -> None:
    done = shell(f"gpuready {text} > /dev/full", installed, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (2, "gpuready: cannot write to stdout: No space left on device\n")


@pytest.mark.parametrize(("code", "then"), [(0, 2), (1, 1)])
def test_a_report_that_cannot_be_saved_is_printed(
    installed: State, bundles: dict[int, Path], code: int, then: int
) -> None:
    line = f"gpuready check --from {bundles[code]} -o json --output-file /dev/full"
    done = shell(line, installed, capture_output=True)
    assert json.loads(done.stdout)["exit_code"] == code
    assert (done.returncode, done.stderr) == (then, "gpuready: cannot write /dev/full: No space left on device\n")
    assert Path("/dev/full").is_char_device()


@pytest.mark.parametrize("size", ["4k", "40k", "100k"])
def test_a_bundle_on_a_full_disk_costs_no_report(installed: State, tmp_path: Path, size: str) -> None:
    line = f"mount -t tmpfs -o size={size} full {tmp_path}; gpuready check --cluster rehearsal --save {tmp_path}/bundle"
    done = confined(line, installed.folder)
    assert done.stdout.startswith("REHEARSAL PASS")
    assert done.returncode == 2
    assert listed(done.stderr.strip()) == f"cannot write the bundle {tmp_path}/bundle: No space left on device"


def test_what_cannot_be_saved_is_known_before_the_run(network: Proxy, tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    assert "is not empty" in complaint(command(network, "accept", "--save", str(tmp_path / "used")))
    missing = str(tmp_path / "missing" / "report.json")
    assert "there is no folder" in complaint(command(network, "accept", "--output-file", missing))
    assert network.seen == []


def test_without_a_terminal_there_is_only_text(network: Proxy) -> None:
    done = check(network)
    assert "\x1b" not in done.stdout and done.stderr == ""
