"""The edge to the Kubernetes API: plain dicts in and out, one error tree, every call with a deadline.

The official client finds the credentials (kubeconfig, contexts, exec plugins, client certificates, token
refresh) and keeps the connections. Objects stay the dicts that the API sent: a bundle must hold what was
seen, not what a model class made of it, and 1,000 nodes must not be parsed into model classes.
"""

from __future__ import annotations

import json
import threading
import time
from base64 import urlsafe_b64decode
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import urllib3

from . import kubeconfig as kubeconfig_file
from .causes import cause, one_line, refused_certificate, without_secrets
from .errors import ApiError, DeadlineError, UnreachableError

Object = dict[str, Any]
# A name of its own, because Api has a method called `list`.
Objects = list[Object]

# How the API server wants each kind of patch to be announced.
PATCH_TYPES = {
    "merge": "application/merge-patch+json",
    "json": "application/json-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "apply": "application/apply-patch+yaml",
}

ANY = "application/json, */*"
METADATA_ONLY = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"


class Api:
    """One cluster. Safe to share between threads.

    ``server`` is the URL, ``calls`` counts the requests made, ``timeout`` is how many seconds of silence a
    request bears. No request is made, tried again or waited for behind ``deadline`` (``time.monotonic``).
    """

    def __init__(self, client: Any, timeout: float = 15.0) -> None:
        self._client = client
        self._pool = client.rest_client.pool_manager
        self.server: str = client.configuration.host
        self.timeout = timeout
        self.deadline: float | None = None
        self.calls = 0
        self._lock = threading.Lock()

    @classmethod
    def connect(
        cls,
        kubeconfig: str | Path | None,
        context: str | None = None,
        *,
        timeout: float = 15.0,
        connections: int = 16,
    ) -> Api:
        """Read the credentials; does not call the server yet.

        Raises InputError where the file, the context or the exec plugin is missing, ToolError where a plugin
        gives no credentials. A plugin may take ``PLUGIN_LIMIT_S``: whoever has less time must not wait for this.
        """
        return cls(kubeconfig_file.client(kubeconfig, context, connections=connections), timeout)

    # -- one object ---------------------------------------------------------------------------------------

    def get(self, path: str, **query: Any) -> Object:
        """GET ``path`` (``/api/v1/nodes/gpu-0``); raises ApiError (``missing``) where it is absent."""
        return self._object("GET", path, query)

    def find(self, path: str, **query: Any) -> Object | None:
        """Like ``get``, but None where the object or its kind is absent."""
        try:
            return self.get(path, **query)
        except ApiError as error:
            if error.missing:
                return None
            raise

    def create(self, path: str, body: Object, **query: Any) -> Object:
        """POST ``body`` to the collection ``path``; raises ApiError (``conflict``) where it exists."""
        return self._object("POST", path, query, body)

    def replace(self, path: str, body: Object, **query: Any) -> Object:
        """PUT ``body``."""
        return self._object("PUT", path, query, body)

    def patch(self, path: str, body: Object | Objects, *, kind: str = "merge", **query: Any) -> Object:
        """PATCH; ``kind`` is a key of PATCH_TYPES. For ``apply`` give ``fieldManager`` (and ``force``)."""
        return self._object("PATCH", path, query, body, PATCH_TYPES[kind])

    def delete(self, path: str, *, propagation: str = "Background", missing_ok: bool = True) -> None:
        """DELETE, in the background by default; an absent object is fine unless ``missing_ok`` is false."""
        try:
            self._request("DELETE", path, {"propagationPolicy": propagation})
        except ApiError as error:
            if not (error.missing and missing_ok):
                raise

    # -- many ---------------------------------------------------------------------------------------------

    def list(self, path: str, **query: Any) -> Objects:
        """All items of a collection in one request, from the server's watch cache.

        ``kind`` and ``apiVersion``, which the server leaves out of list items, are filled in and
        ``managedFields`` taken out.
        """
        items, _ = self.list_with_version(path, **query)
        return items

    def list_metadata(self, path: str, **query: Any) -> Objects:
        """The metadata of all items of a collection; the server keeps the rest, such as what Secrets hold.

        A server that cannot do so answers 406, which raises ApiError.
        """
        query.setdefault("resourceVersion", "0")
        answer = self._object("GET", path, query, accept=METADATA_ONLY)
        items: Objects = answer.get("items") or []
        return items

    def list_with_version(self, path: str, **query: Any) -> tuple[Objects, str]:
        """The items, and the resourceVersion from which a watch goes on."""
        query.setdefault("resourceVersion", "0")
        answer = self._object("GET", path, query)
        kind = str(answer.get("kind", "")).removesuffix("List")
        items: Objects = answer.get("items") or []
        for item in items:
            item.setdefault("kind", kind)
            item.setdefault("apiVersion", answer.get("apiVersion", ""))
            item.get("metadata", {}).pop("managedFields", None)
        return items, answer.get("metadata", {}).get("resourceVersion", "")

    def watch(self, path: str, resource_version: str, *, seconds: int = 240, **query: Any) -> Iterator[Object]:
        """Watch events as dicts until the server ends the watch, at most ``seconds``."""
        query |= {"watch": "true", "resourceVersion": resource_version, "timeoutSeconds": seconds}
        query.setdefault("allowWatchBookmarks", "true")
        response = self._open("GET", path, query, read_timeout=seconds + 15)
        try:
            buffer = b""
            for chunk in response.stream(65536, decode_content=True):
                buffer += chunk
                while (end := buffer.find(b"\n")) >= 0:
                    line, buffer = buffer[:end], buffer[end + 1 :]
                    if line:
                        yield json.loads(line)
        except urllib3.exceptions.HTTPError as error:
            raise UnreachableError(f"the watch of {path} on {self.server} broke: {cause(error)}") from error
        finally:
            response.close()
            response.release_conn()

    def text(self, path: str, **query: Any) -> str:
        """GET a plain-text answer, such as a pod's log (``.../pods/NAME/log``)."""
        return self._request("GET", path, query).decode("utf-8", errors="replace")

    # -- the wire -----------------------------------------------------------------------------------------

    def _object(self, method: str, path: str, *more: Any, accept: str = ANY) -> Object:
        data = self._request(method, path, *more, accept=accept)
        try:
            answer = json.loads(data)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise UnreachableError(f"{self.server}{path} answered with something that is no API object; is it a proxy?")
        return answer

    def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any],
        body: Object | Objects | None = None,
        content_type: str = "application/json",
        *,
        accept: str = ANY,
    ) -> bytes:
        try:
            return self._body(self._open(method, path, query, body, content_type, accept=accept))
        except _BrokenError:
            # A load balancer may have dropped an idle connection. To read twice does no harm.
            if method != "GET":
                raise
        return self._body(self._open(method, path, query, body, content_type, accept=accept))

    def _open(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any],
        body: Object | Objects | None = None,
        content_type: str = "application/json",
        *,
        read_timeout: float | None = None,
        accept: str = ANY,
    ) -> Any:
        """The response, its body unread. What the server puts off with Retry-After is tried again in time."""
        wanted = {key: value for key, value in query.items() if value is not None}
        url = self.server + path + (f"?{urlencode(wanted)}" if wanted else "")
        data = json.dumps(body) if body is not None else None
        end = time.monotonic() + self.timeout
        if self.deadline is not None:
            end = min(end, self.deadline)
        while True:
            # One identity per request: token files and exec plugins are refreshed by the client here.
            headers: dict[str, str] = {"Accept": accept, "User-Agent": "gpuready"}
            self._client.update_params_for_auth(headers, [], ["BearerToken"], path, method, None)
            if data is not None:
                headers["Content-Type"] = content_type
            left = end - time.monotonic()
            if left <= 0:
                raise DeadlineError(f"the time was up before {method} {path} could be asked")
            response = self._send(method, url, headers, data, left, read_timeout or left)
            if response.status < 400:
                return response
            pause = _pause(response)
            answer = self._body(response)
            if pause is None or time.monotonic() + pause >= end:
                raise self._error_of(response.status, answer, method, path)
            time.sleep(pause)

    def _send(
        self, method: str, url: str, headers: dict[str, str], data: str | None, connect: float, read: float
    ) -> Any:
        with self._lock:
            self.calls += 1
        timeout = urllib3.Timeout(connect=connect, read=read)
        try:
            return self._pool.request(
                method, url, headers=headers, body=data, preload_content=False, retries=False, timeout=timeout
            )
        except urllib3.exceptions.NewConnectionError as error:  # it counts as a timeout in urllib3's tree
            raise UnreachableError(f"cannot reach the API server {self.server}: {cause(error)}") from error
        except urllib3.exceptions.ProxyError as error:
            proxy = without_secrets(str(self._client.configuration.proxy))
            text = f"cannot reach the API server {self.server} through the proxy {proxy}: {cause(error)}"
            raise UnreachableError(text) from error
        except urllib3.exceptions.TimeoutError as error:
            raise DeadlineError(f"{self.server} did not answer within {round(connect, 1):g} s") from error
        except urllib3.exceptions.SSLError as error:
            raise UnreachableError(refused_certificate(self.server, error)) from error
        except urllib3.exceptions.ProtocolError as error:
            raise _BrokenError(f"{self.server} broke the connection: {cause(error)}") from error
        except urllib3.exceptions.HTTPError as error:
            raise UnreachableError(f"cannot reach the API server {self.server}: {cause(error)}") from error

    def _body(self, response: Any) -> bytes:
        """The body, read as it comes, so that one that trickles ends at the deadline too."""
        parts: list[bytes] = []
        try:
            while part := response.read1(1 << 20, decode_content=True):
                parts.append(part)
                if self.deadline is not None and time.monotonic() > self.deadline:
                    raise DeadlineError(f"{self.server} was not done answering when the time was up")
            response.release_conn()
        except urllib3.exceptions.TimeoutError as error:
            raise DeadlineError(f"{self.server} stopped in the middle of an answer") from error
        except urllib3.exceptions.HTTPError as error:
            raise _BrokenError(f"{self.server} broke off in the middle of an answer: {cause(error)}") from error
        finally:
            response.close()
        return b"".join(parts)

    def _error_of(self, status: int, body: bytes, method: str, path: str) -> ApiError | UnreachableError:
        """The error that an HTTP status stands for: 429 and 5xx mean that the server cannot answer now."""
        if status == 401:
            why = _expired(self._client.configuration) or "they are wrong, or were revoked; log in again"
            return ApiError(f"{self.server} does not accept the credentials: {why} (HTTP 401)", status)
        try:
            found = json.loads(body)
            message = str(found.get("message", ""))
            if status == 429:
                # Which disruption budget it is stands among the causes alone.
                causes = (found.get("details") or {}).get("causes") or ()
                message = " ".join([message, *(str(one.get("message", "")) for one in causes)])
        except (ValueError, AttributeError):
            message = body.decode("utf-8", errors="replace")
        text = f"{method} {path}: {one_line(message) or 'no message'} (HTTP {status})"
        if status == 404 and path == "/version":
            text = f"{self.server} is no API server, or its path is wrong: {text}"
        if status == 500 and "typed patch object" in message:
            # How the server refuses a field that the kind does not have; asking again does not help.
            return ApiError(text, 422)
        return UnreachableError(text) if status == 429 or status >= 500 else ApiError(text, status)


class _BrokenError(UnreachableError):
    """The connection broke while the server was answering."""


def _pause(response: Any) -> float | None:
    """How many seconds the server asks us to wait; None where it does not ask."""
    asked = response.headers.get("Retry-After", "")
    wait = response.status == 429 or response.status >= 500
    return max(0.1, float(asked)) if wait and asked.isdigit() else None


def _expired(settings: Any) -> str:
    """Says which of the credentials is over; empty where none is, as far as can be seen from here."""
    now = datetime.now(UTC)
    token = str(settings.api_key.get("BearerToken") or "").removeprefix("Bearer ").split(".")
    if len(token) == 3:
        try:
            claims = json.loads(urlsafe_b64decode(token[1] + "=" * (-len(token[1]) % 4)))
            end = datetime.fromtimestamp(claims["exp"], UTC)
        except (ValueError, KeyError, TypeError):
            return ""
        return f"the token expired on {end:%Y-%m-%d %H:%M} UTC" if end < now else ""
    if settings.cert_file:
        from cryptography import x509

        try:
            end = x509.load_pem_x509_certificate(Path(settings.cert_file).read_bytes()).not_valid_after_utc
        except (OSError, ValueError):
            return ""
        return f"the client certificate expired on {end:%Y-%m-%d %H:%M} UTC" if end < now else ""
    return ""
