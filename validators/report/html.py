"""The text report as one HTML page without scripts, and as the picture that the README shows."""

from __future__ import annotations

import io
import re

from rich.console import Console

from ..model import Run
from .text import write

WIDTH = 150


def render(run: Run) -> str:
    """A page that needs nothing else."""
    console = _recording()
    write(run, console)
    return console.export_html(inline_styles=True)


def picture(run: Run, title: str) -> str:
    """An SVG of the report as a terminal shows it."""
    console = _recording()
    write(run, console)
    # rich names a font on the web; a picture must not fetch anything, and any monospaced font will do.
    return re.sub(r"@font-face\s*{.*?}\s*", "", console.export_svg(title=title), flags=re.DOTALL)


def _recording() -> Console:
    return Console(
        record=True,
        width=WIDTH,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
        highlight=False,
    )
