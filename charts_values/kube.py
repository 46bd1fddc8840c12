"""The edge to the Kubernetes API: plain dicts in and out, one error tree, every call with a deadline.

The official client finds the credentials (kubeconfig, contexts, exec plugins, client certificates, token
refresh) and keeps the connections. Objects stay the dicts that the API sent: a bundle must hold what was
seen, not what a model class made of it, and 1,000 nodes must not be parsed into model classes.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import urllib3

from .errors import ApiError, DeadlineError, InputError, UnreachableError

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


class Api:
    """One cluster. Safe to share between threads.

    ``server`` is the URL, ``calls`` counts the requests made, ``timeout`` bounds each request in seconds.
    """

    def __init__(self, client: Any, timeout: float = 15.0) -> None:
        self._client = client
        self._pool = client.rest_client.pool_manager
        self.server: str = client.configuration.host
        self.timeout = timeout
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

        Raises InputError where the file, the context or the exec plugin is missing.
        """
        from kubernetes import client, config
        from kubernetes.config.config_exception import ConfigException

        if kubeconfig is not None and not Path(kubeconfig).expanduser().is_file():
            raise InputError(f"kubeconfig {kubeconfig} does not exist; give another with --kubeconfig")
        settings = client.Configuration()
        settings.connection_pool_maxsize = connections
        try:
            config.load_kube_config(
                config_file=str(Path(kubeconfig).expanduser()) if kubeconfig else None,
                context=context,
                client_configuration=settings,
                persist_config=False,
            )
        except ConfigException as error:
            where = kubeconfig or "the default kubeconfig"
            raise InputError(f"cannot use {where}: {_one_line(str(error))}") from error
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{kubeconfig or 'the default kubeconfig'} is not a kubeconfig: {error}") from error
        return cls(client.ApiClient(settings), timeout)

    # -- one object ---------------------------------------------------------------------------------------

    def get(self, path: str, **query: Any) -> Object:
        """GET ``path`` (``/api/v1/nodes/gpu-0``); raises ApiError (``missing``) where it is absent."""
        found: Object = json.loads(self._request("GET", path, query))
        return found

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
        made: Object = json.loads(self._request("POST", path, query, body))
        return made

    def replace(self, path: str, body: Object, **query: Any) -> Object:
        """PUT ``body``."""
        made: Object = json.loads(self._request("PUT", path, query, body))
        return made

    def patch(self, path: str, body: Object | Objects, *, kind: str = "merge", **query: Any) -> Object:
        """PATCH; ``kind`` is a key of PATCH_TYPES. For ``apply`` give ``fieldManager`` (and ``force``)."""
        done: Object = json.loads(self._request("PATCH", path, query, body, PATCH_TYPES[kind]))
        return done

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

    def list_with_version(self, path: str, **query: Any) -> tuple[Objects, str]:
        """The items, and the resourceVersion from which a watch goes on."""
        query.setdefault("resourceVersion", "0")
        answer = json.loads(self._request("GET", path, query))
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
            raise UnreachableError(f"the watch of {path} on {self.server} broke: {_cause(error)}") from error
        finally:
            response.close()
            response.release_conn()

    def text(self, path: str, **query: Any) -> str:
        """GET a plain-text answer, such as a pod's log (``.../pods/NAME/log``)."""
        return self._request("GET", path, query).decode("utf-8", errors="replace")

    # -- the wire -----------------------------------------------------------------------------------------

    def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any],
        body: Object | Objects | None = None,
        content_type: str = "application/json",
    ) -> bytes:
        response = self._open(method, path, query, body, content_type)
        try:
            data: bytes = response.read(decode_content=True)
        except urllib3.exceptions.HTTPError as error:
            raise UnreachableError(f"{self.server} stopped answering: {_cause(error)}") from error
        finally:
            response.release_conn()
        return data

    def _open(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any],
        body: Object | Objects | None = None,
        content_type: str = "application/json",
        *,
        read_timeout: float | None = None,
    ) -> Any:
        with self._lock:
            self.calls += 1
        # One identity per request: token files and exec plugins are refreshed by the client here.
        headers: dict[str, str] = {"Accept": "application/json, */*", "User-Agent": "gpuready"}
        self._client.update_params_for_auth(headers, [], ["BearerToken"], path, method, None)
        if body is not None:
            headers["Content-Type"] = content_type
        wanted = {key: value for key, value in query.items() if value is not None}
        url = self.server + path + (f"?{urlencode(wanted)}" if wanted else "")
        try:
            response = self._pool.request(
                method,
                url,
                headers=headers,
                body=json.dumps(body) if body is not None else None,
                preload_content=False,
                retries=False,
                timeout=urllib3.Timeout(connect=self.timeout, read=read_timeout or self.timeout),
            )
        except urllib3.exceptions.NewConnectionError as error:  # it counts as a timeout in urllib3's tree
            raise UnreachableError(f"cannot reach the API server {self.server}: {_cause(error)}") from error
        except urllib3.exceptions.TimeoutError as error:
            raise DeadlineError(f"{self.server} did not answer within {self.timeout:g} s") from error
        except urllib3.exceptions.HTTPError as error:
            raise UnreachableError(f"cannot reach the API server {self.server}: {_cause(error)}") from error
        if response.status >= 400:
            with response:
                raise _error_of(response.status, response.read(decode_content=True), method, path)
        return response


def _error_of(status: int, body: bytes, method: str, path: str) -> ApiError | UnreachableError:
    """The error that an HTTP status stands for: 429, 502, 503 and 504 mean that the server cannot answer now."""
    try:
        message = str(json.loads(body).get("message", ""))
    except (ValueError, AttributeError):
        message = body.decode("utf-8", errors="replace")
    text = f"{method} {path}: {_one_line(message) or 'no message'} (HTTP {status})"
    return UnreachableError(text) if status in (429, 502, 503, 504) else ApiError(text, status)


def _cause(error: BaseException) -> str:
    """The innermost reason of a urllib3 error, on one line."""
    reason = getattr(error, "reason", None) or error
    return _one_line(str(reason).rpartition(">: ")[2] or str(reason))


def _one_line(text: str) -> str:
    return " ".join(text.split())[:400]
