"""The all-reduce script without PyTorch: how its pods meet, and how they end. The rest of it test_search.py runs."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from gpuready.validators.acceptance import allreduce

SCRIPT = Path(allreduce.__file__)


@pytest.fixture
def free_port() -> int:
    """The first of some ports that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def started(tmp_path: Path, port: int, index: int, nodes: int, **env: str) -> subprocess.Popen[str]:
    """One pod of the script; it needs PyTorch only once all pods are there."""
    settings = {
        "JOB_COMPLETION_INDEX": str(index),
        "GPUREADY_NODES": str(nodes),
        "GPUREADY_GPUS": "8",
        "GPUREADY_MASTER": "127.0.0.1",
        "GPUREADY_PORT": str(port + 1),
        "GPUREADY_MIN_BYTES": "1024",
        "GPUREADY_MAX_BYTES": "1024",
        "GPUREADY_BACKEND": "gloo",
        "GPUREADY_START_SECONDS": "8",
        "GPUREADY_TERMINATION_LOG": str(tmp_path / f"verdict.{index}"),
        **env,
    }
    command = [sys.executable, str(SCRIPT)]
    return subprocess.Popen(command, env={**os.environ, **settings}, stdout=subprocess.PIPE, text=True)


def test_pods_name_the_ranks_that_did_not_start(tmp_path: Path, free_port: int) -> None:
    pods = [started(tmp_path, free_port, index, 4) for index in (0, 2)]
    said = [one.communicate(timeout=60)[0] for one in pods]
    assert [one.returncode for one in pods] == [1, 1]
    line = "# no start within 8 s: ranks 8-15 (pod 1), 24-31 (pod 3) of 32\n"
    assert said == [line, line]
    verdicts = [json.loads((tmp_path / f"verdict.{index}").read_text()) for index in (0, 2)]
    assert verdicts == [{"index": index, "exit": allreduce.NOT_STARTED, "missing": [1, 3]} for index in (0, 2)]


def test_a_pod_without_the_first_one_names_that(tmp_path: Path, free_port: int) -> None:
    pod = started(tmp_path, free_port, 1, 2, GPUREADY_START_SECONDS="1")
    assert pod.communicate(timeout=60)[0] == "# no start within 1 s: ranks 0-7 (pod 0) of 16\n"
    assert json.loads((tmp_path / "verdict.1").read_text())["missing"] == [0]


def test_pods_that_are_all_there_go_on(free_port: int) -> None:
    with ThreadPoolExecutor(3) as pool:
        end = time.monotonic() + 30
        first = pool.submit(allreduce.called, free_port, 3, end)
        others = [pool.submit(allreduce.reported, "127.0.0.1", free_port, index, end) for index in (1, 2)]
        assert [one.result(timeout=40) for one in (first, *others)] == [[], [], []]


def sleeper(seconds: float, code: int = 0) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({seconds}); raise SystemExit({code})"])


@pytest.mark.parametrize(
    ("ranks", "limit", "expected"),
    [
        ([(0.0, 0), (0.2, 0)], 60.0, (0, [])),
        ([(0.0, 7), (0.2, 0)], 60.0, (7, [])),
        # The one that hangs is named; the pod's own end comes before Kubernetes' and so prints the logs.
        ([(0.0, 0), (600.0, 0)], 3.0, (124, [1])),
    ],
)
def test_how_ranks_end(ranks: list[tuple[float, int]], limit: float, expected: tuple[int, list[int]]) -> None:
    running = [sleeper(*one) for one in ranks]
    try:
        assert allreduce.waited(running, time.monotonic() + limit) == expected
    finally:
        for one in running:
            one.kill()
            one.wait()


def test_ranks_do_not_wait_long_for_one_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allreduce, "_LAST_WORDS_SECONDS", 1)
    running = [sleeper(0.0, 5), sleeper(600.0)]
    try:
        assert allreduce.waited(running, time.monotonic() + 300) == (5, [])
    finally:
        for one in running:
            one.kill()
            one.wait()


# Ranks that write a line of log and end at once, but for the second, which hangs.
FAKE_RANK = """
import os, time
from pathlib import Path
rank = int(os.environ["GPUREADY_LOCAL_RANK"])
Path(os.environ["NCCL_DEBUG_FILE"]).write_text(f"rank {rank} was here\\n")
Path(f"{os.environ['FAKE_FOLDER']}/{rank}.seen").touch()
time.sleep(600 if rank == 1 else 0)
"""
GUARD = 'if "GPUREADY_LOCAL_RANK" in os.environ:\n        '
LINES = "rank 0 was here\nrank 1 was here\nrank 2 was here\n"


def launched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: int) -> subprocess.Popen[str]:
    """The script's own launcher around such ranks, once all of them have written."""
    script = tmp_path / "allreduce.py"
    text = SCRIPT.read_text().replace(f"{GUARD}rank()", f"{GUARD}import fake")
    assert "import fake" in text
    script.write_text(text)
    (tmp_path / "fake.py").write_text(FAKE_RANK)
    monkeypatch.setattr(sys.modules[__name__], "SCRIPT", script)
    more = {"GPUREADY_GPUS": "3", "GPUREADY_SECONDS": str(seconds), "FAKE_FOLDER": str(tmp_path)}
    pod = started(tmp_path, 1024, 0, 1, **more)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("*.seen"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    return pod


def test_a_pod_whose_rank_hangs_prints_its_logs_and_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pod = launched(tmp_path, monkeypatch, 10)
    assert pod.communicate(timeout=60)[0] == f"{LINES}# no end within 10 s: ranks 1\n"
    verdict = json.loads((tmp_path / "verdict.0").read_text())
    assert (pod.returncode, verdict) == (1, {"index": 0, "exit": allreduce.HUNG, "ranks": 3, "hung": [1]})


def test_a_pod_that_is_ended_prints_its_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pod = launched(tmp_path, monkeypatch, 300)
    pod.terminate()
    assert (pod.communicate(timeout=60)[0], pod.returncode) == (LINES, 143)
