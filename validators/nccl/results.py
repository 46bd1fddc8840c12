"""What nccl-tests writes with ``-J FILE`` (2.17 to 2.20): its table as JSON, unrounded, with settings and devices.

The document is one line without a line end. Per-iteration times can make it very long: they are dropped unread, so
that memory stays bounded.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from .tables import Device, Row, Table, collective

_BEGINS = re.compile(rb'\s*\{\s*"version"\s*:\s*\d')
_KEY = b'"nccl_version"'
_LAID_OUT = re.compile(rb"\s*\{\s*\n")
_LINE_END = re.compile(rb"\n")
_LAST_BRACE = re.compile(rb"\n\}[ \t\r]*")
# All numbers of a list but its last, as far as they are there.
_NUMBERS = re.compile(rb"(?<=[\[,])(?:\s*-?\d[\d.]*,)+")
# C prints infinite rates so, which is no JSON.
_INFINITE = re.compile(rb":\s*-?inf\b")
_RESULTS = b'"results":['
_MOST_BYTES = 16 << 20


@dataclass(frozen=True)
class Results:
    """One document. ``version`` is the NCCL library's, ``settings`` are its NCCL_ variables, ``errors`` its last words.

    What is torn or missing shows in the table: it is not finished.
    """

    table: Table
    version: str | None = None
    settings: tuple[tuple[str, str], ...] = ()
    errors: tuple[str, ...] = ()


def begins(text: bytes) -> bool:
    """Whether a source that begins with ``text``, or a line, is such a document."""
    return _BEGINS.match(text) is not None or (text.lstrip().startswith(b"{") and _KEY in text)


def thinned(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The chunks of a source that begins with a document: without its long lists, and as one line, where it is laid
    out over many. What follows the document stays as it is."""
    parts: list[bytes] = []
    tail = b""
    left = iter(chunks)
    for chunk in left:
        text = tail + chunk
        end = (_LAST_BRACE if _LAID_OUT.match(parts[0] if parts else text) else _LINE_END).search(text)
        if end:
            parts.append(_NUMBERS.sub(b"", text[: end.end()]))
            tail = text[end.end() :]
            break
        text = _NUMBERS.sub(b"", text)
        # The last number may go on in the next chunk; the comma before it tells that it is one of a list.
        at = max(text.rfind(b","), 0)
        parts.append(text[:at])
        tail = text[at:]
        if sum(map(len, parts)) > _MOST_BYTES:
            break
    else:
        parts.append(tail)
        tail = b""
    document = b"".join(parts).replace(b"\r", b" ").replace(b"\n", b" ").rstrip()
    yield document + (b"\n" if document.endswith(b"}") else b"")
    yield tail
    yield from left


def read(line: bytes) -> Results:
    """Read a document. Where its end is missing, the results before count and the table stays unfinished."""
    document = _loads(_INFINITE.sub(b":null", line))
    if document is None:
        return Results(Table(torn_rows=1))
    config = _object(document.get("config"))
    args = _list(document.get("args"))
    table = Table(
        collective=collective(str(args[0]).rpartition("/")[2]) if args else None,
        devices=_devices(_list(config.get("devices"))),
        gpus_each=_whole(config.get("nthreads"), 1) * _whole(config.get("ngpus"), 1),
        average=_average(document),
        out_of_bounds=_count(_object(document.get("out_of_bounds")).get("count")),
    )
    for result in _list(document.get("results")):
        row = _row(_object(result))
        if row is None:
            table.torn_rows += 1
        else:
            table.add(row)
    settings = (str(one).partition("=") for one in _list(document.get("env")))
    return Results(
        table,
        _version(document.get("nccl_version")),
        # The rest of the environment may hold secrets.
        tuple((name, value) for name, _, value in settings if name.startswith("NCCL_")),
        tuple(str(one) for one in _list(document.get("errors")) if one),
    )


def _loads(text: bytes) -> dict[str, Any] | None:
    """The document; where it is cut, as much of it as has whole results."""
    brace = text.rfind(b"}") + 1
    result = text.rfind(b'},{"size"') + 1
    head = text.find(_RESULTS) + len(_RESULTS)
    ends = ((brace, b""), (brace, b"}"), (brace, b"]}"), (result, b"]}"), (head, b"]}"))
    for at, closing in ends:
        try:
            found = json.loads(text[:at] + closing)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            return found
    return None


def _row(result: dict[str, Any]) -> Row | None:
    size = result.get("size")
    halves = [_object(result.get(name)) for name in ("out_of_place", "in_place")]
    half = next((one for one in halves if _number(one.get("bus_bw")) is not None), {})
    if not isinstance(size, int) or size < 0 or not half:
        return None
    wrong = [count for one in halves if (count := _count(one.get("nwrong"))) is not None]
    return Row(
        bytes=size,
        time_us=_number(half.get("time", half.get("cpu_time"))),
        algbw=_number(half.get("alg_bw")),
        busbw=_number(half.get("bus_bw")),
        wrong=sum(wrong) if wrong else None,
    )


def _devices(listed: list[Any]) -> dict[tuple[str, int, int], Device]:
    """The first GPU of each process; nccl-tests leaves out a process's others."""
    found = {}
    for one in map(_object, listed):
        host = str(one.get("hostname", "")).partition(".")[0]
        rank, pid, gpu = (_whole(one.get(name), 0) for name in ("rank", "pid", "device"))
        if host:
            found[host, pid, gpu] = Device(rank, pid, host, str(one.get("device_info", "")))
    return found


def _version(code: Any) -> str | None:
    """``2.27.7`` of 22707, and ``2.8.4`` of 2804, as it was written before 2.9."""
    if not isinstance(code, int) or code < 1000:
        return None
    major, minor = (1000, 100) if code < 10_000 else (10_000, 100)
    return f"{code // major}.{code % major // minor}.{code % minor}"


def _average(document: dict[str, Any]) -> float | None:
    """The average bus bandwidth, whose key was misspelt before 2.17.9."""
    for name in ("width", "widith"):
        if f"average_bus_band{name}" in document:
            return _number(_object(document[f"average_bus_band{name}"]).get(f"band{name}"))
    return None


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _number(value: Any) -> float | None:
    """A finite number; nccl-tests writes ``"nan"`` where it has none."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _count(value: Any) -> int | None:
    number = _number(value)
    return None if number is None else int(number)


def _whole(value: Any, other: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else other
