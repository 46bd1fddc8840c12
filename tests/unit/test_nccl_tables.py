"""Tables of nccl-tests in all their forms."""

from __future__ import annotations

import pytest
from gpuready.validators import nccl

_HALF = "     time   algbw   busbw #wrong"
_NEW = f"#       size         count      type   redop    root{_HALF}{_HALF}"
_OLD = "#       size         count    type   redop     time   algbw   busbw  error     time   algbw   busbw  error"
_PIECES = (
    "    33554432       8388608     float     sum      -1",
    "    434.2   77.27  144.89      0",
    "    459.2   73.07  137.01      0",
)
_ROW = "".join(_PIECES)
_END = ["# Out of bounds values : 0 OK", "# Avg bus bandwidth    : 140.95 "]


def _table(*lines: str) -> dict[str, object]:
    facts = nccl.read([lines]).to_json()
    assert facts["benchmark"] is not None
    return facts["benchmark"]


def test_thirteen_columns() -> None:
    table = _table("# Collective test starting: all_gather_perf", _NEW, _ROW, *_END)

    assert table == {
        "collective": "all_gather",
        "rows": [
            {
                "bytes": 33554432,
                "time_us": 434.2,
                "algbw_gbytes_s": 77.27,
                "busbw_gbytes_s": 144.89,
                "wrong": 0,
            }
        ],
        "max_size_busbw_gbytes_s": 144.89,
        "average_busbw_gbytes_s": 140.95,
        "out_of_bounds": 0,
    }


def test_eleven_columns_with_an_error_column_count_nothing_wrong() -> None:
    row = "        8192          2048   float     sum    298.7    0.03    0.04  5e-07    280.3    0.03    0.04  5e-07"

    table = _table(_OLD, row, *_END)

    assert table["rows"][0]["wrong"] is None
    assert table["max_size_busbw_gbytes_s"] == 0.04


@pytest.mark.parametrize(
    ("row", "bandwidth", "wrong"),
    [
        (_ROW.replace("      0", "    N/A"), 144.89, None),
        (_ROW.replace(" 144.89      0", " 144.89      2").replace("137.01      0", "137.01      3"), 144.89, 5),
        (_ROW.replace("   77.27  144.89      0", "     N/A     N/A    N/A"), 137.01, 0),
        (_ROW.replace("144.89      0", "144.89 1.2e+05"), 144.89, 120000),
        (f"{_ROW}  2026-01-02 03:04:05", 144.89, 0),
    ],
)
def test_cells(row: str, bandwidth: float, wrong: int | None) -> None:
    table = _table(_NEW, row, *_END)

    assert table["max_size_busbw_gbytes_s"] == bandwidth
    assert table["rows"][0]["wrong"] == wrong


def test_statistics_after_each_half() -> None:
    half = "time   algbw   busbw #wrong   min   max   avg   std"
    row = "  33554432 8388608 float sum -1  434.2 77.27 144.89 0 1 2 3 4  459.2 73.07 137.01 7 1 2 3 4"

    table = _table(f"#  size  count  type  redop  root  {half}  {half}", row, *_END)

    assert (table["max_size_busbw_gbytes_s"], table["rows"][0]["wrong"]) == (144.89, 7)


_OLD_HALF = "    434.2   77.27  144.89  5e-07"
_OLD_HEAD_HALF = "     time   algbw   busbw  error"


@pytest.mark.parametrize(
    ("names", "cells"),
    [
        ("size count type", "33554432 8388608 float"),
        ("size count type redop", "33554432 8388608 float sum"),
        ("size count type root", "33554432 8388608 float 0"),
        ("size count type redop root", "33554432 8388608 float sum 0"),
        # 2.9 to 2.12 name the column for collectives without a reduction, too.
        ("size count type redop", "33554432 8388608 float       "),
    ],
)
def test_heads_and_rows_up_to_2_12(names: str, cells: str) -> None:
    """all_gather, all_reduce, broadcast, reduce, alltoall."""
    table = _table(f"#  {names}{_OLD_HEAD_HALF}{_OLD_HEAD_HALF}", f"{cells}{_OLD_HALF}{_OLD_HALF}", *_END)

    assert [(row["bytes"], row["time_us"], row["busbw_gbytes_s"]) for row in table["rows"]] == [
        (33554432, 434.2, 144.89)
    ]


@pytest.mark.parametrize(
    ("half", "cells", "rest"),
    [
        ("time algbw busbw #wrong i_min i_max i_p99 i_cv%", "434.2 77.27 144.89 0 430.1 440.2 439.9 0.91", ""),
        ("time algbw busbw #wrong i_min i_max i_p99 i_cv%", "434.2 77.27 144.89 0 430.1 440.2 439.9 0.91", "stamp"),
        ("cputime algbw busbw #wrong", "434.2 77.27 144.89 0", ""),
        ("time algbw busbw #wrong", "434.2 77.27 144.89 0", "stamp"),
    ],
)
def test_statistics_cpu_time_and_time_stamps(half: str, cells: str, rest: str) -> None:
    head, end = ("timestamp", "2026-01-02 03:04:05") if rest else ("", "")
    rows = [f"  {size} 8388608 float sum -1 {cells} {cells} {end}" for size in (33554432, 67108864)]

    table = _table(f"#  size count type redop root {half} {half} {head}", *rows, *_END)

    assert [(row["bytes"], row["time_us"], row["busbw_gbytes_s"], row["wrong"]) for row in table["rows"]] == [
        (33554432, 434.2, 144.89, 0),
        (67108864, 434.2, 144.89, 0),
    ]


def test_out_of_place_half_left_blank() -> None:
    """As nccl-tests prints what it replays."""
    row = f"    33554432       8388608     float     sum      -1{' ' * 32}    459.2   73.07  137.01      4"

    table = _table(_NEW, row, _ROW.replace("33554432", "67108864"), *_END)

    assert [(row["busbw_gbytes_s"], row["wrong"]) for row in table["rows"]] == [(137.01, 4), (144.89, 0)]


def test_lines_that_a_log_service_shows_twice() -> None:
    lines = ["# Collective test starting: all_reduce_perf", _NEW, _ROW, *_END]

    report = nccl.read([[line for line in lines for _ in range(2)]])

    assert not any("table" in reason for reason in report.incomplete)
    assert [len(table.rows) for table in report.tables] == [1]


def _head(rank: int, pid: int, host: str = "gpu-a") -> str:
    return f"#  Rank {rank:2} Group  0 Pid {pid} on {host} device  0 [0000:1b:00] NVIDIA H100 80GB HBM3"


def test_each_process_its_own_rank_0_is_nccl_tests_without_mpi() -> None:
    """Their tables run into each other, as the launcher prints them."""
    lines = [*(_head(0, pid) for pid in (101, 102)), *(_head(0, pid, "gpu-b") for pid in (101, 102))]

    report = nccl.read([[*lines, _NEW, *[_ROW] * 4, *_END]])

    assert report.separate and report.ranks == 1
    reasons = {one.reason for one in nccl.verdict(report).findings if one.status == "unproven"}
    assert "SeparateRuns" in reasons


def test_benchmarks_in_a_row_are_one_job_each() -> None:
    lines = []
    for run in (100, 200):
        lines += [_head(rank, run + rank) for rank in range(4)] + [_NEW, _ROW, *_END]

    report = nccl.read([lines])

    assert not report.separate and report.ranks == 4


def test_one_half_only() -> None:
    table = _table(
        "#       size         count      type   redop    root     time   algbw   busbw #wrong",
        "   1073741824    268435456     float     sum      -1    5012.0  214.20  401.70      0",
        *_END,
    )

    assert table["max_size_busbw_gbytes_s"] == 401.7


def test_row_cut_by_launcher_tags() -> None:
    table = _table(_NEW, "".join(f"[1,0]<stdout>:{piece}" for piece in _PIECES), *_END)

    assert table["rows"][0]["busbw_gbytes_s"] == 144.89


def test_row_broken_by_records() -> None:
    record = "gpu-a:101:101 [1] NCCL INFO AllReduce: opCount 0"
    lines = [record, _NEW, f"{_PIECES[0]}{record}", record, f"{_PIECES[1]}{record}", _PIECES[2]]

    report = nccl.read([[*lines, *_END]])

    assert report.hosts == ("gpu-a",), "the 0 before the host name belongs to the row"
    assert report.benchmark is not None and report.benchmark.largest is not None
    assert report.benchmark.largest.busbw == 144.89
    assert report.benchmark.largest.wrong == 0


def test_largest_size_counts_and_not_the_average() -> None:
    small = _ROW.replace("33554432", "     512").replace("144.89", "  0.10")

    assert _table(_NEW, _ROW, small, *_END)["max_size_busbw_gbytes_s"] == 144.89


def test_soak_keeps_the_slowest_of_a_size() -> None:
    table = _table(_NEW, _ROW, _ROW.replace("144.89      0", " 12.00      1"), _ROW, *_END)

    assert [(row["busbw_gbytes_s"], row["wrong"]) for row in table["rows"]] == [(12.0, 1)]


def test_pasted_head_without_hash_signs() -> None:
    report = nccl.read(
        [
            [
                "nThread 1 nGpus 1 minBytes 8 maxBytes 8589934592 step: 2(factor)",
                "Using devices",
                "  Rank  0 Group  0 Pid   6899 on gpu-a device  0 [0000:04:00] NVIDIA H100 80GB HBM3",
                "#  Rank  1 Group  0 Pid   6900 on gpu-b.example device  0 [0x04] NVIDIA H100 80GB HBM3",
                _NEW,
                _ROW,
            ]
        ]
    )

    assert (report.ranks, report.hosts) == (2, ("gpu-a", "gpu-b"))
    assert "a benchmark table has no end" in report.incomplete


@pytest.mark.parametrize("missing", [0, 1])
def test_table_ends_with_two_lines(missing: int) -> None:
    report = nccl.read([[_NEW, _ROW, _END[missing]]])

    assert "a benchmark table has no end" in report.incomplete


def test_torn_row_is_told() -> None:
    report = nccl.read([[_NEW, _ROW[:80], _ROW, *_END]])

    assert "1 rows of a benchmark table are torn" in report.incomplete
    assert report.benchmark is not None and list(report.benchmark.rows) == [33554432]


@pytest.mark.parametrize("lost", ["    sum", "     -1", "    sum      -1", "  144.89", "      0", "  77.27  144.89"])
def test_row_that_lost_a_cell_is_torn(lost: str) -> None:
    """The cells after it stand one place too far to the left."""
    assert lost in _ROW

    report = nccl.read([[_NEW, _ROW.replace(lost, "", 1), _ROW.replace("33554432", "67108864"), *_END]])

    assert "1 rows of a benchmark table are torn" in report.incomplete
    assert report.benchmark is not None and list(report.benchmark.rows) == [67108864]


def test_numbers_of_something_else_are_no_row() -> None:
    assert nccl.read([["2024 10 files read", "12 13 float", "# size matters"]]).to_json()["benchmark"] is None
