"""Progress on stderr: a spinner in a terminal, nothing without one."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.status import Status


class Progress:
    """A context manager; ``say`` replaces the line that is shown."""

    def __init__(self) -> None:
        console = Console(stderr=True, highlight=False)
        self._status: Status | None = console.status("") if console.is_terminal else None

    def __enter__(self) -> Progress:
        if self._status:
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status:
            self._status.stop()

    def say(self, text: str) -> None:
        """Show what is going on."""
        if self._status:
            # Names from the cluster may hold square brackets, which rich would take for markup.
            self._status.update(text.replace("[", "\\["))
