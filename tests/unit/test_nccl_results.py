"""What nccl-tests writes with -J: alone, beside its printed table, laid out by a tool, cut, and very long."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gpuready.validators import nccl

Document = dict[str, Any]
_KEYS = ("average_bus_bandwidth", "bandwidth")
_MISSPELT = ("average_bus_bandwidith", "bandwidith")


def _half(bandwidth: float, wrong: float | None = 0.0, time: str = "time") -> Document:
    return {time: 4575.2, "alg_bw": bandwidth / 1.875, "bus_bw": bandwidth, "nwrong": wrong}


def _result(size: int, bandwidth: float, **more: Any) -> Document:
    return {
        "size": size,
        "count": size // 4,
        "type": "float",
        "redop": "sum",
        "root": "    -1",
        "out_of_place": _half(bandwidth),
        "in_place": _half(bandwidth + 1),
        "actual_iterations": 20,
        "experiment_name": "",
        **more,
    }


def _document(*results: Document, keys: tuple[str, str] = _KEYS, wrong: int = 0, **more: Any) -> Document:
    """Two processes of one GPU each; ``keys`` are those of the average, which were misspelt at first."""
    devices = [
        {
            "rank": rank,
            "group": 0,
            "pid": 101,
            "hostname": f"gpu-{host}",
            "device": 0,
            "device_hex": "0000:1b:00",
            "device_info": "NVIDIA H100 80GB HBM3",
        }
        for rank, host in enumerate("ab")
    ]
    return {
        "version": 1,
        "start_time": "2026-01-02 03:04:05",
        "args": ["./build/all_reduce_perf", "-J", "out.json", "-b", "1G"],
        "env": ["HOME=/root", "SECRET_TOKEN=hunter2", "NCCL_DEBUG=INFO", "NCCL_IB_HCA=mlx5_0,mlx5_1"],
        "nccl_version": 22707,
        "config": {"nthreads": 1, "ngpus": 1, "minimum_bytes": 8, "step_factor": 2, "devices": devices},
        "results": list(results) or [_result(1 << 20, 12.5), _result(1 << 30, 401.123456)],
        "out_of_bounds": {"count": wrong, "okay": "false" if wrong else "true"},
        keys[0]: {keys[1]: 206.811728, "okay": "unchecked"},
        "errors": [""],
        "end_time": "2026-01-02 03:05:05",
        **more,
    }


def _compact(document: Document) -> bytes:
    """As nccl-tests writes it: one line without blanks, slashes escaped, without a line end."""
    return json.dumps(document, separators=(",", ":")).replace("/", "\\/").encode()


def _read(*files: bytes) -> nccl.NcclReport:
    return nccl.read([io.BytesIO(file) for file in files])


@pytest.mark.parametrize("keys", [_KEYS, _MISSPELT])
def test_document_alone(keys: tuple[str, str]) -> None:
    report = _read(_compact(_document(keys=keys)))

    facts = report.to_json()
    assert facts["benchmark"] == {
        "collective": "all_reduce",
        "rows": [
            {
                "bytes": size,
                "time_us": 4575.2,
                "algbw_gbytes_s": bandwidth / 1.875,
                "busbw_gbytes_s": bandwidth,
                "wrong": 0,
            }
            for size, bandwidth in ((1 << 20, 12.5), (1 << 30, 401.123456))
        ],
        "max_size_busbw_gbytes_s": 401.123456,
        "average_busbw_gbytes_s": 206.811728,
        "out_of_bounds": 0,
    }
    assert (facts["versions"], facts["ranks"], facts["hosts"]) == (["2.27.7"], 2, ["gpu-a", "gpu-b"])
    assert (facts["transport"]["gdr"], nccl.verdict(report).exit_code) == ("unproven", 2)
    assert "a benchmark table has no end" not in report.incomplete


def test_command_reads_a_document(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    file.write_bytes(_compact(_document(wrong=3)))

    command = [sys.executable, "-m", "gpuready.validators.cli", "nccl", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 1
    assert done.stdout.startswith("FAIL nccl.correct: the collective returned wrong results")
    assert "all_reduce: 401.123 GB/s bus bandwidth at 1 GiB" in done.stdout


def test_of_the_environment_nothing_but_nccl_is_kept() -> None:
    facts = _read(_compact(_document())).to_json()

    assert facts["environment"] == {"NCCL_DEBUG": ["INFO"], "NCCL_IB_HCA": ["mlx5_0,mlx5_1"]}
    assert "hunter2" not in json.dumps(facts)


@pytest.mark.parametrize(
    ("changes", "bandwidth", "wrong", "time"),
    [
        ({"out_of_place": None}, 402.0, 0, 4575.2),
        ({"out_of_place": _half(401.0, 2.0), "in_place": _half(1.0, 3.0)}, 401.0, 5, 4575.2),
        ({"out_of_place": _half(401.0, None), "in_place": _half(1.0, None)}, 401.0, None, 4575.2),
        ({"out_of_place": _half(401.0, time="cpu_time")}, 401.0, 0, 4575.2),
        ({"out_of_place": {**_half(401.0), "time": "nan"}}, 401.0, 0, None),
    ],
)
def test_cells(changes: Document, bandwidth: float, wrong: int | None, time: float | None) -> None:
    (row,) = _read(_compact(_document(_result(1 << 30, 401.0, **changes)))).to_json()["benchmark"]["rows"]

    assert (row["busbw_gbytes_s"], row["wrong"], row["time_us"]) == (bandwidth, wrong, time)


def test_infinite_rates_are_no_figure() -> None:
    """C prints them as a word that JSON does not have."""
    text = _compact(_document(_result(0, 0.0), _result(1 << 30, 401.0))).replace(b'"alg_bw":0.0', b'"alg_bw":inf')
    assert b"inf" in text

    table = _read(text).to_json()["benchmark"]

    assert [row["algbw_gbytes_s"] for row in table["rows"]] == [None, 401.0 / 1.875]


def test_several_gpus_of_a_process() -> None:
    """Only the first one is listed."""
    document = _document()
    document["config"] |= {"nthreads": 2, "ngpus": 4}

    assert _read(_compact(document)).ranks == 16


def test_one_rank_has_no_bus_bandwidth() -> None:
    """By its formula it is nothing, and so is the average; the table is whole all the same."""
    report = _read(_compact(_document(_result(1 << 30, 0.0), average_bus_bandwidth={"bandwidth": 0.0})))

    assert report.benchmark is not None and report.benchmark.finished


def test_soak_keeps_the_slowest_of_a_size() -> None:
    report = _read(_compact(_document(*(_result(1 << 30, rate) for rate in (400.0, 12.0, 401.0)))))

    assert report.benchmark is not None
    assert [row.busbw for row in report.benchmark.rows.values()] == [12.0]


@pytest.mark.parametrize("layout", [{"indent": 2}, {"indent": 1}, {"separators": (", ", ": ")}])
def test_laid_out_by_a_tool(layout: dict[str, Any]) -> None:
    document = _document(_result(1 << 30, 401.0, out_of_place_per_iter={"times_us": [1.5, 2.5, 3.5]}))
    text = json.dumps(document, **layout).encode()

    for source in (text, text + b"\n", text.replace(b"\n", b"\r\n")):
        facts = _read(source).to_json()
        assert facts["benchmark"]["max_size_busbw_gbytes_s"] == 401.0
        assert facts["benchmark"]["average_busbw_gbytes_s"] == 206.811728


_SMALL = "  4575.20    6.67   12.50      0  4575.20    7.20   13.50      0"
_LARGE = "  4575.20  213.93  401.12      0  4575.20  214.46  402.12      0"
_PRINTED = [
    "# Collective test starting: all_reduce_perf",
    "#  Rank  0 Group  0 Pid    101 on      gpu-a device  0 [0000:1b:00] NVIDIA H100 80GB HBM3",
    "#  Rank  1 Group  0 Pid    101 on      gpu-b device  0 [0000:1b:00] NVIDIA H100 80GB HBM3",
    "#       size         count      type   redop    root     time   algbw   busbw #wrong"
    "     time   algbw   busbw #wrong",
    f"     1048576        262144     float     sum      -1{_SMALL}",
    f"  1073741824     268435456     float     sum      -1{_LARGE}",
    "# Out of bounds values : 0 OK",
    "# Avg bus bandwidth    : 206.812 ",
]


def _printed(*lines: str) -> bytes:
    return "".join(f"{line}\n" for line in lines or _PRINTED).encode()


def test_printed_table_and_document_of_one_run_are_one_table() -> None:
    for files in ((_printed(), _compact(_document())), (_compact(_document()), _printed())):
        facts = _read(*files).to_json()

        assert facts["benchmark"]["max_size_busbw_gbytes_s"] == 401.123456
        assert facts["other_benchmarks"] == []


def test_document_of_another_run_is_another_table() -> None:
    other = _document()
    for device in other["config"]["devices"]:
        device["pid"] = 999

    facts = _read(_printed(), _compact(other)).to_json()

    assert facts["benchmark"]["max_size_busbw_gbytes_s"] == 401.12
    assert [one["max_size_busbw_gbytes_s"] for one in facts["other_benchmarks"]] == [401.123456]


def test_document_makes_up_for_a_torn_table() -> None:
    torn = _printed(*_PRINTED[:5], _PRINTED[5][:70])
    assert any("table" in reason for reason in _read(torn).incomplete)

    report = _read(torn, _compact(_document()))

    assert not any("table" in reason for reason in report.incomplete)


def test_wrong_results_count_whichever_of_both_says_so() -> None:
    wrong = _printed(*(line.replace("values : 0 OK", "values : 3 FAILED") for line in _PRINTED))

    for files in ((wrong, _compact(_document())), (_printed(), _compact(_document(wrong=3)))):
        assert nccl.verdict(_read(*files)).exit_code == 1


@pytest.mark.parametrize("version", [(22707, ["2.27.7+cuda12.9"]), (22105, ["2.21.5", "2.27.7+cuda12.9"])])
def test_version_is_told_once(version: tuple[int, list[str]]) -> None:
    record = b"gpu-a:101:101 [0] NCCL INFO NCCL version 2.27.7+cuda12.9\n"

    assert list(_read(record, _compact(_document(nccl_version=version[0]))).versions) == version[1]


def test_document_in_the_midst_of_a_log() -> None:
    """Printed by a pod whose files nobody can reach."""
    record = b"[1,0]<stdout>:gpu-a:101:101 [0] NCCL INFO Using network IB"
    document = b"[1,0]<stdout>:" + _compact(_document())

    for text in (b"\n".join((record, document, record)), document + record, _compact(_document()) + record):
        report = _read(text + b"\n")
        assert report.networks == ("IB",)
        assert report.benchmark is not None and report.benchmark.average == 206.811728


def test_last_words_are_read() -> None:
    words = "NET/IB: Got completion from peer 192.0.2.2<47> with status=12 opcode=1 hca mlx5_3"

    (error,) = _read(_compact(_document(errors=[words]))).errors

    assert (error.name, error.peer, error.hca) == ("ib_completion_12", "192.0.2.2", "mlx5_3")


def test_cut_at_any_byte_is_open_and_keeps_what_is_whole() -> None:
    whole = _compact(_document(*(_result(1 << bits, float(bits)) for bits in range(20, 24))))
    rows = set()
    for end in range(1, len(whole)):
        report = _read(whole[:end])
        rows.add(len(report.benchmark.rows) if report.benchmark else 0)
        assert nccl.verdict(report).exit_code == 2
        # Nothing but the last brace may be missing where the table counts as whole.
        if not any("table" in reason for reason in report.incomplete):
            assert end > whole.index(b'"average_bus_bandwidth"') or end < 20
    assert rows == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("text", [b'{"version":1', b'{"version":1,"results":7}', b'{"version":1,"results":[7,null]}'])
def test_what_is_no_result_is_none(text: bytes) -> None:
    report = _read(text)

    assert nccl.verdict(report).exit_code == 2
    assert report.benchmark is None or not report.benchmark.rows


def test_per_iteration_times_cost_no_memory() -> None:
    """64 processes and 2,000 iterations for each of 20 sizes: 23 MB of JSON."""
    times = [1234.567890 + number for number in range(2000)]
    per_process = json.dumps([times] * 64, separators=(",", ":"))
    block = f'{{"skipped_iterations":0,"min_us":1.5,"times_us":{times},"per_process_max_times_us":{per_process}}}'
    head, tail = _compact(_document()).split(b'"results":')
    first = _compact(_result(1 << 30, 401.0))[:-1] + b',"in_place_per_iter":'

    def chunks() -> Iterator[bytes]:
        yield head + b'"results":['
        for number in range(20):
            yield (b"," if number else b"") + first + block.encode() + b"}"
        yield b"]" + tail[tail.index(b',"out_of_bounds"') :]

    class Stream(io.RawIOBase):
        parts = chunks()
        rest = b""

        def readable(self) -> bool:
            return True

        def read(self, size: int = -1) -> bytes:
            while len(self.rest) < size and (part := next(self.parts, b"")):
                self.rest += part
            data, self.rest = self.rest[:size], self.rest[size:]
            return data

    tracemalloc.start()
    report = nccl.read([Stream()])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert report.benchmark is not None and report.benchmark.largest is not None
    assert (report.benchmark.largest.busbw, report.benchmark.finished) == (401.0, True)
    assert peak < 16 << 20
