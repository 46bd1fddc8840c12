"""Asks single machines what they are, over SSH: one connection each, read-only, by the probe that is sent along."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from gpuready.charts_values.errors import ApiError, GpureadyError, InputError, RefusedError, ToolError, UnreachableError
from gpuready.charts_values.kube import Api

from .. import fanout, machines, probe
from ..evidence import Evidence, ReadFailure
from ..machines import FILES

_CONNECT_SECONDS = 8
# Each is a process that mostly waits.
_WORKERS = 48
_SILENT_SECONDS = 4
# What ssh says, and what it means; the first that is found counts.
_REFUSED = (
    (r"host key verification failed", "its host key is not known, or another; compare it and correct known_hosts"),
    (r"permission denied \(|too many auth", "it accepts none of the keys; correct ssh_user and ssh_key"),
    (r"identity file .* not accessible|load key .*: ", "the key of ssh_key cannot be used"),
    (r"sudo: .*(password|terminal|not allowed|may not)", "sudo wants a password; allow it without, or log in as root"),
    (r"not in the sudoers", "its user may not use sudo; allow it, or log in as root"),
    (r"python3: (command )?not found|python3: no such file", "it has no python3; install Python 3.6 or newer"),
    (r"sudo: (command )?not found", "it has no sudo; log in as root, or install it"),
)  # fmt: skip


def collect(
    evidence: Evidence,
    ssh_nodes: Mapping[str, Mapping[str, Any]],
    until: float,
    *,
    api: Api | None = None,
    on_read: Callable[[str], None] = lambda key: None,
) -> None:
    """Add the probes of machines to ``evidence``, and with ``api`` what their running kubelets are set to.

    It ends ``until`` then (``time.monotonic``); a machine that gave nothing by then is a failure of its own, as is
    one that refuses. Ctrl-C ends it, too, and is noted as ``about["interrupted"]``.
    """
    if not ssh_nodes:
        return
    running = _Running()
    calls: dict[str, Callable[[], str]] = {}
    for name, data in ssh_nodes.items():
        calls[machines.probe_key(name)] = partial(_probe, running, name, data, until)
        if api is not None:
            calls[machines.config_key(name)] = partial(_config, api, name)
    late = ReadFailure("unreachable", f"no answer within {max(0.0, until - time.monotonic()):.0f} s")
    evidence.failures |= dict.fromkeys(calls, late)
    try:
        for key, outcome in fanout.outcomes(calls, until, _WORKERS):
            _, name, file = key.split("/")
            if isinstance(outcome, GpureadyError):
                evidence.failures[key] = _failure(outcome)
            else:
                evidence.nodes.setdefault(name, {})[file] = outcome
                del evidence.failures[key]
            on_read(key)
    except KeyboardInterrupt:
        evidence.about["interrupted"] = True
        for key in calls:
            if evidence.failures.get(key) is late:
                evidence.failures[key] = ReadFailure("interrupted", "Ctrl-C came before the answer")
    finally:
        running.end()


def command(name: str, data: Mapping[str, Any], files: Iterable[str] = FILES) -> list[str]:
    """The ssh command that runs the probe of its standard input on a machine, by inventory's data for it.

    Raises InputError where a value of theirs cannot be meant.
    """
    sudo = ["sudo", "-n"] if needs_sudo(data) else []
    asked = [part for path in files for part in ("--file", path)]
    return ["ssh", *options(data), "--", host(name, data), shlex.join([*sudo, "python3", "-", *asked])]


def host(name: str, data: Mapping[str, Any]) -> str:
    """Where a machine is reached; raises InputError where that cannot be meant."""
    found, user = str(data.get("ssh_hostname") or name), str(data.get("ssh_user") or "")
    if found.startswith("-") or user.startswith("-"):
        raise InputError(f"ssh_nodes, {name}: {found!r} is no host name")
    return found


def needs_sudo(data: Mapping[str, Any]) -> bool:
    """Whether root is had by sudo."""
    return bool(data.get("_sudo")) and data.get("ssh_user") != "root"


def options(data: Mapping[str, Any]) -> list[str]:
    """The options of ssh for a machine; nobody is asked, and nothing is written here. Earlier ones win over them."""
    checking = str(data.get("ssh_strict_host_key_checking") or "yes")
    chosen = {
        "BatchMode": "yes",
        "ConnectTimeout": str(_CONNECT_SECONDS),
        "ServerAliveInterval": str(_SILENT_SECONDS),
        "ServerAliveCountMax": "2",
        # `accept-new` of pyinfra would write to known_hosts.
        "StrictHostKeyChecking": "no" if checking in ("no", "off") else "yes",
        "UpdateHostKeys": "no",
        "ControlMaster": "no",
        "ClearAllForwardings": "yes",
        "ForwardAgent": "no",
        "LogLevel": "ERROR",
    }
    if known := data.get("ssh_known_hosts_file"):
        path = str(known).replace("%", "%%")
        chosen |= {"UserKnownHostsFile": f'"{path}"', "GlobalKnownHostsFile": "none"}
    elif checking in ("no", "off"):
        chosen["UserKnownHostsFile"] = "/dev/null"
    out = ["-T", *(part for key, value in chosen.items() for part in ("-o", f"{key}={value}"))]
    if config := data.get("ssh_config_file"):
        out += ["-F", str(config)]
    if key := data.get("ssh_key"):
        out += ["-o", "IdentitiesOnly=yes", "-i", str(key)]
    if port := data.get("ssh_port"):
        out += ["-p", str(port)]
    if user := data.get("ssh_user"):
        out += ["-l", str(user)]
    return out


class _Running:
    """The ssh processes that run, so that none outlives the command."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._alive: set[subprocess.Popen[bytes]] = set()
        self._over = False

    def start(self, argv: list[str]) -> subprocess.Popen[bytes]:
        """Start a process; raises UnreachableError once it is over."""
        with self._lock:
            if self._over:
                raise UnreachableError("no time was left to ask it")
            pipe = subprocess.PIPE
            process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe)
            self._alive.add(process)
            return process

    def ended(self, process: subprocess.Popen[bytes]) -> None:
        """It needs no looking after any more."""
        with self._lock:
            self._alive.discard(process)

    def end(self) -> None:
        """End those that still run."""
        with self._lock:
            self._over = True
            for process in self._alive:
                process.kill()


def _probe(running: _Running, name: str, data: Mapping[str, Any], until: float) -> str:
    script = Path(probe.__file__).read_bytes()
    try:
        process = running.start(command(name, data))
    except FileNotFoundError:
        raise ToolError("the machine that gpuready runs on has no ssh; install openssh-client") from None
    try:
        out, err = process.communicate(script, timeout=max(0.1, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise UnreachableError("it did not answer in time") from None
    finally:
        running.ended(process)
    text = out.decode(errors="replace")
    if process.returncode == 0 and machines.read(text) is not None:
        return text if text.startswith("{") else text.rstrip().rpartition("\n")[2] + "\n"
    raise _why(process.returncode, err.decode(errors="replace"), text)


def _why(code: int, errors: str, output: str) -> GpureadyError:
    """What kept the probe from running, on one line."""
    for pattern, meaning in _REFUSED:
        if re.search(pattern, errors, re.IGNORECASE):
            return RefusedError(meaning)
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    said = lines[-1][:200] if lines else "no word"
    if code == 255:
        return UnreachableError(f"SSH: {said}")
    if code == 0:
        return ToolError(f"what it printed is no probe: {' '.join(output.split())[:80] or 'nothing'}")
    return ToolError(f"the probe ended with exit {code}: {said}")


def _config(api: Api, name: str) -> str:
    return json.dumps(api.get(f"/api/v1/nodes/{name}/proxy/configz"), indent=1, sort_keys=True) + "\n"


def _failure(error: GpureadyError) -> ReadFailure:
    if isinstance(error, ApiError):
        kind = "absent" if error.missing else "forbidden" if error.forbidden else "unreachable"
        return ReadFailure(kind, str(error))
    refused = isinstance(error, (RefusedError, ToolError, InputError))
    return ReadFailure("refused" if refused else "unreachable", str(error))
