"""Kubeconfigs in trouble, and networks that lead nowhere: one line that says what to mend, in time."""

from __future__ import annotations

import base64
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from .commands import run
from .spoilt import Done, check, complaint, confined, document
from .trouble import HOST, Proxy, Trouble

Change = Callable[[dict[str, Any]], Any]


def changed(network: Proxy, folder: Path, change: Change) -> Path:
    """The kubeconfig of the cluster, changed: ``change`` gets its table."""
    table = yaml.safe_load(network.now.kubeconfig.read_text())
    change(table)
    file = folder / "changed.kubeconfig"
    file.write_text(yaml.safe_dump(table))
    return file


def cluster_of(**keys: Any) -> Change:
    """A change of the cluster's keys; None takes one away."""

    def change(table: dict[str, Any]) -> None:
        cluster = table["clusters"][0]["cluster"]
        cluster.update(keys)
        for key in [key for key, value in cluster.items() if value is None]:
            del cluster[key]

    return change


def user_of(**keys: Any) -> Change:
    """A change of the user to these keys alone."""
    return lambda table: table["users"][0].update(user=keys)


@contextmanager
def listener(serve: Callable[[socket.socket], Any]) -> Iterator[int]:
    """The port of a server that does ``serve`` with each connection."""
    with socket.create_server((HOST, 0)) as server:
        held: list[socket.socket] = []

        def work() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                held.append(connection)
                with suppress(OSError):  # the client may be gone already
                    serve(connection)

        threading.Thread(target=work, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        for connection in held:
            connection.close()


def reset(connection: socket.socket) -> None:
    connection.recv(10)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def answer_in_plain(connection: socket.socket) -> None:
    connection.recv(1000)
    connection.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")


# -- files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "is empty; fetch it again"),
        ("# nothing\n", "is empty; fetch it again"),
        ("clusters: [a\n b: c", "is no YAML (line 2, column 3); fetch it again"),
        ("[1, 2]", "is not a kubeconfig; fetch it again"),
        ("just words", "is not a kubeconfig; fetch it again"),
    ],
)
def test_a_file_that_is_no_kubeconfig(network: Proxy, tmp_path: Path, content: str, told: str) -> None:
    file = tmp_path / "broken"
    file.write_text(content)
    assert complaint(check(network, kubeconfig=file)).startswith(f"kubeconfig {file} {told}")
    # By way of $KUBECONFIG the file is named as well.
    assert f"kubeconfig {file} {told}" in complaint(by_variable(network, file))


def by_variable(network: Proxy, *files: Path) -> Done:
    """`gpuready check` of a cluster whose entry names no kubeconfig."""
    inventory = network.now.folder.parent / "by-variable"
    entry = {**network.now.entry, "rehearsal": False}
    entry = {key: value for key, value in entry.items() if key not in ("kubeconfig", "context")}
    inventory.write_text(f"_CLUSTERS = {{'mine': {entry!r}}}\n")
    variable = ":".join(map(str, files))
    options = ("--inventory", str(inventory), "--cluster", "mine")
    return run("gpuready", "check", *options, state_dir=network.now.folder, KUBECONFIG=variable)


def test_several_files_are_merged_and_dead_ones_passed_over(network: Proxy, tmp_path: Path) -> None:
    table = yaml.safe_load(network.now.kubeconfig.read_text())
    users = tmp_path / "users"
    users.write_text(yaml.safe_dump({"kind": "Config", "users": table.pop("users")}))
    rest = tmp_path / "rest"
    rest.write_text(yaml.safe_dump(table))
    empty = tmp_path / "empty"
    empty.touch()
    done = by_variable(network, tmp_path / "absent", empty, rest, users)
    assert done.stdout.startswith("REHEARSAL PASS"), done.stderr
    absent = complaint(by_variable(network, tmp_path / "a", tmp_path / "b"))
    assert (
        absent
        == f"$KUBECONFIG ({tmp_path}/a:{tmp_path}/b) does not exist; name another in inventory or with --kubeconfig"
    )


def test_what_is_no_file_or_may_not_be_read(network: Proxy, tmp_path: Path) -> None:
    assert "is a folder, not a file" in complaint(check(network, kubeconfig=tmp_path))
    assert "does not exist; name another" in complaint(check(network, kubeconfig=tmp_path / "absent"))
    file = changed(network, tmp_path, lambda table: None)
    line = f"chmod 000 {file}; gpuready check --cluster rehearsal --kubeconfig {file}"
    assert complaint(confined(line, network.now.folder)) == f"cannot read kubeconfig {file}: Permission denied"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda table: table.pop("current-context"), "names no current context; give --context, one of"),
        (lambda table: table.update({"current-context": ""}), "names no current context; give --context"),
        (lambda table: table.update({"current-context": "gone"}), "a current-context that it does not define: 'gone'"),
        (lambda table: table.update(contexts=None), "that it does not define: 'rehearsal'; it has none"),
        (lambda table: table.update(clusters=[]), "is of cluster 'rehearsal', which the file does not"),
        (lambda table: table.update(users=[]), "has no credentials: no token, certificate or plugin of its user"),
        (user_of(), "has no credentials: no token, certificate or plugin of its user"),
        (user_of(**{"client-certificate": "me.crt", "client-key": "me.key"}), "/me.crt, which does not exist"),
        (user_of(tokenFile="token"), "/token, which does not exist"),
        (user_of(**{"auth-provider": {"name": "gcp"}}), "an auth-provider that is not supported; use"),
        (cluster_of(**{"certificate-authority-data": None, "certificate-authority": "ca.crt"}), "ca.crt, which does"),
        (cluster_of(server=None), "has the server '', which is no URL like https://host:6443"),
        (cluster_of(server="127.0.0.1:6443"), "has the server '127.0.0.1:6443', which is no URL like"),
        (cluster_of(server="https://127.0.0.1:99999"), "which is no URL like https://host:6443"),
        (cluster_of(**{"proxy-url": "socks5://127.0.0.1:1"}), "1 needs the Python package"),
        (cluster_of(**{"certificate-authority-data": "Z2FyYmFnZQ=="}), "or key of the kubeconfig is damaged"),
        (user_of(**{"client-certificate-data": "eA==", "client-key-data": "eA=="}), "of the kubeconfig is damaged"),
        (cluster_of(**{"certificate-authority-data": None}), "refused: self-signed certificate in certificate chain"),
        (cluster_of(**{"tls-server-name": "elsewhere"}), "is refused: Hostname mismatch, certificate is not"),
    ],
)  # fmt: skip
def test_a_kubeconfig_that_cannot_work(network: Proxy, tmp_path: Path, change: Change, told: str) -> None:
    assert told in complaint(check(network, kubeconfig=changed(network, tmp_path, change)))


def test_a_relative_path_is_relative_to_the_kubeconfig(network: Proxy, tmp_path: Path) -> None:
    def change(table: dict[str, Any]) -> None:
        cluster = table["clusters"][0]["cluster"]
        (tmp_path / "ca.crt").write_bytes(base64.b64decode(cluster.pop("certificate-authority-data")))
        (tmp_path / "token").write_text(table["users"][0]["user"].pop("token"))
        cluster["certificate-authority"] = "ca.crt"
        table["users"][0]["user"]["tokenFile"] = "token"

    done = check(network, kubeconfig=changed(network, tmp_path, change))
    assert (done.returncode, done.stderr) == (0, "")


def test_insecure_skip_tls_verify_is_obeyed_in_silence(network: Proxy, tmp_path: Path) -> None:
    change = cluster_of(**{"certificate-authority-data": None, "insecure-skip-tls-verify": True})
    done = check(network, kubeconfig=changed(network, tmp_path, change))
    assert (done.returncode, done.stderr) == (0, "")


def test_a_server_with_a_path(network: Proxy, tmp_path: Path) -> None:
    """As behind a management plane: below the path there is an API server, or there is none."""
    good = changed(network, tmp_path, cluster_of(server=f"{network.now.server}/"))
    assert check(network, kubeconfig=good).returncode == 0
    bad = changed(network, tmp_path, cluster_of(server=f"{network.now.server}/k8s/clusters/c-1"))
    assert "/k8s/clusters/c-1 is no API server, or its path is wrong: " in complaint(check(network, kubeconfig=bad))


# -- networks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"server": "https://127.0.0.1:1"}, "cannot reach the API server https://127.0.0.1:1: connection refused"),
        ({"server": "https://no-such-host.invalid"}, "https://no-such-host.invalid: name does not resolve"),
        ({"proxy-url": "http://me:secret@127.0.0.1:1"}, "through the proxy http://127.0.0.1:1: connection refused"),
    ],
)
def test_a_network_that_leads_nowhere(network: Proxy, tmp_path: Path, keys: dict[str, str], told: str) -> None:
    line = complaint(check(network, kubeconfig=changed(network, tmp_path, cluster_of(**keys))))
    assert told in line and "secret" not in line


@pytest.mark.parametrize(
    ("serve", "told"),
    [
        (reset, "broke the connection: the connection was reset"),
        (answer_in_plain, "the other side speaks no TLS; is it an http:// address, or a proxy?"),
    ],
)
def test_a_server_that_is_something_else(
    network: Proxy, tmp_path: Path, serve: Callable[[socket.socket], Any], told: str
) -> None:
    with listener(serve) as port:
        file = changed(network, tmp_path, cluster_of(server=f"https://{HOST}:{port}"))
        assert told in complaint(check(network, kubeconfig=file))


def test_a_machine_without_a_network(network: Proxy, tmp_path: Path) -> None:
    for server, told in (
        ("https://192.0.2.1", "network is unreachable"),
        ("https://cluster.example", "no name server answers"),
    ):
        file = changed(network, tmp_path, cluster_of(server=server))
        line = f"unshare --net gpuready check --cluster rehearsal --kubeconfig {file}"
        assert complaint(confined(line, network.now.folder)) == f"cannot reach the API server {server}: {told}"


# -- time -------------------------------------------------------------------------------------------------


def seconds_of(call: Callable[[], Done]) -> tuple[float, Done]:
    began = time.monotonic()
    done = call()
    return time.monotonic() - began, done


def test_the_timeout_holds_on_a_slow_api(network: Proxy) -> None:
    network.inflict(Trouble("delay", seconds=4))
    seconds, done = seconds_of(lambda: check(network, "--timeout", "5", "-o", "json"))
    assert document(done)["verdict"] == "incomplete"
    # Starting Python and printing take time of their own, on a busy machine more.
    assert 5 <= seconds < 9


def test_the_timeout_holds_where_a_connection_is_accepted_and_nothing_follows(network: Proxy, tmp_path: Path) -> None:
    with listener(lambda connection: None) as port:
        file = changed(network, tmp_path, cluster_of(server=f"https://{HOST}:{port}"))
        seconds, done = seconds_of(lambda: check(network, "--timeout", "2", kubeconfig=file))
    assert "did not answer within " in complaint(done)
    assert 2 <= seconds < 6


def test_the_timeout_holds_where_dns_hangs(network: Proxy, tmp_path: Path) -> None:
    file = changed(network, tmp_path, cluster_of(server="https://cluster.example:6443"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        # 127.0.0.2 has no name server, but a socket that swallows what is asked.
        try:
            silent.bind(("127.0.0.2", 53))
        except PermissionError:
            pytest.skip("port 53 is not for this user")
        (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.2\noptions timeout:30 attempts:3\n")
        line = f"mount --bind {tmp_path}/resolv.conf /etc/resolv.conf; "
        line += f"gpuready check --timeout 2 --cluster rehearsal --kubeconfig {file}"
        seconds, done = seconds_of(lambda: confined(line, network.now.folder))
    assert "did not answer within " in complaint(done)
    assert 2 <= seconds < 6
