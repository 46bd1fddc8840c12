"""Calls side by side: what ends in time is kept, what hangs is left."""

from __future__ import annotations

import threading
import time

import pytest
from gpuready.charts_values.errors import DeadlineError, InputError
from gpuready.validators import fanout

FAR = 1000.0


def raising(error: Exception) -> str:
    """A call that fails."""
    raise error


def test_every_call_is_made_and_errors_of_ours_are_outcomes() -> None:
    wrong = InputError("no")
    calls = {"good": lambda: "yes", "bad": lambda: raising(wrong)}
    assert dict(fanout.outcomes(calls, time.monotonic() + FAR, workers=1)) == {"good": "yes", "bad": wrong}


def test_an_error_that_is_not_ours_is_raised() -> None:
    with pytest.raises(KeyError):
        list(fanout.outcomes({"bug": lambda: raising(KeyError("x"))}, time.monotonic() + FAR))


def test_what_hangs_is_left_and_the_rest_kept() -> None:
    forever = threading.Event()
    answered = threading.Event()

    def answer() -> bool:
        answered.set()
        return True

    calls = {"hangs": forever.wait, "answers": answer}
    try:
        outcomes = fanout.outcomes(calls, time.monotonic() + 0.5)
        assert next(outcomes) == ("answers", True)
        assert list(outcomes) == []
        with pytest.raises(DeadlineError, match="too late"):
            fanout.all_of([forever.wait], time.monotonic(), "too late")
    finally:
        forever.set()


def test_calls_that_nobody_waits_for_are_not_begun() -> None:
    begun, gate = threading.Event(), threading.Event()
    calls = {"ends": lambda: True, "waits": lambda: gate.wait(10), "late": lambda: not begun.set()}
    outcomes = fanout.outcomes(calls, time.monotonic() + FAR, workers=1)
    next(outcomes)
    outcomes.close()
    gate.set()
    for worker in [one for one in threading.enumerate() if one.name == "fanout"]:
        worker.join(timeout=10)
    assert not begun.is_set()


def test_results_come_in_the_order_of_their_calls() -> None:
    first = threading.Event()

    def slow() -> str:
        assert first.wait(10)
        return "slow"

    def quick() -> str:
        first.set()
        return "quick"

    assert fanout.all_of([slow, quick], time.monotonic() + FAR, "late") == ["slow", "quick"]
