"""Writes a run in the format that was asked for, to stdout or to a file."""

from __future__ import annotations

import json
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
    if file is None and format == "text":
        text.write(run, Console(highlight=False))
        return
    content = _plain(run) if format == "text" else _RENDERERS[format](run)
    if file is None:
        sys.stdout.write(content)
        sys.stdout.flush()
        return
    part = file.with_name(f".{file.name}.part")
    try:
        part.write_text(content, encoding="utf-8")
        part.replace(file)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise InputError(f"cannot write {file}: {error.strerror or error}") from error


def _plain(run: Run) -> str:
    return "".join(f"{line.plain}\n" for line in text.lines(run))
