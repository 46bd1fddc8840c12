"""Writes: a pool of threads, never two at once to the same thing, and a new look after each.

Callers compare with the cache and ask only for what differs. What fails is not repeated here: the object's
node is looked at again, which leads to the same wish or to a better one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from gpuready.charts_values.errors import ApiError, GpureadyError
from gpuready.charts_values.kube import Api, Object

from .cache import Cache

log = logging.getLogger(__name__)

THREADS = 16
# Seconds after a failed write before its node is looked at again.
_PAUSE = 1.0
# Distinct failures that are remembered, in order to say each once.
_MOST_SAID = 500


class Writer:
    """Writes objects.

    ``count`` is how many writes were begun, ``asked`` how many were asked for: one that is under way is not
    begun again. ``busy`` is how many are under way.
    """

    def __init__(self, api: Api, cache: Cache, threads: int = THREADS) -> None:
        self._api = api
        self._cache = cache
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="write")
        self._lock = threading.Lock()
        self._under_way: set[str] = set()
        self._said: set[str] = set()
        self.count = 0
        self.asked = 0

    @property
    def busy(self) -> int:
        """Writes under way."""
        with self._lock:
            return len(self._under_way)

    def patch(
        self, kind: str, path: str, body: Object, *, how: str = "strategic", node: str = "", **query: str
    ) -> None:
        """Patch an object of ``kind``; ``node`` is looked at again afterwards."""
        self._submit(kind, path, node, lambda: self._api.patch(path, body, kind=how, **query))

    def apply(self, kind: str, path: str, body: Object, manager: str) -> None:
        """Create an object, or change it, by server-side apply."""
        self.patch(kind, path, body, how="apply", fieldManager=manager, force="true")

    def create(self, kind: str, path: str, body: Object, *, node: str = "") -> None:
        """Create an object; one that exists is fine. Its event brings the next look, not its success."""

        def make() -> Object | None:
            try:
                return self._api.create(path, body)
            except ApiError as error:
                if error.conflict:
                    return None
                raise

        self._submit(kind, f"{path}/{body['metadata']['name']}", node, make, look=False)

    def delete(self, kind: str, path: str, *, node: str = "") -> None:
        """Delete an object; one that is gone is fine."""
        self._submit(kind, path, node, lambda: self._api.delete(path))

    def run(self, key: str, work: Callable[[], None], *, node: str = "") -> None:
        """Other work that must not be done twice at once, such as a log file and the object that names it."""
        self._submit("", key, node, work)

    def close(self) -> None:
        """Drop what has not begun and wait for the rest."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _submit(self, kind: str, key: str, node: str, work: Callable[[], Object | None], *, look: bool = True) -> None:
        with self._lock:
            self.asked += 1
            if key in self._under_way:
                return
            self._under_way.add(key)
            self.count += 1
        self._pool.submit(self._do, kind, key, node, work, look)

    def _do(self, kind: str, key: str, node: str, work: Callable[[], Object | None], look: bool) -> None:
        try:
            answer = work()
        except GpureadyError as error:
            self._failed(key, node, error)
            return
        except Exception:
            log.exception("a bug: writing %s", key)
            self._failed(key, node, None)
            return
        if answer is not None and kind:
            self._cache.answer(kind, answer)
        self._done(key)
        if look:
            self._cache.touch(node)

    def _done(self, key: str) -> None:
        with self._lock:
            self._under_way.discard(key)

    def _failed(self, key: str, node: str, error: GpureadyError | None) -> None:
        """After a pause there is a new look, which finds what has become of the object.

        Gone meanwhile, or changed by another, is how clusters work and not worth a line.
        """
        if error is not None and not (isinstance(error, ApiError) and (error.missing or error.conflict)):
            text = f"writing {key}: {error}"
            with self._lock:
                new = text not in self._said
                if len(self._said) < _MOST_SAID:
                    self._said.add(text)
            if new:
                log.warning("%s", text)

        def again() -> None:
            self._done(key)
            self._cache.touch(node)

        timer = threading.Timer(_PAUSE, again)
        timer.daemon = True
        timer.start()
