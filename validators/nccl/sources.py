"""Where log lines come from: files, plain or compressed, streams, and lines already in memory.

Everything downstream works on bytes, many lines at a time. Terminal escapes are gone and a carriage return ends a
line, so that progress bars do not hide records. Memory is bounded by the block size, whatever the file's size.
"""

from __future__ import annotations

import gzip
import importlib
import re
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, TextIO, cast

from . import results

Line = str | bytes
Source = Path | TextIO | IO[bytes] | Iterable[Line]

_BLOCK = 1 << 18
_LONGEST_LINE = 1 << 20
_ANSI = re.compile(rb"\x1b\[[0-9;?]*[ -/]*[@-~]")
_TIME = rb"\d{4}-\d\d-\d\dT[0-9:.]+(?:Z|[+-]\d\d:\d\d) "
_CRI = re.compile(rb"%b(?:(stdout|stderr) ([FP]) )?" % _TIME)
_CRI_PART = re.compile(rb"\n%b(?:stdout|stderr) P " % _TIME)
# The stamps of kubectl and the container runtime, of NCCL from 2.26 on, and of mpirun.
_STAMP = re.compile(
    rb"\n(?:(?:\[pod/[^\]\n]*\] )?%b(?:(?:stdout|stderr) F )?|\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\] "
    rb"|[A-Z][a-z]{2} [A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \d{4}(?=\[))" % _TIME
)
# A line as log services show it in a table: | time | line |
_CELL = re.compile(rb"\n\| [^|\n]{8,40} \| ([^\n]*?) ?\|(?=\n|\Z)")
_STAMPED = re.compile(rb"\n(?:\[pod/[^\]\n]*\] )?(?:\[?\d{4}-\d\d-\d\d[T ]|\| |[A-Z][a-z]{2} [A-Z][a-z]{2} [ \d]\d )")
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
# A zstd stream says how much memory its reader needs: 2 to the power of this, in bytes, is what it gets. That is
# what zstd -20 asks for; --long and --ultra can ask for more.
_ZSTD_WINDOW = 25


class LogError(Exception):
    """A log that cannot be read: one line that says which, why, and what to do."""


class Block(NamedTuple):
    """Lines of a source in order, joined by line ends. ``cut`` says that the last one lacks its own."""

    text: bytes
    cut: bool = False


def blocks(source: Source) -> Iterator[Block]:
    """The lines of a source. Raises LogError where it is missing, unreadable, or no text."""
    if isinstance(source, Path):
        try:
            with source.open("rb") as file:
                yield from _lines(_stream(file, str(source)))
        except OSError as error:
            raise LogError(f"cannot read {source}: {error.strerror or error}") from error
    elif isinstance(source, str | bytes):
        raise TypeError("a source is a Path, a stream or lines, not one text")
    elif hasattr(source, "read"):
        stream = cast("IO[Any]", source)
        yield from _lines(_stream(getattr(stream, "buffer", stream), str(getattr(stream, "name", "the input"))))
    else:
        yield from _lines(_given(source))


def _given(lines: Iterable[Line]) -> Iterator[bytes]:
    """Lines in memory as text. Only where some have line ends does a last one without count as cut."""
    ends = False
    batch: list[bytes] = []
    for line in lines:
        data = line.encode("utf-8", "surrogateescape") if isinstance(line, str) else line
        if len(batch) > 2000:
            yield b"\n".join(batch) + b"\n"
            batch = []
        ends = ends or data.endswith(b"\n")
        batch.append(data)
    if batch:
        cut = ends and not batch[-1].endswith(b"\n")
        yield b"\n".join(part.removesuffix(b"\n") for part in batch) + (b"" if cut else b"\n")


def _stream(stream: IO[Any], name: str) -> Iterator[bytes]:
    data = _read(stream, name)
    if data.startswith((_GZIP, _ZSTD)):
        rest = cast("IO[bytes]", _Rest(data, stream))
        stream = cast("IO[bytes]", gzip.GzipFile(fileobj=rest, mode="rb")) if data.startswith(_GZIP) else _zstd(rest)
        data = _read(stream, name)
    if b"\0" in data and b"NCCL" not in data:
        raise LogError(f"{name} is no text; a log of NCCL or nccl-tests is expected")
    chunks = _chunks(data, stream, name)
    yield from results.thinned(chunks) if results.begins(data) else chunks


def _chunks(data: bytes, stream: IO[Any], name: str) -> Iterator[bytes]:
    while data:
        yield data
        data = _read(stream, name)


def _lines(chunks: Iterable[bytes]) -> Iterator[Block]:
    """Cut text where lines end; only the unfinished last line is carried from chunk to chunk."""
    tail = b""
    for chunk in chunks:
        text = tail + chunk
        # Half of a CR LF may end a chunk.
        held = text.endswith(b"\r")
        lines, end, tail = _clean(text[:-1] if held else text).rpartition(b"\n")
        if len(tail) > _LONGEST_LINE:
            lines, end, tail = lines + end + tail, b"\n", b""
        if held:
            tail += b"\r"
        if end:
            yield Block(lines)
    tail = tail.rstrip(b"\r")
    if tail:
        yield Block(tail, cut=True)


def _clean(text: bytes) -> bytes:
    if b"\x1b" in text:
        text = _ANSI.sub(b"", text)
    if b"\r" in text:
        text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if b"\0" in text:
        # Holes that parallel writers leave in a file on a network share.
        text = text.replace(b"\0", b"")
    return text


class Stamps:
    """Takes off what stands before each line and changes all the time, and joins lines that the container runtime
    split. One for each source: it holds the beginnings of split lines, by stream."""

    def __init__(self) -> None:
        self._partial: dict[bytes, bytes] = {}

    def on(self, lines: list[bytes]) -> bool:
        """Whether lines have stamps, or belong to split ones."""
        return bool(self._partial) or _STAMPED.search(b"\n" + b"\n".join(lines)) is not None

    def off(self, lines: bytes) -> bytes:
        """The lines without stamps; a line whose end is still to come is kept for the next call."""
        text = b"\n" + lines
        if b"\n| " in text:
            text = _CELL.sub(rb"\n\1", text)
        if self._partial or _CRI_PART.search(text):
            text = b"\n" + b"\n".join(self._joined(text[1:].split(b"\n")))
        return _STAMP.sub(b"\n", text)[1:]

    def rest(self) -> list[bytes]:
        """Lines whose end never came."""
        return list(self._partial.values())

    def _joined(self, lines: list[bytes]) -> Iterator[bytes]:
        for line in lines:
            match = _CRI.match(line)
            if match is None:
                yield line
                continue
            stream, flag = match.groups()
            text = line[match.end() :]
            if stream:
                text = self._partial.pop(stream, b"") + text
            if flag == b"P":
                self._partial[stream] = text
            else:
                yield text


def _read(stream: Any, name: str) -> bytes:
    try:
        data = stream.read(_BLOCK)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise LogError(f"{name} is damaged: {error}") from error
    except OSError as error:
        raise LogError(f"cannot read {name}: {error.strerror or error}") from error
    except Exception as error:
        # The class is that of a package which is loaded only where a log needs it.
        if type(error).__name__ != "ZstdError":
            raise
        if "too much memory" in str(error):
            raise LogError(
                f"{name} takes much memory to unpack; unpack it first: zstd -dc --long=31 FILE | gpuready nccl -"
            ) from error
        raise LogError(f"{name} is damaged: {error}") from error
    return data.encode("utf-8", "surrogateescape") if isinstance(data, str) else bytes(data)


def _zstd(stream: IO[bytes]) -> IO[bytes]:
    """Open a zstd stream: with the standard library from Python 3.14 on, before with its backport."""
    zstd = importlib.import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
    options = {zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW}
    return cast("IO[bytes]", zstd.ZstdFile(stream, "rb", options=options))


class _Rest:
    """A stream whose first bytes were read already."""

    def __init__(self, first: bytes, stream: Any) -> None:
        self._first = first
        self._stream = stream

    def read(self, size: int = -1) -> bytes:
        """At most ``size`` bytes, the ones read already first."""
        if self._first:
            data = self._first if size < 0 else self._first[:size]
            self._first = self._first[len(data) :]
            return data if size >= 0 else data + bytes(self._stream.read())
        return bytes(self._stream.read(size))
