"""Where log lines come from: files, plain or compressed, streams, and lines already in memory.

Everything downstream works on bytes without line ends. Terminal escapes are gone and a carriage return ends a
line, so that progress bars do not hide records. Memory is bounded by the block size, whatever the file's size.
"""

from __future__ import annotations

import gzip
import importlib
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, TextIO, cast

Line = str | bytes
Source = Path | TextIO | IO[bytes] | Iterable[Line]

_BLOCK = 1 << 18
_LONGEST_LINE = 1 << 20
_ANSI = re.compile(rb"\x1b\[[0-9;?]*[ -/]*[@-~]")
_CRI = re.compile(rb"\d{4}-\d\d-\d\dT[0-9:.]+(?:Z|[+-]\d\d:\d\d) (?:(stdout|stderr) ([FP]) )?")
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"


class LogError(Exception):
    """A log that cannot be read: one line that says which, why, and what to do."""


class Block(list[bytes]):
    """Some lines of a source in order. ``cut`` says that the last one lacks its line end."""

    cut = False


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
        stream = (
            cast("IO[bytes]", gzip.GzipFile(fileobj=rest, mode="rb")) if data.startswith(_GZIP) else _zstd(name)(rest)
        )
        data = _read(stream, name)
    if b"\0" in data and b"NCCL" not in data:
        raise LogError(f"{name} is no text; a log of NCCL or nccl-tests is expected")
    while data:
        yield data
        data = _read(stream, name)


def _lines(chunks: Iterable[bytes]) -> Iterator[Block]:
    """Cut text into lines; only the unfinished last line is carried from chunk to chunk."""
    tail = b""
    partial: dict[bytes, bytes] = {}
    for chunk in chunks:
        text = tail + chunk
        # Half of a CR LF may end a chunk.
        held = text.endswith(b"\r")
        lines = _clean(text[:-1] if held else text).split(b"\n")
        tail = lines.pop() + (b"\r" if held else b"")
        if len(tail) > _LONGEST_LINE:
            lines.append(tail)
            tail = b""
        if lines:
            yield _without_stamps(lines, partial)
    rest = _without_stamps([tail.rstrip(b"\r")], partial) if tail else Block()
    rest.extend(partial.values())
    if rest:
        rest.cut = True
        yield rest


def _clean(text: bytes) -> bytes:
    if b"\x1b" in text:
        text = _ANSI.sub(b"", text)
    if b"\r" in text:
        text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if b"\0" in text:
        # Holes that parallel writers leave in a file on a network share.
        text = text.replace(b"\0", b"")
    return text


def _without_stamps(lines: list[bytes], partial: dict[bytes, bytes]) -> Block:
    """Take off the time stamps of kubectl and of the container runtime, and join what the runtime split.

    ``partial`` holds the beginning of a split line by stream, from call to call.
    """
    block = Block()
    for line in lines:
        match = _CRI.match(line) if line[10:11] == b"T" else None
        if match is None:
            block.append(line)
            continue
        stream, flag = match.groups()
        text = line[match.end() :]
        if stream:
            text = partial.pop(stream, b"") + text
        if flag == b"P":
            partial[stream] = text
        else:
            block.append(text)
    return block


def _read(stream: Any, name: str) -> bytes:
    try:
        data = stream.read(_BLOCK)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise LogError(f"{name} is damaged: {error}") from error
    except OSError as error:
        raise LogError(f"cannot read {name}: {error.strerror or error}") from error
    except Exception as error:
        # The zstd readers have error classes of their own, and may not be importable here.
        if type(error).__name__ in ("ZstdError", "ZstandardError"):
            raise LogError(f"{name} is damaged: {error}") from error
        raise
    return data.encode("utf-8", "surrogateescape") if isinstance(data, str) else bytes(data)


def _zstd(name: str) -> Callable[[Any], Any]:
    """What opens a zstd stream: the standard library from Python 3.14 on, else the zstandard package."""
    try:
        return cast("Callable[[Any], Any]", importlib.import_module("compression.zstd").ZstdFile)
    except ImportError:
        pass
    try:
        package = importlib.import_module("zstandard")
    except ImportError:
        raise LogError(
            f"{name} is zstd, which this Python cannot read; run: zstd -dc {name} | gpuready nccl -"
        ) from None
    return lambda stream: package.ZstdDecompressor().stream_reader(stream, read_across_frames=True)


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
