"""`gpuready check` and `accept` in trouble: one clear line, what could be seen, the right exit code, an end in time.

Each command has a deadline of its own (`seconds`), so a test that ends proves that the command did.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gpuready.charts_values.errors import UnreachableError
from gpuready.charts_values.kube import Api
from gpuready.rehearsal.state import State

from .commands import BIN, ROOT, environment, run, until
from .test_accept import traces
from .test_check import one_line
from .trouble import Proxy, Trouble, certificate, proxy

Done = subprocess.CompletedProcess[str]
# Far below the 15 s that one silent request is borne, so that only --timeout can have ended a command in time.
SHORT = {"seconds": 14}
POLICIES = "nvidia.com/v1/clusterpolicies"
PLUGIN = {"apiVersion": "client.authentication.k8s.io/v1", "interactiveMode": "Never"}


@pytest.fixture
def network(installed: State, tmp_path: Path) -> Iterator[Proxy]:
    """The way to the installed cluster, which a test may spoil."""
    with proxy(installed, tmp_path) as running:
        yield running


def command(network: Proxy, name: str, *args: str, kubeconfig: Path | None = None, **more: Any) -> Done:
    """`gpuready NAME` on the rehearsal, by way of the proxy."""
    file = kubeconfig or network.kubeconfig()
    where = ("--cluster", "rehearsal", "--kubeconfig", str(file))
    done = run("gpuready", name, *where, *args, state_dir=network.now.folder, **more)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def check(network: Proxy, *args: str, **more: Any) -> Done:
    """`gpuready check`."""
    return command(network, "check", *args, **more)


def document(done: Done) -> dict[str, Any]:
    """The JSON report, which says the same as the exit code."""
    data: dict[str, Any] = json.loads(done.stdout)
    assert data["exit_code"] == done.returncode
    return data


# -- the API server ---------------------------------------------------------------------------------------


def test_a_slow_api_is_waited_for(network: Proxy) -> None:
    network.inflict(Trouble("delay", seconds=2))
    data = document(check(network, "-o", "json"))
    assert (data["verdict"], data["exit_code"]) == ("pass", 0)


def test_a_server_that_asks_to_wait_is_asked_again(network: Proxy) -> None:
    network.inflict(Trouble("status", status=429, retry_after="1", times=4))
    data = document(check(network, "-o", "json"))
    assert (data["verdict"], data["exit_code"]) == ("pass", 0)
    assert len(network.seen) == data["api_calls"] == len(set(network.seen)) + 4


def test_a_server_that_never_stops_asking_to_wait(network: Proxy) -> None:
    network.inflict(Trouble("status", status=429, retry_after="1"))
    assert "(HTTP 429)" in one_line(check(network, "--timeout", "3", **SHORT))


@pytest.mark.parametrize("kind", ["status", "reset", "cut", "text", "hang"])
def test_one_resource_in_trouble_costs_only_what_needs_it(network: Proxy, kind: str) -> None:
    network.inflict(Trouble(kind, where=POLICIES))
    done = check(network, "--timeout", "5", "-o", "json", **SHORT)
    data = document(done)
    assert (data["verdict"], done.returncode) == ("incomplete", 2)
    lost = {one["check"]: one["cause"] for one in data["results"] if one["status"] != "pass"}
    assert lost == dict.fromkeys(
        ("gpu.policy", "gpu.operands"), "the API did not answer for clusterpolicies.nvidia.com"
    )
    assert data["counts"]["pass"] > 60


def test_the_first_line_names_what_did_not_answer(network: Proxy) -> None:
    network.inflict(Trouble("status", where=POLICIES))
    done = check(network)
    assert done.stdout.splitlines()[0] == (
        "REHEARSAL INCOMPLETE gpu.policy: the API did not answer for clusterpolicies.nvidia.com (rehearsal)"
    )
    assert (done.returncode, done.stderr) == (2, "")


@pytest.mark.parametrize("kind", ["reset", "cut"])
def test_a_connection_that_breaks_once_is_no_trouble(network: Proxy, kind: str) -> None:
    network.inflict(Trouble(kind, where="daemonsets", times=1))
    assert document(check(network, "-o", "json"))["verdict"] == "pass"


@pytest.mark.parametrize(
    ("trouble", "told"),
    [
        (Trouble("hang"), "did not answer within"),
        (Trouble("status", status=500), "GET /version: made by the test: 500 (HTTP 500)"),
        (Trouble("cut"), "broke off in the middle of an answer"),
        (Trouble("text"), "answered with something that is no API object; is it a proxy?"),
    ],
    ids=lambda one: one.kind if isinstance(one, Trouble) else "",
)
def test_an_api_that_says_nothing_useful_is_one_line_and_still_a_document(
    network: Proxy, trouble: Trouble, told: str
) -> None:
    network.inflict(trouble)
    assert told in one_line(check(network, "--timeout", "3", **SHORT))
    data = document(check(network, "--timeout", "3", "-o", "json", **SHORT))
    assert (data["exit_code"], data["results"][0]["check"]) == (2, "cluster.reachable")


def test_a_dead_aggregated_api_is_nobodys_business(network: Proxy) -> None:
    api = Api.connect(network.now.kubeconfig)
    services = "/apis/apiregistration.k8s.io/v1/apiservices"
    backend = {"namespace": "default", "name": "gone", "port": 443}
    spec = {"group": "dead.example.com", "version": "v1", "service": backend, "insecureSkipTLSVerify": True}
    spec |= {"groupPriorityMinimum": 100, "versionPriority": 100}
    meta = {"name": "v1.dead.example.com"}
    body = {"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": meta, "spec": spec}
    api.create(services, body)
    try:
        groups = until(lambda: api.get("/apis")["groups"], lambda seen: "dead" in str(seen))
        assert "resource.k8s.io" in str(groups)
        assert document(check(network, "-o", "json"))["verdict"] == "pass"
        done = command(network, "accept", "--nccl", "off", "-o", "json")
        assert document(done)["verdict"] == "pass"
    finally:
        api.delete(f"{services}/v1.dead.example.com")


def test_a_watch_that_is_closed_early_ends(network: Proxy) -> None:
    network.inflict(Trouble("cut", where="watch=true"))
    api = Api.connect(network.kubeconfig(), timeout=30)
    # From version 0 a watch begins with an event for each object.
    events = api.watch("/api/v1/nodes", "0", seconds=60)
    with pytest.raises(UnreachableError, match="watch of /api/v1/nodes"):
        for _ in events:
            pass


# -- credentials ------------------------------------------------------------------------------------------


def test_a_server_certificate_that_expired(installed: State, tmp_path: Path) -> None:
    with proxy(installed, tmp_path, days=-1) as network:
        line = one_line(check(network))
    assert "certificate of the API server" in line and "certificate has expired; renew it there" in line


def test_a_client_certificate_that_expired(network: Proxy, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, "user", days=-1)
    file = network.kubeconfig("expired", **{"client-certificate": str(cert), "client-key": str(key)})
    # A kubeadm API server answers so; the rehearsal's knows tokens alone.
    network.inflict(Trouble("status", status=401))
    line = one_line(check(network, kubeconfig=file))
    assert "does not accept the credentials: the client certificate expired on 20" in line and "(HTTP 401)" in line


def test_a_token_that_expired(network: Proxy) -> None:
    claims = base64.urlsafe_b64encode(json.dumps({"exp": 1_700_000_000}).encode()).decode().rstrip("=")
    line = one_line(check(network, kubeconfig=network.kubeconfig("expired", token=f"e30.{claims}.c2ln")))
    assert "the token expired on 2023-11-14 22:13 UTC (HTTP 401)" in line


def test_who_is_not_known_is_told_to_log_in(network: Proxy) -> None:
    file = network.kubeconfig("unknown", token="nobody")
    assert "does not accept the credentials: they are wrong, or were revoked" in one_line(
        check(network, kubeconfig=file)
    )
    first = document(check(network, "-o", "json", kubeconfig=file))["results"][0]
    assert (first["check"], first["reason"]) == ("cluster.reachable", "CredentialsRefused")


def test_who_may_read_nothing_is_told_what_to_ask_for(network: Proxy) -> None:
    api = Api.connect(network.now.kubeconfig)
    accounts = "/api/v1/namespaces/default/serviceaccounts"
    api.create(accounts, {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "powerless"}})
    try:
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        token = api.create(f"{accounts}/powerless/token", request)["status"]["token"]
        data = document(check(network, "-o", "json", kubeconfig=network.kubeconfig("powerless", token=token)))
    finally:
        api.delete(f"{accounts}/powerless")
    assert (data["verdict"], data["exit_code"]) == ("incomplete", 2)
    lost = [one for one in data["results"] if one["status"] == "unproven"]
    assert len(lost) == len(data["results"]) - 1
    assert {(one["reason"], one["fix"]) for one in lost} == {
        ("PermissionMissing", "Grant the role that `gpuready rbac check` prints.")
    }


def test_a_context_that_is_missing(network: Proxy) -> None:
    assert "has no context 'nope'; it has rehearsal" in one_line(check(network, "--context", "nope"))


@pytest.mark.parametrize(
    ("plugin", "told"),
    [
        (["no-such-plugin"], "needs the program 'no-such-plugin' (exec plugin), which is not installed"),
        (["sh", "-c", "echo log in first >&2; exit 3"], "gave no credentials: exec: process returned 3. log in first"),
        (["sh", "-c", "echo '{}'"], "gave no credentials: exec: malformed response"),
    ],
    ids=["missing", "failing", "mad"],
)
def test_an_exec_plugin_that_gives_no_credentials(network: Proxy, plugin: list[str], told: str) -> None:
    file = network.kubeconfig("plugin", exec={**PLUGIN, "command": plugin[0], "args": plugin[1:]})
    assert told in one_line(check(network, kubeconfig=file))


def hanging_plugin(network: Proxy, folder: Path) -> tuple[Path, Path]:
    """A kubeconfig whose exec plugin never ends, and the file that then holds the plugin's pid."""
    pid = folder / "pid"
    script = f"echo $$ > {pid}.part; mv {pid}.part {pid}; exec sleep 1000"
    return network.kubeconfig("hanging", exec={**PLUGIN, "command": "sh", "args": ["-c", script]}), pid


def test_an_exec_plugin_that_hangs_is_ended(network: Proxy, tmp_path: Path) -> None:
    file, pid = hanging_plugin(network, tmp_path)
    line = one_line(check(network, "--timeout", "3", kubeconfig=file, **SHORT))
    assert "its exec plugin gave no credentials within 3" in line
    until(lambda: alive(int(pid.read_text())), lambda lives: not lives)


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and is not yet waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# -- where the report goes --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundles(installed: State, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """A bundle that passes and one that fails, by exit code."""
    folder = tmp_path_factory.mktemp("bundles")
    found = {0: folder / "good", 1: folder / "bad"}
    for bundle in found.values():
        run("gpuready", "check", "--save", str(bundle), state_dir=installed.folder)
    nodes = found[1] / "cluster" / "nodes.json"
    nodes.write_text(nodes.read_text().replace('"nvidia.com/gpu": "8"', '"nvidia.com/gpu": "7"'))
    return found


def shell(text: str, now: State, **more: Any) -> Done:
    """A line of bash in which `gpuready` is ours."""
    env = environment(now.folder, PATH=f"{BIN}:{os.environ['PATH']}")
    return subprocess.run(["bash", "-c", text], cwd=ROOT, env=env, text=True, timeout=60, check=False, **more)


@pytest.mark.parametrize("code", [0, 1])
def test_a_reader_that_leaves_costs_nothing(installed: State, bundles: dict[int, Path], code: int) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    line = f"gpuready check --from {bundles[code]}"
    done = shell(line, installed, stdin=subprocess.DEVNULL, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (code, "")


@pytest.mark.parametrize("code", [0, 1])
def test_a_closed_stdout_leaves_the_exit_code(installed: State, bundles: dict[int, Path], code: int) -> None:
    done = shell(f"gpuready check --from {bundles[code]} >&-", installed, capture_output=True)
    assert (done.returncode, done.stderr) == (code, "")


@pytest.mark.parametrize(("code", "then"), [(0, 2), (1, 1)])
def test_a_stdout_that_is_full_costs_a_pass(installed: State, bundles: dict[int, Path], code: int, then: int) -> None:
    done = shell(f"gpuready check --from {bundles[code]} > /dev/full", installed, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (then, "gpuready: cannot write to stdout: No space left on device\n")


@pytest.mark.parametrize("text", ["list", "explain gpu.policy", "rbac check", "rehearse status"])
def test_other_commands_say_so_too(installed: State, text: str) -> None:
    done = shell(f"gpuready {text} > /dev/full", installed, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (2, "gpuready: cannot write to stdout: No space left on device\n")


@pytest.mark.parametrize(("code", "then"), [(0, 2), (1, 1)])
def test_a_report_that_cannot_be_saved_is_printed(
    installed: State, bundles: dict[int, Path], code: int, then: int
) -> None:
    line = f"gpuready check --from {bundles[code]} -o json --output-file /dev/full"
    done = shell(line, installed, capture_output=True)
    assert json.loads(done.stdout)["exit_code"] == code
    assert (done.returncode, done.stderr) == (then, "gpuready: cannot write /dev/full: No space left on device\n")
    assert Path("/dev/full").is_char_device()


def test_a_bundle_that_cannot_be_saved_costs_no_report(installed: State, tmp_path: Path) -> None:
    # 8 blocks of 1 KiB per file: what a full disk is to the one who writes, without being root.
    line = f"ulimit -f 8; gpuready check --cluster rehearsal --save {tmp_path / 'bundle'}"
    done = shell(line, installed, capture_output=True)
    assert done.stdout.startswith("REHEARSAL PASS")
    assert done.returncode == 2
    assert done.stderr == f"gpuready: cannot write the bundle {tmp_path / 'bundle'}: File too large\n"


def test_what_cannot_be_saved_is_known_before_the_run(network: Proxy, tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    assert "is not empty" in one_line(command(network, "accept", "--save", str(tmp_path / "used")))
    missing = str(tmp_path / "missing" / "report.json")
    assert "there is no folder" in one_line(command(network, "accept", "--output-file", missing))
    assert network.seen == []


def test_without_a_terminal_there_is_only_text(network: Proxy) -> None:
    done = check(network)
    assert "\x1b" not in done.stdout and done.stderr == ""


# -- Ctrl-C -----------------------------------------------------------------------------------------------


def interrupted(
    network: Proxy, ready: Callable[[], bool], name: str, *args: str, kubeconfig: Path | None = None
) -> Done:
    """`gpuready NAME`, which gets Ctrl-C as soon as it is ``ready``."""
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
        process.send_signal(signal.SIGINT)
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
    # The last of all requests, made when the others are under way; the slow ones are answered by then or not.
    done = interrupted(network, lambda: asked(network, "deviceclasses"), "check", "-o", "json")
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
