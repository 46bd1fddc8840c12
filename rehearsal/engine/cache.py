"""The cache of engine programs: one folder per part and version, complete or absent.

A folder is filled under another name and renamed when it is whole. Its manifest holds size and SHA-256 of
every program, so that an entry that broke later is noticed and made again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gpuready.charts_values.errors import DeadlineError, ToolError

from ..progress import Say

_MANIFEST = "manifest.json"
_UNFINISHED = ".unfinished-"
# Longer than two builds on a slow machine.
_LOCK_SECONDS = 7200.0


def folder() -> Path:
    """Where the cache is: $XDG_CACHE_HOME/gpuready, else ~/.cache/gpuready."""
    base = os.environ.get("XDG_CACHE_HOME")
    # The specification says to ignore a relative path.
    root = Path(base) if base and Path(base).is_absolute() else Path.home() / ".cache"
    return root / "gpuready"


def find(root: Path, key: str, names: tuple[str, ...], say: Say) -> Path | None:
    """The entry ``key`` where it is whole and holds all ``names``, else None; says what is wrong with it."""
    entry = root / key
    if not entry.is_dir():
        return None
    fault = _fault(entry, names)
    if fault:
        say(f"the cache entry {entry} is broken ({fault}); it is made again")
        return None
    return entry


def store(root: Path, key: str, names: tuple[str, ...], fill: Callable[[Path], None]) -> Path:
    """Let ``fill`` put the programs into a new folder, and make that the entry. The lock must be held.

    Raises ToolError where the folder cannot be written; what ``fill`` raises goes through.
    """
    entry = root / key
    try:
        new = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=root))
    except OSError as error:
        raise ToolError(f"cannot write to the cache {root}: {error.strerror}; set $XDG_CACHE_HOME") from error
    try:
        fill(new)
        _write_manifest(new, names)
        new.chmod(0o755)
        if entry.exists():
            shutil.rmtree(entry)
        new.rename(entry)
    except OSError as error:
        raise ToolError(f"cannot write to the cache {root}: {error.strerror}; set $XDG_CACHE_HOME") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return entry


@contextlib.contextmanager
def locked(root: Path, say: Say) -> Iterator[None]:
    """Hold the cache, so that two processes do not make the same entry; removes what a killed one left.

    Raises DeadlineError, and ToolError where the cache cannot be written.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        handle = os.open(root / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ToolError(f"cannot write to the cache {root}: {error.strerror}; set $XDG_CACHE_HOME") from error
    try:
        deadline = time.monotonic() + _LOCK_SECONDS
        waiting = False
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise DeadlineError(f"another process has held {root} for {_LOCK_SECONDS:.0f} s") from None
                if not waiting:
                    say("another process is making the engine; waiting for it")
                    waiting = True
                time.sleep(0.2)
        for unfinished in root.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(unfinished, ignore_errors=True)
        yield
    finally:
        os.close(handle)


def _fault(entry: Path, names: tuple[str, ...]) -> str | None:
    """What is wrong with an entry. A checksum is computed only where the file was touched since."""
    try:
        programs: dict[str, Any] = json.loads((entry / _MANIFEST).read_text())["programs"]
        for name in names:
            said, path = programs[name], entry / name
            now = path.stat()
            if now.st_size != said["size"]:
                return f"{name} has {now.st_size} of {said['size']} bytes"
            if now.st_mtime_ns != said["mtime_ns"] and _sha256(path) != said["sha256"]:
                return f"{name} has changed"
            if not os.access(path, os.X_OK):
                return f"{name} is not executable"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{_MANIFEST} is damaged"
    return None


def _write_manifest(entry: Path, names: tuple[str, ...]) -> None:
    sums: dict[Path, str] = {}
    programs = {}
    for name in names:
        path = (entry / name).resolve()
        if path not in sums:
            sums[path] = _sha256(path)
        info = path.stat()
        programs[name] = {"size": info.st_size, "sha256": sums[path], "mtime_ns": info.st_mtime_ns}
    (entry / _MANIFEST).write_text(json.dumps({"programs": programs}, indent=1) + "\n")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
