"""Why the wire failed, in plain words: what urllib3, TLS and the system say, without their names and numbers."""

from __future__ import annotations

import errno
import http.client
import os
import socket
import ssl
from collections.abc import Iterator
from urllib.parse import urlsplit

import urllib3

_PLAIN = {
    errno.ECONNREFUSED: "connection refused",
    errno.ECONNRESET: "the connection was reset",
    errno.EPIPE: "the connection was closed",
    errno.ECONNABORTED: "the connection was closed",
    errno.EHOSTUNREACH: "no route to host",
    errno.ENETUNREACH: "network is unreachable",
    errno.ETIMEDOUT: "timed out",
}


def cause(error: BaseException) -> str:
    """The innermost reason of an error of urllib3, on one line and in plain words."""
    found = list(_chain(error))
    for one in reversed(found):
        if text := _plain(one):
            return text
    return one_line(str(found[-1]))


def refused_certificate(server: str, error: BaseException) -> str:
    """What is wrong with the TLS of an API server: which certificate, and how."""
    inner = list(_chain(error))[-1]
    if isinstance(inner, ssl.SSLCertVerificationError):
        hint = "; renew it there, or set this machine's clock" if "expired" in inner.verify_message else ""
        return f"the certificate of the API server {server} is refused: {inner.verify_message.rstrip('.')}{hint}"
    return f"no TLS connection to the API server {server}: {cause(error)}"


def without_secrets(url: str) -> str:
    """A URL without the name and the password that it may hold."""
    return url.replace(f"{urlsplit(url).netloc.rpartition('@')[0]}@", "", 1) if "@" in url else url


def one_line(text: str) -> str:
    """A foreign text on one line, and not too long."""
    return " ".join(text.split())[:400]


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, then what it stands for, down to the first that failed."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        nested = [arg for arg in (*one.args, getattr(one, "reason", None)) if isinstance(arg, BaseException)]
        one = one.__cause__ or (nested[0] if nested else one.__context__)


def _plain(error: BaseException) -> str:
    """The words for one error of the chain; nothing for one that only wraps another."""
    if isinstance(error, socket.gaierror):
        later = error.errno == socket.EAI_AGAIN
        return "no name server answers" if later else "name does not resolve"
    if isinstance(error, ssl.SSLError):
        return _tls(error)
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, OSError) and error.errno is not None:
        return _PLAIN.get(error.errno) or os.strerror(error.errno)
    if isinstance(error, http.client.IncompleteRead | urllib3.exceptions.IncompleteRead):
        return "it ended too early"
    if isinstance(error, http.client.RemoteDisconnected):
        return "it closed the connection without an answer"
    return ""


def _tls(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate refused: {error.verify_message.rstrip('.')}"
    reason = (error.reason or "").replace("_", " ").lower()
    if error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG"):
        return "the other side speaks no TLS; is it an http:// address, or a proxy?"
    if error.reason == "NO_CERTIFICATE_OR_CRL_FOUND" or "PEM" in str(error):
        return "a certificate or key of the kubeconfig is damaged"
    return f"TLS: {reason}" if reason else one_line(str(error))
