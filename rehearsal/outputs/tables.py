"""What nccl-tests prints beside NCCL's records: head, table and foot, and the same as JSON, in each of its forms."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# The JSON of the released tests has this version.
_JSON_VERSION = 1
_STATISTICS = "i_min", "i_max", "i_p99", "i_cv%"
_WIDTHS = {"size": 12, "count": 12, "type": 8, "redop": 6, "root": 6, "time": 7, "cputime": 7, "timestamp": 19}


@dataclass(frozen=True)
class Place:
    """A rank's line in the head: where it runs and its GPU, with the domain only from 2.17 on."""

    rank: int
    pid: int
    host: str
    device: int
    bus: str
    product: str


@dataclass(frozen=True)
class Row:
    """One size in bytes, and the time in microseconds and rates in GB/s of both halves: out of place and in place."""

    size: int
    halves: tuple[tuple[float, float, float], tuple[float, float, float]]


@dataclass(frozen=True)
class Form:
    """How a release of nccl-tests, called with some options, lays its output out.

    ``statistics`` is -I 1, ``checked`` False is -c 0, ``stamped`` is -S, ``cpu_time`` is -C. ``in_place`` leaves the
    first half of every row blank, as a replay does. ``extra`` stands behind the version.
    """

    release: tuple[int, ...] = (2, 17, 6)
    collective: str = "all_reduce"
    statistics: bool = False
    checked: bool = True
    stamped: bool = False
    cpu_time: bool = False
    in_place: bool = False
    extra: str = ""
    redop: str = "sum"
    wrong: int = 0

    @property
    def columns(self) -> list[str]:
        """The names of the columns; before 2.13 there was no root, and errors were a difference."""
        modern = self.release >= (2, 13)
        half = ["cputime" if self.cpu_time else "time", "algbw", "busbw", "#wrong" if modern else "error"]
        if self.statistics:
            half += _STATISTICS
        stamp = ["timestamp"] if self.stamped else []
        return ["size", "count", "type", "redop", *(["root"] if modern else []), *half, *half, *stamp]

    def head(self, places: Sequence[Place], smallest: int, largest: int) -> list[str]:
        """What stands above the table."""
        lines = []
        if self.release >= (2, 17, 4):
            lines.append(f"# nccl-tests version {self.name}{self.extra} nccl-headers=22707 nccl-library=22707")
        if self.release >= (2, 16, 7):
            lines.append(f"# Collective test starting: {self.collective}_perf")
        agg = "agg iters: 1 " if self.release >= (2, 10) else ""
        graph = " graph: 0" if self.release >= (2, 10) else ""
        unalign = " unalign: 0" if self.release >= (2, 18, 2) else ""
        lines += [
            f"# nThread 1 nGpus 1 minBytes {smallest} maxBytes {largest} step: 2(factor) warmup iters: 5 "
            f"iters: 20 {agg}validation: {int(self.checked)}{graph}{unalign}",
            "#",
            "# Using devices",
        ]
        for one in places:
            group = " Group  0" if self.release >= (2, 13, 4) else ""
            bus = f"[0000:{one.bus}:00]" if self.release >= (2, 17) else f"[0x{one.bus}]"
            lines.append(
                f"#  Rank {one.rank:>2}{group} Pid {one.pid:>6} on {one.host:>10} device {one.device:>2} {bus} "
                f"{one.product}"
            )
        return lines

    @property
    def name(self) -> str:
        """The release as text."""
        return ".".join(map(str, self.release))

    def heading(self) -> list[str]:
        """The names of the columns with their units."""
        units = {"size": "(B)", "count": "(elements)", "algbw": "(GB/s)", "busbw": "(GB/s)", "time": "(us)"}
        names = self.columns
        return [
            "#",
            f"#{'out-of-place':>74}{'in-place':>31}          ",
            f"#{self._cells(names)[1:]} ",
            f"#{self._cells([units.get(name, '') for name in names])[1:]} ",
        ]

    def _cells(self, texts: Sequence[str]) -> str:
        return "  ".join(f"{text:>{_WIDTHS.get(name, 6)}}" for name, text in zip(self.columns, texts, strict=True))

    def row(self, row: Row) -> str:
        """A line of the table."""
        texts = [str(row.size), str(row.size // 4), "float", self.redop]
        if "root" in self.columns:
            texts.append("-1")
        for place, half in enumerate(row.halves):
            texts += self._half(half, blank=self.in_place and place == 0)
        if self.stamped:
            texts.append("2026-01-02 03:04:05")
        return self._cells(texts)

    def _half(self, half: tuple[float, float, float], *, blank: bool) -> list[str]:
        time, algbw, busbw = half
        error = str(self.wrong) if "#wrong" in self.columns else "5e-07"
        texts = [fitted(time, 7), fitted(algbw, 6), fitted(busbw, 6), error if self.checked else "N/A"]
        if self.statistics:
            texts += [fitted(time * share, 6) for share in (0.98, 1.04, 1.03)] + ["0.91"]
        return [""] * len(texts) if blank else texts

    def foot(self, rows: Sequence[Row]) -> list[str]:
        """What stands below the table."""
        lines = [f"# {'Out of bounds values':<20} : {self.wrong} {'FAILED' if self.wrong else 'OK'}"]
        lines += [f"# {'Avg bus bandwidth':<20} : {self._average(rows):.6g} ", "#"]
        return lines + ([f"# Collective test concluded: {self.collective}_perf"] if self.release >= (2, 16, 7) else [])

    def _average(self, rows: Sequence[Row]) -> float:
        figures = [round(half[2], 2) for row in rows for half in row.halves[self.in_place :]]
        return math.fsum(figures) / len(figures)

    def document(self, places: Sequence[Place], rows: Sequence[Row], env: Sequence[str] = ()) -> str:
        """The file of ``-J``: booleans are text, and ``env`` holds everything that the process had."""
        names = ("out_of_place", "in_place")
        time = "cpu_time" if self.cpu_time else "time"
        results = [
            {
                "size": row.size,
                "count": row.size // 4,
                "type": "float",
                "redop": self.redop,
                "root": "-1",
                **{
                    name: {
                        time: round(half[0], 6),
                        "alg_bw": round(half[1], 6),
                        "bus_bw": round(half[2], 6),
                        "nwrong": float(self.wrong),
                    }
                    for name, half in zip(names, row.halves, strict=True)
                },
                "actual_iterations": 20,
                "experiment_name": f"{self.collective}_perf",
            }
            for row in rows
        ]
        devices = [
            {
                "rank": one.rank,
                "group": 0,
                "pid": one.pid,
                "hostname": one.host,
                "device": one.device,
                "device_hex": f"0000:{one.bus}:00",
                "device_info": one.product,
            }
            for one in places
        ]
        return json.dumps(
            {
                "version": _JSON_VERSION,
                "start_time": "2026-01-02 03:04:05",
                "args": [f"{self.collective}_perf", "-J", "run.json"],
                "env": list(env),
                "nccl_version": 22707,
                "config": {"nthreads": 1, "ngpus": 1, "validation": int(self.checked), "devices": devices},
                "results": results,
                "out_of_bounds": {"count": self.wrong, "okay": "false" if self.wrong else "true"},
                "average_bus_bandwidth": {"bandwidth": self._average(rows), "okay": "unchecked"},
                "errors": [],
                "end_time": "2026-01-02 03:05:06",
            },
            separators=(",", ":"),
        )


def sizes(smallest: int, largest: int, repeats: int) -> Iterator[int]:
    """Doubling from one to the other, each ``repeats`` times."""
    size = smallest
    while size <= largest:
        yield from [size] * repeats
        size *= 2


def fitted(value: float, width: int) -> str:
    """A number in as many columns, with as many decimals as there is room for."""
    decimals = next((n for n in (2, 1, 0) if len(f"{value:.{n}f}") <= width), None)
    return f"{value:.{decimals}f}" if decimals is not None else f"{value:.1e}"
