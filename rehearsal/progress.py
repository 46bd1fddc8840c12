"""Progress of long work, on stderr: live on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

Say = Callable[[str], None]

# How often a log without a terminal gets a sign of life, in seconds.
_SIGN_OF_LIFE = 30.0


def quiet(_: str) -> None:
    """Say nothing."""


@contextlib.contextmanager
def long(text: str, say: Say, note: str = "") -> Iterator[Say]:
    """Announce long work, with a note, and say at its end how long it took.

    Yields a function that takes what is being done just now, as often as one likes.
    """
    began = time.monotonic()
    say(f"{text}{note and f' ({note})'}")
    live = say is not quiet and sys.stderr.isatty()
    with _on_terminal(text) if live else _in_log(text, say) as detail:
        yield detail
    say(f"{text}: done in {time.monotonic() - began:.0f} s")


@contextlib.contextmanager
def _on_terminal(text: str) -> Iterator[Say]:
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(text, total=None)
        yield lambda now: bar.update(task, description=f"{text}: {now}"[: max(20, bar.console.width - 14)])


@contextlib.contextmanager
def _in_log(text: str, say: Say) -> Iterator[Say]:
    latest = ["at work"]
    done = threading.Event()

    def signs() -> None:
        while not done.wait(_SIGN_OF_LIFE):
            say(f"{text}: {latest[0]}")

    thread = threading.Thread(target=signs, daemon=True)
    thread.start()
    try:
        yield lambda now: latest.__setitem__(0, now)
    finally:
        done.set()
        thread.join()
