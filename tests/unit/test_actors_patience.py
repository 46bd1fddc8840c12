"""The actors wait for the API server, and not for ever."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
from gpuready.charts_values.errors import DeadlineError
from gpuready.charts_values.inventory import STATE_FILE
from gpuready.rehearsal.actors.__main__ import play


def test_an_api_server_that_is_never_there(tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        json.dumps(
            {
                "current-context": "c",
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
                "users": [{"name": "u", "user": {"token": "t"}}],
            }
        )
    )
    (tmp_path / STATE_FILE).write_text(json.dumps({"profile": "h100-ib", "kubeconfig": str(kubeconfig)}))
    began = time.monotonic()
    with pytest.raises(
        DeadlineError, match=r"https://127\.0\.0\.1:1 did not list every kind within 0\.5 s; is it up\?"
    ):
        play(tmp_path, threading.Event(), patience=0.5)
    assert time.monotonic() - began < 10
    stopped = threading.Event()
    stopped.set()
    play(tmp_path, stopped, patience=0.5)
