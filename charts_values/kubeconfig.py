"""The edge to kubeconfig files: which cluster, whose credentials, and what is wrong with them in one line.

The official client reads the files (contexts, exec plugins, client certificates, token refresh). What it says
of a file that it cannot use is about its own code; `_complaint` looks again, and says what a person can mend.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import urllib3
import yaml

from .causes import one_line, without_secrets
from .errors import InputError, ToolError

# Seconds that an exec plugin may take: a person may be logging in.
PLUGIN_LIMIT_S = 120.0
_GRACE_S = 2.0
_DEFAULT = "~/.kube/config"
_FETCH = "fetch it again from where you got it"


def client(kubeconfig: str | Path | None, context: str | None, *, connections: int) -> Any:
    """The official client with the credentials of a kubeconfig; it has called nothing yet but an exec plugin.

    Raises InputError where the file, the context or what they name cannot be used, ToolError where an exec
    plugin gives no credentials; one that takes more than ``PLUGIN_LIMIT_S`` is ended.
    """
    from kubernetes import client as official
    from kubernetes import config
    from kubernetes.config import exec_provider
    from kubernetes.config.config_exception import ConfigException

    # It waits for a plugin without end, now and whenever it renews a token, and takes no limit.
    exec_provider.subprocess = _Bounded  # type: ignore[attr-defined, assignment]

    files, where = _files(kubeconfig)
    if not files:
        raise InputError(f"{where} does not exist; name another in inventory or with --kubeconfig")
    settings = official.Configuration()
    settings.connection_pool_maxsize = connections
    try:
        with _complaints() as told:
            config.load_kube_config(os.pathsep.join(map(str, files)), context, settings, persist_config=False)
    except (ConfigException, OSError, ValueError, TypeError, AttributeError, KeyError, yaml.YAMLError) as error:
        raise InputError(_complaint(files, where, context) or f"{where} {_reason(error)}") from error
    if told and not (settings.api_key or settings.cert_file):
        if absent := re.search(r"No such file or directory: '(.+)'", told[-1]):
            raise InputError(f"{where} needs the program {absent[1]!r} (exec plugin), which is not installed")
        late = told[-1].startswith("within ")
        raise ToolError(f"{where}: its exec plugin gave no credentials{' ' if late else ': '}{one_line(told[-1])}")
    _require_usable(settings, where, context or _current(files))
    return _opened(official, settings, where)


class _Plugin(subprocess.Popen[str]):
    """An exec plugin, which is ended at the limit."""

    def communicate(self, input: str | None = None, timeout: float | None = None) -> tuple[str, str]:
        """What it prints; raises TimeoutError at the limit."""
        limit = PLUGIN_LIMIT_S if timeout is None else timeout
        try:
            return super().communicate(input, limit)
        except subprocess.TimeoutExpired:
            self.terminate()
            try:
                self.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                self.kill()
                self.wait()
            for pipe in (self.stdout, self.stderr):
                if pipe:
                    pipe.close()
            raise TimeoutError(f"within {limit:g} s") from None


class _Bounded:
    """What the official client takes from the module subprocess."""

    Popen, PIPE = _Plugin, subprocess.PIPE


def _files(kubeconfig: str | Path | None) -> tuple[list[Path], str]:
    """The files that are merged, and what to call them. Of several, those that are absent or empty do not count."""
    if kubeconfig:
        files, where = [Path(kubeconfig).expanduser()], f"kubeconfig {kubeconfig}"
    else:
        given = os.environ.get("KUBECONFIG")
        files = [Path(one).expanduser() for one in (given or _DEFAULT).split(os.pathsep) if one]
        where = f"$KUBECONFIG ({given})" if given else f"the default kubeconfig {_DEFAULT}"
    there = [file for file in files if _size(file) is not None]
    return [file for file in there if _size(file)] or there[:1], where


def _size(file: Path) -> int | None:
    """Bytes; None where it is absent, 1 where that may not be known."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return None
    except OSError:
        return 1


def _complaint(files: list[Path], where: str, context: str | None) -> str:
    """What a person can mend about files that cannot be used; empty where nothing is found."""
    merged: dict[str, dict[str, Any]] = {"contexts": {}, "clusters": {}, "users": {}}
    for file in files:
        try:
            table = yaml.safe_load(file.read_text(encoding="utf-8"))
        except IsADirectoryError:
            return f"kubeconfig {file} is a folder, not a file; name the file in it"
        except OSError as error:
            return f"cannot read kubeconfig {file}: {error.strerror}"
        except (ValueError, yaml.YAMLError) as error:
            return f"kubeconfig {file} is no YAML{_place(error)}; {_FETCH}"
        if not table:
            return f"kubeconfig {file} is empty; {_FETCH}"
        if not isinstance(table, dict):
            return f"kubeconfig {file} is not a kubeconfig; {_FETCH}"
        for key, found in merged.items():
            for one in table.get(key) or ():
                if isinstance(one, dict) and "name" in one:
                    found.setdefault(str(one["name"]), one)
    names = ", ".join(sorted(merged["contexts"])) or "none"
    current = context or _current(files)
    if not current:
        return f"{where} names no current context; give --context, one of: {names}"
    if current not in merged["contexts"]:
        told = "has no context" if context else "has a current-context that it does not define:"
        return f"{where} {told} {current!r}; it has {names}"
    names_of = merged["contexts"][current].get("context") or {}
    cluster, user = names_of.get("cluster"), merged["users"].get(str(names_of.get("user"))) or {}
    if cluster not in merged["clusters"]:
        return f"{where}: context {current!r} is of cluster {cluster!r}, which the file does not define; {_FETCH}"
    if "auth-provider" in (user.get("user") or {}):
        return f"{where}: its user has an auth-provider that is not supported; use an exec plugin"
    return ""


def _reason(error: Exception) -> str:
    """What the client says of a file in which nothing else is wrong."""
    absent = error.filename if isinstance(error, FileNotFoundError) else None
    if found := re.match(r"File does not exist: (.+)", str(error)):
        absent = found[1]
    return f"names the file {absent}, which does not exist" if absent else f"cannot be used: {one_line(str(error))}"


def _current(files: list[Path]) -> str:
    """The current context of the first file that names one."""
    for file in files:
        try:
            table = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            continue
        if isinstance(table, dict) and table.get("current-context"):
            return str(table["current-context"])
    return ""


def _place(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    return f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""


def _require_usable(settings: Any, where: str, context: str) -> None:
    """Refuse what would only fail later, and then look like a fault of the cluster."""
    try:
        url = urlsplit(settings.host or "")
        usable = url.scheme in ("https", "http") and bool(url.hostname) and url.port != 0
    except ValueError:
        usable = False
    if not usable:
        text = f"context {context!r} has the server {settings.host!r}, which is no URL like https://host:6443"
        raise InputError(f"{where}: {text}")
    known = settings.api_key or settings.cert_file or settings.username
    if url.scheme == "https" and not known:
        raise InputError(
            f"{where}: context {context!r} has no credentials: no token, certificate or plugin of its user"
        )


def _opened(official: Any, settings: Any, where: str) -> Any:
    """The client itself, which looks at the proxy now."""
    if not settings.verify_ssl:
        # The kubeconfig's owner asked for it (insecure-skip-tls-verify); a warning per request helps nobody.
        warnings.filterwarnings("ignore", category=urllib3.exceptions.InsecureRequestWarning)
    proxy = without_secrets(str(settings.proxy or ""))
    try:
        return official.ApiClient(settings)
    except ImportError as error:
        raise InputError(f"{where}: proxy-url {proxy} needs the Python package {error.name}; install it") from error
    except (urllib3.exceptions.HTTPError, ValueError) as error:
        text = f"proxy-url {proxy!r} cannot be used" if proxy else "its certificates cannot be used"
        raise InputError(f"{where}: {text}: {one_line(str(error))}") from error


@contextmanager
def _complaints() -> Iterator[list[str]]:
    """What the official client logs in place of raising; kept from stderr."""
    told: list[str] = []
    keeper = logging.Handler(logging.ERROR)
    keeper.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    logging.root.addHandler(keeper)
    try:
        yield told
    finally:
        logging.root.removeHandler(keeper)
