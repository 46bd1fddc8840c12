"""Ctrl-C at any time, and acceptance in trouble: what was seen is reported, and nothing of a run is left."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from gpuready.charts_values.kube import Api
from gpuready.rehearsal.state import State

from .commands import BIN, ROOT, environment, until
from .spoilt import Done, alive, command, document, hanging_plugin
from .test_accept import traces
from .trouble import Proxy, Trouble


def interrupted(
    network: Proxy,
    ready: Callable[[], bool],
    name: str,
    *args: str,
    kubeconfig: Path | None = None,
    signals: Sequence[int] = (signal.SIGINT,),
    again: Callable[[], bool] = lambda: True,
) -> Done:
    """`gpuready NAME`, which gets Ctrl-C as soon as it is ``ready``; a second signal follows ``again``."""
    where = ("--cluster", "rehearsal", "--kubeconfig", str(kubeconfig or network.kubeconfig()))
    process = subprocess.Popen(
        [str(BIN / "gpuready"), name, *where, *args],
        cwd=ROOT,
        env=environment(network.now.folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until(ready, bool)
        for number in signals:
            process.send_signal(number)
            until(again, bool)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait(timeout=10)
    assert "Traceback" not in err, err
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def asked(network: Proxy, *parts: str) -> bool:
    """Whether the proxy has seen a request with all these parts."""
    return any(all(part in one for part in parts) for one in list(network.seen))


def test_ctrl_c_before_anything_is_known(network: Proxy) -> None:
    network.inflict(Trouble("hang"))
    done = interrupted(network, lambda: asked(network, "/version"), "check")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "gpuready: interrupted\n")


def test_ctrl_c_while_an_exec_plugin_hangs(network: Proxy, tmp_path: Path) -> None:
    file, pid = hanging_plugin(network, tmp_path)
    done = interrupted(network, pid.exists, "check", kubeconfig=file)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "gpuready: interrupted\n")
    until(lambda: alive(int(pid.read_text())), lambda lives: not lives)


def test_ctrl_c_in_check_reports_what_was_seen(network: Proxy) -> None:
    network.inflict(Trouble("hang", where="deviceclasses"))
    done = interrupted(
        network,
        lambda: asked(network, "deviceclasses") and len(network.answered) == len(network.seen) - 1,
        "check",
        *("-o", "json"),
    )
    data = document(done)
    assert (done.returncode, data["interrupted"], data["verdict"]) == (130, True, "incomplete")
    assert any(one["reason"] == "Interrupted" for one in data["results"])
    assert done.stderr == "gpuready: interrupted; the report is of what was seen until then\n"


def test_ctrl_c_in_accept_reports_what_was_seen_and_cleans_up(network: Proxy) -> None:
    network.inflict(Trouble("hang", where="POST .*/services"))
    done = interrupted(network, lambda: asked(network, "POST", "/services"), "accept", "-o", "json")
    data = document(done)
    assert (done.returncode, data["interrupted"], data["results"][0]["check"]) == (130, True, "probes.run")
    by_check: dict[str, set[str]] = {}
    for one in data["results"]:
        by_check.setdefault(one["check"], set()).add(one["status"])
    assert by_check["smi.pod"] == by_check["smi.gpus"] == {"pass"}
    assert by_check["nccl.run"] == {"unproven"}
    assert done.stderr == "gpuready: interrupted; the report is of what was seen until then\n"
    api = Api.connect(network.now.kubeconfig)
    until(lambda: traces(api), lambda left: left == [], seconds=60)


# -- acceptance -------------------------------------------------------------------------------------------


@pytest.fixture
def clean(installed: State) -> Iterator[Api]:
    """The API behind the proxy; in the end nothing of an acceptance is left."""
    api = Api.connect(installed.kubeconfig)
    yield api
    until(lambda: traces(api), lambda left: left == [], seconds=120)


def test_acceptance_on_a_slow_api(network: Proxy, clean: Api) -> None:
    network.inflict(Trouble("delay", seconds=2))
    done = command(network, "accept", "--nccl", "off", "-o", "json")
    assert document(done)["verdict"] == "pass"


def test_acceptance_outlives_an_api_server_that_restarts(network: Proxy, clean: Api) -> None:
    network.inflict(
        Trouble("status", where="GET .*gpuready/pods", times=4),
        Trouble("status", status=429, retry_after="1", where="POST", times=2),
    )
    done = command(network, "accept", "-o", "json")
    assert document(done)["verdict"] == "pass"


@pytest.mark.parametrize(
    "trouble",
    [Trouble("hang", where="/jobs"), Trouble("hang", where="gpuready/pods"), Trouble("reset", where="gpuready/pods")],
    ids=["jobs-hang", "pods-hang", "pods-reset"],
)
def test_acceptance_ends_in_time_and_keeps_what_it_saw(network: Proxy, clean: Api, trouble: Trouble) -> None:
    network.inflict(trouble)
    done = command(network, "accept", "--timeout", "12", "-o", "json", seconds=40)
    data = document(done)
    assert (data["verdict"], data["exit_code"]) == ("incomplete", 2)
    first = data["results"][0]
    assert (first["check"], first["status"], first["reason"]) == ("probes.run", "error", "Unreachable")
    bad = [one for one in data["results"] if one["status"] not in ("pass", "skip")]
    assert {one["caused_by"] for one in bad[1:]} == {"probes.run/cluster/rehearsal"}
    assert data["counts"]["pass"] > 60


# A run is killed when its request hangs: by then it has made nothing, its first Jobs, or all objects of NCCL.
MOMENTS = {
    "anchor": ("POST .*/jobs", ("POST", "/jobs")),
    "first jobs": ("DELETE .*/jobs/smi", ("DELETE", "/jobs/smi")),
    "nccl": ("GET .*gpuready/pods.*nccl", ("GET", "gpuready/pods", "nccl")),
    "cleanup": ("DELETE .*/jobs/anchor", ("DELETE", "/jobs/anchor")),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_what_kill_9_leaves_goes_with_the_next_run(network: Proxy, clean: Api, moment: str) -> None:
    where, parts = MOMENTS[moment]
    network.inflict(Trouble("hang", where=where))
    killed = interrupted(network, lambda: asked(network, *parts), "accept", signals=(signal.SIGKILL,))
    assert killed.returncode == -signal.SIGKILL
    assert (traces(clean) == []) == (moment == "anchor")
    network.inflict()
    assert document(command(network, "accept", "--nccl", "off", "-o", "json"))["verdict"] == "pass"
    # The next run deletes the anchor; the garbage collector takes what it owns.
    until(lambda: traces(clean), lambda now: now == [], seconds=60)


def test_a_second_ctrl_c_ends_the_cleanup_too(network: Proxy, clean: Api) -> None:
    network.inflict(Trouble("hang", where="POST .*/services|DELETE .*/jobs/anchor"))
    deleting = ("DELETE", "/jobs/anchor")
    done = interrupted(
        network,
        lambda: asked(network, "POST", "/services"),
        *("accept", "-o", "json"),
        signals=(signal.SIGINT, signal.SIGINT),
        again=lambda: asked(network, *deleting),
    )
    assert done.returncode == 130
    network.inflict()
    assert document(command(network, "accept", "--nccl", "off", "-o", "json"))["verdict"] == "pass"
