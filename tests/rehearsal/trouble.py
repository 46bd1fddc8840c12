"""A real HTTPS proxy in front of a rehearsal's API server, which makes the trouble that networks make."""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from gpuready.rehearsal.state import State

HOST = "127.0.0.1"
_HOP_BY_HOP = {"connection", "transfer-encoding", "content-length", "keep-alive"}


@dataclass
class Trouble:
    """What happens to the requests whose ``METHOD /path?query`` matches ``where``.

    ``kind`` is delay (of ``seconds``, then the true answer), status (answer ``status`` instead), text (200 with
    something that is no JSON), reset and cut (half of the true body, then a reset or an early end) or hang (no
    answer at all). ``times`` limits how often; None is always.
    """

    kind: str
    where: str = "."
    times: int | None = None
    seconds: float = 2.0
    status: int = 500
    retry_after: str | None = None


class Proxy:
    """The proxy while it runs; ``seen`` holds every request as ``METHOD /path?query``, ``answered`` those done with."""

    def __init__(self, now: State, folder: Path, *, days: int = 1) -> None:
        self._upstream = urlsplit(now.server)
        self._trust = ssl.create_default_context()
        self._trust.check_hostname = False
        self._trust.verify_mode = ssl.CERT_NONE
        self.certificate, self.key = certificate(folder, "proxy", days=days)
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.load_cert_chain(self.certificate, self.key)
        self.seen: list[str] = []
        self.answered: list[str] = []
        self.closing = threading.Event()
        self._troubles: list[Trouble] = []
        self._lock = threading.Lock()
        self._server = _Server((HOST, 0), _Handler, self)
        self.url = f"https://{HOST}:{self._server.server_address[1]}"
        self.now, self._folder = now, folder

    def inflict(self, *troubles: Trouble) -> None:
        """From now on this trouble, and no other."""
        with self._lock:
            self._troubles = list(troubles)

    def due(self, request: str) -> Trouble | None:
        """The trouble that a request gets."""
        with self._lock:
            self.seen.append(request)
            for one in self._troubles:
                if re.search(one.where, request) and one.times != 0:
                    one.times = None if one.times is None else one.times - 1
                    return one
        return None

    def upstream(self) -> http.client.HTTPSConnection:
        """A connection to the API server."""
        assert self._upstream.hostname
        return http.client.HTTPSConnection(
            self._upstream.hostname, self._upstream.port, timeout=60, context=self._trust
        )

    def kubeconfig(self, name: str = "proxied", **user: Any) -> Path:
        """A kubeconfig that leads here; ``user`` replaces the admin's credentials."""
        config = yaml.safe_load(self.now.kubeconfig.read_text())
        config["clusters"][0]["cluster"] = {"server": self.url, "certificate-authority": str(self.certificate)}
        if user:
            config["users"][0]["user"] = user
        file = self._folder / f"{name}.kubeconfig"
        file.write_text(yaml.safe_dump(config))
        return file

    def serve(self) -> None:
        """Answer until ``close``."""
        self._server.serve_forever(poll_interval=0.05)

    def close(self) -> None:
        """Let go of everyone who waits, and stop."""
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def proxy(now: State, folder: Path, *, days: int = 1) -> Iterator[Proxy]:
    """A running proxy; ``days`` is how long its certificate is valid, below 0 for one that has expired."""
    running = Proxy(now, folder, days=days)
    thread = threading.Thread(target=running.serve, daemon=True)
    thread.start()
    try:
        yield running
    finally:
        running.close()
        thread.join(timeout=10)


def certificate(folder: Path, name: str, *, days: int) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1 and its key, as files; it ends ``days`` from now."""
    key = ec.generate_private_key(ec.SECP256R1())
    who = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    end = datetime.now(UTC) + timedelta(days=days)
    made = (
        x509.CertificateBuilder()
        .subject_name(who)
        .issuer_name(who)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(end, datetime.now(UTC)) - timedelta(days=30))
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(HOST))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    files = folder / f"{name}.crt", folder / f"{name}.key"
    files[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    files[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, form, plain))
    return files


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler], owner: Proxy) -> None:
        super().__init__(address, handler)
        self.owner = owner

    def get_request(self) -> tuple[Any, Any]:
        plain, address = super().get_request()
        # The handshake takes place in the connection's own thread, at its first read.
        return self.owner.tls.wrap_socket(plain, server_side=True, do_handshake_on_connect=False), address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients leave when their time is up; that is what the tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def handle_any(self) -> None:
        """One request: the trouble that is due, else the API server's answer."""
        owner = self.server.owner
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        trouble = owner.due(f"{self.command} {self.path}")
        if trouble is not None and trouble.kind in ("hang", "delay"):
            owner.closing.wait(None if trouble.kind == "hang" else trouble.seconds)
            if owner.closing.is_set():
                self.close_connection = True
                return
        if trouble is not None and trouble.kind == "status":
            message = f"made by the test: {trouble.status}"
            status = {"kind": "Status", "apiVersion": "v1", "message": message, "code": trouble.status}
            self._answer(trouble.status, json.dumps(status).encode(), trouble.retry_after)
            return
        if trouble is not None and trouble.kind == "text":
            self._answer(200, b"<html>Please log in</html>", None)
            return
        headers = {key: value for key, value in self.headers.items() if key.lower() not in _HOP_BY_HOP}
        with closing(owner.upstream()) as upstream:
            upstream.request(self.command, self.path, body or None, headers)
            answer = upstream.getresponse()
            if "watch=true" in self.path:
                self._stream(answer, cut=trouble is not None and trouble.kind == "cut")
                return
            data = answer.read()
        if trouble is not None and trouble.kind in ("reset", "cut"):
            self._break(answer, data, reset=trouble.kind == "reset")
        else:
            self._head(answer, len(data))
            self.wfile.write(data)
            owner.answered.append(f"{self.command} {self.path}")

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any

    def _answer(self, status: int, data: bytes, retry_after: str | None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if retry_after is not None:
            self.send_header("Retry-After", retry_after)
        self.end_headers()
        self.wfile.write(data)

    def _head(self, answer: http.client.HTTPResponse, length: int | None) -> None:
        self.send_response(answer.status)
        for key, value in answer.getheaders():
            if key.lower() not in _HOP_BY_HOP:
                self.send_header(key, value)
        if length is None:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def _stream(self, answer: http.client.HTTPResponse, *, cut: bool) -> None:
        """A watch, event by event; ``cut`` ends it after the first, in the middle of the stream."""
        self._head(answer, None)
        while chunk := answer.read1(65536):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            if cut:
                self.close_connection = True
                return
        self.wfile.write(b"0\r\n\r\n")

    def _break(self, answer: http.client.HTTPResponse, data: bytes, *, reset: bool) -> None:
        self._head(answer, len(data))
        self.wfile.write(data[: len(data) // 2])
        self.close_connection = True
        if reset:
            # With no time to linger, closing a socket sends a reset.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.rfile.close()
            self.wfile.close()
            self.connection.close()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: ``seen`` is the log."""
