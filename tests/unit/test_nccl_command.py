"""`gpuready nccl` as people use it: a real process, real files, compressed or not."""

from __future__ import annotations

import bz2
import gzip
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gpuready.rehearsal.outputs.nccl import Host, render

ZSTD = importlib.import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")


def _logs(**changes: Any) -> dict[str, str]:
    promised: dict[str, Any] = {
        "gpus": 8,
        "nics": tuple(f"mlx5_{nic}" for nic in range(8)),
        "link": "IB",
        "nic_gbits_s": 400,
        "rdma": True,
        "gdr": True,
    }
    hosts = [
        Host(name="gpu-a", address="10.20.0.1", **promised),
        Host(name="gpu-b", address="10.20.0.2", **{**promised, **changes}),
    ]
    return render(hosts, min_bytes=1 << 30, max_bytes=1 << 33, seed=5).logs


def _run(*args: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "gpuready.validators.cli", "nccl", *map(str, args)]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=60, check=False)


def test_healthy_run_in_two_files(tmp_path: Path) -> None:
    files = []
    for name, log in _logs().items():
        files.append(tmp_path / f"{name}.log")
        files[-1].write_text(log)

    done = _run(*files, "--rails", "8", "--network", "IB", "-o", "json")

    assert (done.returncode, done.stderr) == (0, b"")
    report = json.loads(done.stdout)
    assert (report["kind"], report["cluster"], report["verdict"], report["exit_code"]) == ("nccl", None, "pass", 0)
    facts = report["nccl"]
    assert (facts["complete"], facts["ranks"], facts["nodes"], facts["hosts"]) == (True, 16, 2, ["gpu-a", "gpu-b"])
    assert facts["rails"]["gpu-b"] == {"used": list(range(8)), "idle": []}
    assert facts["benchmark"]["max_size_busbw_gbytes_s"] == facts["benchmark"]["rows"][-1]["busbw_gbytes_s"]
    assert {result["status"] for result in report["results"]} == {"pass"}
    assert report["results"][0]["evidence"] == [str(file) for file in files]


def test_text_says_the_answer_first(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    log.write_text("".join(_logs(rdma=False).values()))

    done = _run(log)

    first, *rest = done.stdout.decode().splitlines()
    assert done.returncode == 1
    assert first == "FAIL nccl.transport: NCCL fell back to TCP sockets (gpu-b)"
    assert any(line.startswith("why no GPUDirect, 1: NCCL found no RDMA device (on gpu-b)") for line in rest)


def test_stdin_and_files_are_one_run(tmp_path: Path) -> None:
    logs = _logs()
    other = tmp_path / "b.log"
    other.write_text(logs["gpu-b"])

    assert _run("-", other, stdin=logs["gpu-a"].encode()).returncode == 0
    assert _run("-", stdin=logs["gpu-a"].encode()).returncode == 2, "half of a run proves nothing"


def test_gzip_file_and_gzip_stdin(tmp_path: Path) -> None:
    packed = gzip.compress("".join(_logs().values()).encode())
    file = tmp_path / "run.log.gz"
    file.write_bytes(packed)

    assert _run(file).returncode == 0
    assert _run("-", stdin=packed).returncode == 0
    file.write_bytes(packed[:-2000])
    damaged = _run(file)
    assert (damaged.returncode, damaged.stdout) == (2, b"")
    assert damaged.stderr.startswith(f"gpuready: {file} is damaged: ".encode())


def test_zstd_file_and_zstd_stdin(tmp_path: Path) -> None:
    packed = ZSTD.compress("".join(_logs().values()).encode())
    file = tmp_path / "run.log.zst"
    file.write_bytes(packed)

    assert _run(file).returncode == 0
    assert _run("-", stdin=packed).returncode == 0


def test_zstd_in_several_frames(tmp_path: Path) -> None:
    """As logs look that were packed one by one and then joined."""
    file = tmp_path / "run.log.zst"
    file.write_bytes(b"".join(ZSTD.compress(log.encode()) for log in _logs().values()))

    assert _run(file).returncode == 0


@pytest.mark.parametrize("how", ["cut", "cut in the first block", "overwritten", "followed by something else"])
def test_damaged_zstd_is_one_line(tmp_path: Path, how: str) -> None:
    packed = ZSTD.compress("".join(_logs().values()).encode())
    damaged = {
        "cut": packed[:-2000],
        "cut in the first block": packed[:100],
        "overwritten": packed[:1000] + bytes(2000) + packed[3000:],
        "followed by something else": packed + b"and more",
    }[how]
    file = tmp_path / "run.log.zst"
    file.write_bytes(damaged)

    for done in (_run(file), _run("-", stdin=damaged)):
        assert (done.returncode, done.stdout) == (2, b"")
        (line,) = done.stderr.decode().splitlines()
        assert " is damaged: " in line


def test_zstd_that_needs_much_memory_is_refused_with_the_way_around(tmp_path: Path) -> None:
    options = {ZSTD.CompressionParameter.window_log: 27}
    packer = ZSTD.ZstdCompressor(options=options)
    file = tmp_path / "run.log.zst"
    file.write_bytes(packer.compress(b"x" * 1000) + packer.flush())

    done = _run(file)

    assert (done.returncode, done.stdout) == (2, b"")
    (line,) = done.stderr.decode().splitlines()
    assert line.endswith("unpack it first: zstd -dc --long=31 FILE | gpuready nccl -")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read"),
        (b"", "empty"),
        (bz2.compress(b"x" * 10000) + b"\0" * 100, "is no text"),
    ],
)
def test_what_is_no_log_is_one_line_and_code_2(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "run.log"
    if content is not None:
        file.write_bytes(content)

    done = _run(file)

    assert (done.returncode, done.stdout) == (2, b"")
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("gpuready: ") and message in line and str(file) in line


def test_a_folder_is_refused(tmp_path: Path) -> None:
    done = _run(tmp_path)

    assert done.returncode == 2
    assert done.stderr.decode().count("\n") == 1


@pytest.mark.parametrize("rails", ["0", "-1", "many"])
def test_rails_must_be_a_number(rails: str) -> None:
    done = _run("-", "--rails", rails, stdin=b"x\n")

    assert (done.returncode, done.stdout) == (2, b"")


def test_a_text_about_something_else_proves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("hello\nworld\n")

    done = _run(file, "-o", "json")

    report = json.loads(done.stdout)
    assert (done.returncode, report["verdict"]) == (2, "incomplete")
    assert report["nccl"]["transport"]["gdr"] == "unproven"
    assert report["nccl"]["benchmark"] is None and report["nccl"]["ranks"] is None


def test_holes_of_a_network_share_are_skipped(tmp_path: Path) -> None:
    file = tmp_path / "run.log"
    file.write_bytes("".join(_logs().values()).replace("\n", "\n\0\0\0", 5).encode())

    assert _run(file).returncode == 0


def test_memory_does_not_grow_with_the_log(tmp_path: Path) -> None:
    """The same channels again and again, as torch prints them for each communicator."""
    import tracemalloc

    from gpuready.validators import nccl

    lines = [line for log in _logs().values() for line in log.splitlines(keepends=True)]
    chatter = [f"gpu-a:101:201 [0] NCCL INFO NET/OFI endpoint {number}\n" for number in range(500)]

    def peak(times: int) -> int:
        file = tmp_path / f"{times}.log"
        with file.open("w") as out:
            for _ in range(times):
                out.writelines(lines)
                out.writelines(chatter)
        tracemalloc.start()
        nccl.read([file])
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    small = peak(6)
    assert peak(18) < small * 1.2


def test_the_library_needs_nothing_but_python() -> None:
    code = "import sys, gpuready.validators.nccl; print(*(n for n in sys.modules if n.startswith('gpuready.')))"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    loaded = {name for name in done.stdout.split() if not name.startswith("gpuready.validators.nccl")}
    assert loaded == {"gpuready.validators"}
