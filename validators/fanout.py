"""Calls side by side, and an end to waiting: a call that hangs must hold nobody back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from gpuready.charts_values.errors import DeadlineError, GpureadyError

T = TypeVar("T")


def outcomes(calls: Mapping[str, Callable[[], T]], until: float) -> Iterator[tuple[str, T | GpureadyError]]:
    """Run all calls at once and yield what each returns, or which error of ours it raises, as they end.

    Those that have not ended ``until`` then (``time.monotonic``) are not yielded. Their threads are daemons,
    so that they do not keep the process either. An error that is not ours is raised here.
    """
    done: SimpleQueue[tuple[str, Any, BaseException | None]] = SimpleQueue()

    def work(key: str, call: Callable[[], T]) -> None:
        try:
            done.put((key, call(), None))
        except BaseException as error:
            done.put((key, None, error))

    for key, call in calls.items():
        threading.Thread(target=work, args=(key, call), name=f"fanout {key}", daemon=True).start()
    for _ in calls:
        try:
            key, value, error = done.get(timeout=max(0.0, until - time.monotonic()))
        except Empty:
            return
        if error is not None and not isinstance(error, GpureadyError):
            raise error
        yield key, value if error is None else error


def within(until: float, call: Callable[[], T], late: str) -> T:
    """What one call returns; raises DeadlineError with the text ``late`` where it takes too long."""
    for _, outcome in outcomes({"one": call}, until):
        if isinstance(outcome, GpureadyError):
            raise outcome
        return outcome
    raise DeadlineError(late)
