"""The tables of nccl-tests, 2.0 to 2.20, read by the names in their header.

Rows may be cut in pieces by launcher tags or by NCCL's own records; a row is done when every column has come.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

_DEVICE = re.compile(
    rb"\s*#?\s*Rank\s+(\d{1,9})(?:\s+Group\s+\d+)?\s+Pid\s+(\d{1,10}) on\s+(\S+) device\s+(\d{1,9}) \[[^\]]*\] (.*)"
)
_STARTING = re.compile(r"#\s*Collective test starting: (\w+)\s*$")
_OUT_OF_BOUNDS = re.compile(r"#\s*Out of bounds values\s*:\s*(\d{1,18})")
_AVERAGE = re.compile(r"#\s*Avg bus bandwidth\s*:\s*([0-9.eE+-]+)")
_SIZE = re.compile(r"[0-9]{1,18}")
_TYPE = re.compile(r"u?int\d+|half|float|double|bfloat16|(?:f|fp|float)8\w+")
# Without a header: the columns since 2.13, and those before, which had no root.
_HALF = ("time", "algbw", "busbw", "#wrong")
_COLUMNS = ("size", "count", "type", "redop", "root", *_HALF, *_HALF)
_OLD_COLUMNS = tuple(name for name in _COLUMNS if name != "root")
# Where a row has no out-of-place half, its place is blank: wider than any gap between two columns.
_BLANK_HALF = re.compile(r"(?<=\S) {33,}(?=\S)")


@dataclass(frozen=True)
class Row:
    """One size. Times in microseconds and rates in GB/s, out of place; ``wrong`` counts both halves."""

    bytes: int
    time_us: float | None
    algbw: float | None
    busbw: float | None
    wrong: int | None


@dataclass(frozen=True)
class Device:
    """A rank's GPU, as the head of the table names it."""

    rank: int
    pid: int
    host: str
    product: str


@dataclass
class Table:
    """One benchmark. ``rows`` is by size; where a soak repeats a size, the slowest stays.

    ``gpus_each`` counts the GPUs behind each of ``devices``.
    """

    collective: str | None = None
    columns: Sequence[str] = ()
    rows: dict[int, Row] = field(default_factory=dict)
    devices: dict[tuple[str, int, int], Device] = field(default_factory=dict)
    gpus_each: int = 1
    average: float | None = None
    out_of_bounds: int | None = None
    torn_rows: int = 0

    def add(self, row: Row) -> None:
        """Take a row; of two of the same size the slower one stays, and wrong elements add up."""
        known = self.rows.get(row.bytes)
        if known is not None:
            slower = min(known, row, key=lambda one: one.busbw or 0.0)
            wrong = None if known.wrong is row.wrong is None else (known.wrong or 0) + (row.wrong or 0)
            row = Row(row.bytes, slower.time_us, slower.algbw, slower.busbw, wrong)
        self.rows[row.bytes] = row

    @property
    def ranks(self) -> int | None:
        """How many ranks its head names, None where it has none."""
        return len({one.rank for one in self.devices.values()}) * self.gpus_each or None

    @property
    def finished(self) -> bool:
        """Whether both lines that nccl-tests ends with were seen."""
        return self.average is not None and self.out_of_bounds is not None

    @property
    def wrong(self) -> int:
        """Wrong elements by any of the two accounts."""
        return max(self.out_of_bounds or 0, sum(row.wrong or 0 for row in self.rows.values()))

    @property
    def validated(self) -> bool:
        """Whether results were compared with the right ones."""
        return self.out_of_bounds is not None or any(row.wrong is not None for row in self.rows.values())

    @property
    def largest(self) -> Row | None:
        """The row of the largest size."""
        return self.rows[max(self.rows)] if self.rows else None


@functools.lru_cache(maxsize=8192)
def _device(line: bytes) -> tuple[tuple[str, int, int], Device] | None:
    """Host, pid and GPU of a line in a table's head, and what it says of them. Benchmarks in a row repeat it."""
    match = _DEVICE.match(line)
    if match is None:
        return None
    rank, pid, name, gpu, product = match.groups()
    host = name.decode("utf-8", "replace").partition(".")[0]
    return (host, int(pid), int(gpu)), Device(int(rank), int(pid), host, product.decode("utf-8", "replace").strip())


class TableReader:
    """Reads the tables of one source, line by line; ``lines`` are without decoration."""

    def __init__(self) -> None:
        self.tables: list[Table] = []
        self._pending: list[str] = []
        self._comment_before = ""

    @property
    def open(self) -> bool:
        """Whether rows may follow."""
        return bool(self.tables) and bool(self.tables[-1].columns) and not self.tables[-1].finished

    def feed(self, line: bytes) -> bool:
        """Read a line; False where it has nothing to do with a table."""
        if b"Rank" in line[:20] and (device := _device(line)):
            place, about = device
            self._table().devices[place] = about
            return True
        text = line.decode("utf-8", "replace").strip()
        if not text:
            return False
        if text[0].isdigit() or text[0] == "-":
            return self._numbers(_BLANK_HALF.sub(" N/A N/A N/A N/A ", text).split())
        # What log services show twice is said once.
        twice = text == self._comment_before
        self._comment_before = text
        return twice or self._comment(text)

    def end(self) -> None:
        """The source is over: what is left of a row is torn."""
        self._close_row()

    def _comment(self, text: str) -> bool:
        if starting := _STARTING.match(text):
            self._begin(used=True)
            self.tables[-1].collective = collective(starting[1])
        elif text.lstrip("# ").startswith("nThread "):
            self._begin(used=False)
        elif text.startswith("#") and text.lstrip("# ").startswith("size ") and " busbw" in text:
            self._begin(used=False)
            self.tables[-1].columns = text.lstrip("# ").split()
        elif match := _OUT_OF_BOUNDS.match(text):
            self._close_row()
            self._table().out_of_bounds = int(match[1])
        elif match := _AVERAGE.match(text):
            self._close_row()
            self._table().average = _number(match[1])
        else:
            return False
        return True

    def _begin(self, *, used: bool) -> None:
        """Start a table unless the last one is still at its head; ``used`` starts one in any case."""
        self._close_row()
        if not self.tables or used:
            self.tables.append(Table())
            return
        last = self.tables[-1]
        if last.columns or last.rows or last.average is not None or last.out_of_bounds is not None:
            self.tables.append(Table())

    def _table(self) -> Table:
        if not self.tables:
            self.tables.append(Table())
        return self.tables[-1]

    def _numbers(self, tokens: list[str]) -> bool:
        if _starts_row(tokens):
            self._close_row()
            self._pending = tokens
        elif self._pending and all(_is_value(token) for token in tokens):
            self._pending += tokens
        else:
            return False
        columns = self._columns()
        if len(self._pending) >= len(columns):
            self._store(columns)
        return True

    def _columns(self) -> Sequence[str]:
        if self.tables and self.tables[-1].columns:
            columns = self.tables[-1].columns
            # Before 2.13 collectives without a reduction left that column blank.
            old = "redop" in columns and "root" not in columns
            blank = old and len(self._pending) > 3 and _number(self._pending[3]) is not None
            return [name for name in columns if name != "redop"] if blank else columns
        has_root = len(self._pending) > 4 and _is_integer(self._pending[4])
        return _COLUMNS if has_root else _OLD_COLUMNS

    def _store(self, columns: Sequence[str]) -> None:
        table = self._table()
        if table.finished:
            table = Table(columns=columns)
            self.tables.append(table)
        cells = dict(_halves(columns, self._pending))
        row = _row(cells)
        if _number(cells.get("redop")) is not None or (row.wrong or 0) < 0:
            # Cells are missing, and the rest stands in their places.
            table.torn_rows += 1
        else:
            table.add(row)
        self._pending = []

    def _close_row(self) -> None:
        if self._pending:
            self._table().torn_rows += 1
            self._pending = []


def collective(program: str) -> str:
    """``all_reduce`` of ``all_reduce_perf`` and ``all_reduce_perf_mpi``."""
    return re.sub(r"_perf(?:_mpi)?$", "", program)


def _halves(columns: Sequence[str], tokens: Sequence[str]) -> list[tuple[str, str]]:
    """Pair names and values; names of the second half get a 2 before them."""
    seen: set[str] = set()
    pairs = []
    for name, token in zip(columns, tokens, strict=False):
        pairs.append((f"2{name}" if name in seen else name, token))
        seen.add(name)
    return pairs


def _row(cells: dict[str, str]) -> Row:
    half = "" if _number(cells.get("busbw")) is not None else "2"
    counts = [int(count) for name in ("#wrong", "2#wrong") if (count := _number(cells.get(name))) is not None]
    return Row(
        bytes=int(cells["size"]),
        time_us=_number(cells.get(f"{half}time", cells.get(f"{half}cputime"))),
        algbw=_number(cells.get(f"{half}algbw")),
        busbw=_number(cells.get(f"{half}busbw")),
        wrong=sum(counts) if counts else None,
    )


def _starts_row(tokens: Sequence[str]) -> bool:
    return len(tokens) >= 3 and tokens[0].isdigit() and tokens[1].isdigit() and _TYPE.fullmatch(tokens[2]) is not None


def _is_integer(token: str) -> bool:
    return _SIZE.fullmatch(token.removeprefix("-")) is not None


def _is_value(token: str) -> bool:
    return token == "N/A" or _number(token) is not None


def _number(token: str | None) -> float | None:
    try:
        value = float(token) if token else None
    except ValueError:
        return None
    return value if value is not None and math.isfinite(value) else None
