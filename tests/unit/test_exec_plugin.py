"""Exec plugins of kubeconfigs that hang: ended at the limit, told in one line, now and when a token is renewed."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from gpuready.charts_values import kubeconfig
from gpuready.charts_values.errors import DeadlineError, ToolError
from gpuready.charts_values.kube import Api

KIND = "client.authentication.k8s.io/v1"


def config(folder: Path, script: str) -> Path:
    user: dict[str, Any] = {"apiVersion": KIND, "interactiveMode": "Never", "command": "sh", "args": ["-c", script]}
    file = folder / "kubeconfig"
    file.write_text(
        json.dumps(
            {
                "current-context": "lab",
                "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "me"}}],
                "clusters": [{"name": "lab", "cluster": {"server": "https://127.0.0.1:1"}}],
                "users": [{"name": "me", "user": {"exec": user}}],
            }
        )
    )
    return file


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.parametrize("manner", ["", "trap '' TERM; "])
def test_a_plugin_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, manner: str) -> None:
    monkeypatch.setattr(kubeconfig, "PLUGIN_LIMIT_S", 0.5)
    monkeypatch.setattr(kubeconfig, "_GRACE_S", 0.2)
    file = config(tmp_path, f"{manner}echo $$ > {tmp_path}/pid; while :; do sleep 0.1; done")
    began = time.monotonic()
    with pytest.raises(ToolError) as failed:
        Api.connect(file)
    assert str(failed.value) == f"kubeconfig {file}: its exec plugin gave no credentials within 0.5 s"
    assert time.monotonic() - began < 10
    pid = int((tmp_path / "pid").read_text())
    end = time.monotonic() + 5
    while not gone(pid):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_plugin_that_answers_in_time_is_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its token is over at once, so that it is asked anew before each request; then it hangs."""
    monkeypatch.setattr(kubeconfig, "PLUGIN_LIMIT_S", 1.0)
    said = {"apiVersion": KIND, "kind": "ExecCredential"}
    said["status"] = {"token": "t", "expirationTimestamp": "2020-01-01T00:00:00Z"}  # type: ignore[assignment]
    script = f"if [ -e {tmp_path}/once ]; then exec sleep 100; fi; touch {tmp_path}/once; echo '{json.dumps(said)}'"
    api = Api.connect(config(tmp_path, script))
    api.deadline = time.monotonic() + 0.5
    began = time.monotonic()
    with pytest.raises(DeadlineError, match="the time was up before GET /version could be asked"):
        api.get("/version")
    assert 0.9 < time.monotonic() - began < 10
