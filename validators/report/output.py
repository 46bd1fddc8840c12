"""Writes a run in the format that was asked for, to stdout or to a file."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from gpuready.charts_values.errors import InputError
from rich.console import Console

from ..model import Run
from . import html, junit, markdown, prometheus, text

_RENDERERS: dict[str, Callable[[Run], str]] = {
    "json": lambda run: json.dumps(run.to_json(), indent=2) + "\n",
    "junit": junit.render,
    "markdown": markdown.render,
    "html": html.render,
    "prometheus": prometheus.render,
}
FORMATS = ("text", *_RENDERERS)


def write(run: Run, format: str, file: Path | None) -> None:
    """Print or save the report. A file appears whole or not at all; raises InputError where it cannot."""
    if file is not None:
        _save(_plain(run) if format == "text" else _RENDERERS[format](run), file)
    elif format == "text":
        # rich has its own way with a stdout that fails, and would end the process with exit code 1.
        buffer = io.StringIO()
        console = Console(file=buffer, force_terminal=sys.stdout.isatty(), highlight=False)
        text.write(run, console)
        show(buffer.getvalue())
    else:
        show(_RENDERERS[format](run))


def require_folder(file: Path | None) -> None:
    """Raises InputError where a report could not be saved as ``file``: best known before a long run."""
    if file is not None and not file.parent.is_dir():
        raise InputError(f"cannot write {file}: there is no folder {file.parent}")


def show(content: str) -> None:
    """Write to stdout; a reader that left is no error. Raises InputError where stdout takes nothing."""
    try:
        sys.stdout.write(content)
        sys.stdout.flush()
    except OSError as error:
        abandon_stdout(error)


def abandon_stdout(error: OSError) -> None:
    """After an error of stdout: raises InputError, or nothing where merely the reader left."""
    # What is still buffered would make a second error when Python ends.
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
    if not isinstance(error, BrokenPipeError):
        raise InputError(f"cannot write to stdout: {error.strerror or error}") from error


def _save(content: str, file: Path) -> None:
    try:
        if file.exists() and not file.is_file():
            # A device or a pipe must be written to; to put a file in its place would destroy it.
            file.write_text(content, encoding="utf-8")
            return
        file = file.resolve()
        part = file.with_name(f".{file.name}.part")
        try:
            part.write_text(content, encoding="utf-8")
            part.replace(file)
        except OSError:
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise InputError(f"cannot write {file}: {error.strerror or error}") from error


def _plain(run: Run) -> str:
    return "".join(f"{line.plain}\n" for line in text.lines(run))
