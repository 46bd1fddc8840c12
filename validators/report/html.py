"""The text report as one HTML page without scripts, and as the picture that the README shows."""

from __future__ import annotations

import io

from rich.console import Console

from ..model import Run
from .text import write

WIDTH = 120


def render(run: Run) -> str:
    """A page that needs nothing else."""
    console = _recording()
    write(run, console)
    return console.export_html(inline_styles=True)


def picture(run: Run, title: str) -> str:
    """An SVG of the report as a terminal shows it."""
    console = _recording()
    write(run, console)
    return console.export_svg(title=title)


def _recording() -> Console:
    return Console(
        record=True,
        width=WIDTH,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
        highlight=False,
    )
