"""Calls side by side, and an end to waiting: a call that hangs must hold nobody back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from gpuready.charts_values.errors import DeadlineError, GpureadyError

T = TypeVar("T")
WORKERS = 16


def outcomes(
    calls: Mapping[str, Callable[[], T]], until: float, workers: int = WORKERS
) -> Iterator[tuple[str, T | GpureadyError]]:
    """Make the calls and yield what each returns, or which error of ours it raises, as they end.

    Those that have not ended ``until`` then (``time.monotonic``) are not yielded. The threads are daemons, so
    that a call that hangs does not keep the process either. An error that is not ours is raised here.
    """
    waiting: SimpleQueue[tuple[str, Callable[[], T]]] = SimpleQueue()
    done: SimpleQueue[tuple[str, Any, BaseException | None]] = SimpleQueue()
    over = threading.Event()
    for item in calls.items():
        waiting.put(item)

    def work() -> None:
        while not over.is_set():
            try:
                key, call = waiting.get_nowait()
            except Empty:
                return
            try:
                done.put((key, call(), None))
            except BaseException as error:
                done.put((key, None, error))

    for _ in range(min(workers, len(calls))):
        threading.Thread(target=work, name="fanout", daemon=True).start()
    try:
        for _ in calls:
            try:
                key, value, error = done.get(timeout=max(0.0, until - time.monotonic()))
            except Empty:
                return
            if error is not None and not isinstance(error, GpureadyError):
                raise error
            yield key, value if error is None else error
    finally:
        over.set()


def all_of(calls: Iterable[Callable[[], T]], until: float, late: str, workers: int = WORKERS) -> list[T]:
    """What the calls return, in their order; raises the first error of ours, and DeadlineError(late) past ``until``."""
    named = {str(place): call for place, call in enumerate(calls)}
    found: dict[str, T] = {}
    for key, outcome in outcomes(named, until, workers):
        if isinstance(outcome, GpureadyError):
            raise outcome
        found[key] = outcome
    if len(found) < len(named):
        raise DeadlineError(late)
    return [found[key] for key in named]
