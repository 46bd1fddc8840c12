"""`gpuready check` in trouble: one clear line, what could be seen, the right exit code, an end in time.

Each command has a deadline of its own (`seconds`), so a test that ends proves that the command did.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from gpuready.charts_values.errors import UnreachableError
from gpuready.charts_values.kube import Api
from gpuready.rehearsal.state import State

from .commands import run, until
from .spoilt import PLUGIN, alive, check, command, complaint, document, hanging_plugin
from .trouble import Proxy, Trouble, certificate, proxy

# Far below the 15 s that one silent request is borne, so that only --timeout can have ended a command in time.
SHORT = {"seconds": 14}
POLICIES = "nvidia.com/v1/clusterpolicies"


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
    assert "(HTTP 429)" in complaint(check(network, "--timeout", "6", **SHORT))


@pytest.mark.parametrize("kind", ["status", "reset", "cut", "text", "hang"])
def test_one_resource_in_trouble_costs_only_what_needs_it(network: Proxy, kind: str) -> None:
    network.inflict(Trouble(kind, where=POLICIES))
    done = check(network, "--timeout", "5", "-o", "json", **SHORT)
    data = document(done)
    assert (data["verdict"], done.returncode) == ("incomplete", 2)
    lost = {one["check"]: one["cause"] for one in data["results"] if one["status"] not in ("pass", "skip")}
    assert lost == dict.fromkeys(
        ("gpu.policy", "gpu.operands"), "the API did not answer for clusterpolicies.nvidia.com"
    )
    assert data["counts"]["pass"] > 60


def test_the_first_line_names_what_did_not_answer(network: Proxy) -> None:
    network.inflict(Trouble("status", where=POLICIES))
    done = check(network)
    assert done.stdout.splitlines()[0] == (
        "REHEARSAL INCOMPLETE gpu.operands: the API did not answer for clusterpolicies.nvidia.com (rehearsal)"
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
    assert told in complaint(check(network, "--timeout", "6", **SHORT))
    data = document(check(network, "--timeout", "6", "-o", "json", **SHORT))
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
        line = complaint(check(network))
    assert "certificate of the API server" in line and "certificate has expired; renew it there" in line


def test_a_client_certificate_that_expired(network: Proxy, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, "user", days=-1)
    file = network.kubeconfig("expired", **{"client-certificate": str(cert), "client-key": str(key)})
    # A kubeadm API server answers so; the rehearsal's knows tokens alone.
    network.inflict(Trouble("status", status=401))
    line = complaint(check(network, kubeconfig=file))
    assert "does not accept the credentials: the client certificate expired on 20" in line and "(HTTP 401)" in line


def test_a_token_that_expired(network: Proxy) -> None:
    claims = base64.urlsafe_b64encode(json.dumps({"exp": 1_700_000_000}).encode()).decode().rstrip("=")
    line = complaint(check(network, kubeconfig=network.kubeconfig("expired", token=f"e30.{claims}.c2ln")))
    assert "the token expired on 2023-11-14 22:13 UTC (HTTP 401)" in line


def test_who_is_not_known_is_told_to_log_in(network: Proxy) -> None:
    file = network.kubeconfig("unknown", token="nobody")
    assert "does not accept the credentials: they are wrong, or were revoked" in complaint(
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
    assert len(lost) == len([one for one in data["results"] if one["status"] != "skip"]) - 1
    assert {(one["reason"], one["fix"]) for one in lost} == {
        ("PermissionMissing", "Grant the role that `gpuready rbac check` prints.")
    }


def test_a_context_that_is_missing(network: Proxy) -> None:
    assert "has no context 'nope'; it has rehearsal" in complaint(check(network, "--context", "nope"))


@pytest.mark.parametrize(
    ("plugin", "told"),
    [
        (["no-such-plugin"], "needs the program 'no-such-plugin' (exec plugin), which is not installed"),
        (
            ["sh", "-c", "echo log in first >&2; exit 3"],
            "its exec plugin gave no credentials: exec: process returned 3. log in first",
        ),
        (["sh", "-c", "echo '{}'"], "gave no credentials: exec: malformed response"),
    ],
    ids=["missing", "failing", "mad"],
)
def test_an_exec_plugin_that_gives_no_credentials(network: Proxy, plugin: list[str], told: str) -> None:
    file = network.kubeconfig("plugin", exec={**PLUGIN, "command": plugin[0], "args": plugin[1:]})
    assert told in complaint(check(network, kubeconfig=file))


def test_an_exec_plugin_that_hangs_is_ended(network: Proxy, tmp_path: Path) -> None:
    file, pid = hanging_plugin(network, tmp_path)
    line = complaint(check(network, "--timeout", "3", kubeconfig=file, **SHORT))
    assert "its exec plugin gave no credentials within 3" in line
    until(lambda: alive(int(pid.read_text())), lambda lives: not lives)


# -- which cluster ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("--cluster", "pord"), "inventory has no cluster 'pord'; it has prod, rehearsal"),
        ((), "which cluster? Give --cluster, one of: prod, rehearsal"),
        (("--context", "c"), "--kubeconfig and --context need --cluster NAME: what is promised stands in inventory; "),
        (("--cluster", "rehearsal"), "no rehearsal cluster is up; start one with: gpuready rehearse up"),
    ],
)
def test_a_cluster_that_is_not_said_or_not_there(tmp_path: Path, args: tuple[str, ...], told: str) -> None:
    (tmp_path / "inventory").write_text("_CLUSTERS = {'rehearsal': {'rehearsal': True}, 'prod': {}}\n")
    done = run("gpuready", "check", "--inventory", str(tmp_path / "inventory"), *args, state_dir=tmp_path / "none")
    assert complaint(done).startswith(told)


def test_another_size_is_asked_for(installed: State) -> None:
    done = run("gpuready", "rehearse", "up", "--nodes", "2", state_dir=installed.folder)
    assert complaint(done).endswith(", not 2 of h100-ib; end it first with: gpuready rehearse down")
