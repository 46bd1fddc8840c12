"""The edge to Helm: pyhelm3 over a plain subprocess, its errors and its text made ours.

pyhelm3 runs helm through an asyncio shell. pyinfra runs on gevent, where event loops break, so a Command of
our own runs the binary directly. As nothing in it ever suspends, pyhelm3's coroutines end at their first step.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import semver
import yaml
from gpuready.charts_values.bill import Release
from gpuready.charts_values.errors import DeadlineError, GpureadyError, InputError, ToolError
from gpuready.charts_values.inventory import STATE_FILE, Cluster
from pyhelm3 import Client, Command
from pyhelm3 import errors as helm_errors

T = TypeVar("T")
Values = dict[str, Any]

READ_LIMIT_S = 60
PULL_LIMIT_S = 300
# Hooks run inside helm's call; the wait for what the release is for comes after it, with its own deadline.
WRITE_LIMIT_S = 600
GRACE_S = 5.0
PENDING = ("pending-install", "pending-upgrade", "pending-rollback")
_GOOD = ("deployed", "superseded")
_OLDEST = semver.Version(3, 8, 0)
_SERVER_SIDE = semver.Version(4, 0, 0)
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
# The head of a line of klog, by which client-go inside helm speaks: a letter, then month and day.
_KLOG = re.compile(r"[IWEF]\d{4} ")
_WHERE_FROM = "https://helm.sh/docs/intro/install/"


@dataclass(frozen=True)
class Installed:
    """The newest revision of a release, as the cluster has it. ``chart`` is ``name-version``."""

    name: str
    namespace: str
    revision: int
    status: str
    chart: str


class Helm:
    """helm for one cluster. Every call raises only errors of gpuready.charts_values.errors."""

    def __init__(self, binary: Path, kubeconfig: str | None, context: str | None) -> None:
        self.binary = binary
        self._command = _Subprocess(
            executable=str(binary),
            kubeconfig=Path(kubeconfig).expanduser() if kubeconfig else None,
            kubecontext=context,
            default_timeout=f"{WRITE_LIMIT_S}s",
        )
        self._client = Client(self._command, executable=str(binary))
        if self._client.version < _OLDEST:
            raise ToolError(f"{binary} is helm {self._client.version}; gpuready needs {_OLDEST} or newer")

    @classmethod
    def connect(cls, cluster: Cluster) -> Helm:
        """helm with the cluster's kubeconfig and context; raises InputError where there is no helm."""
        return cls(find(cluster), cluster.kubeconfig, cluster.context)

    def releases(self) -> dict[tuple[str, str], Installed]:
        """All releases of the cluster in whatever state, by namespace and name."""
        rows = _wait(
            self._client.list_release_definitions(
                all_namespaces=True,
                include_failed=True,
                include_pending=True,
                include_uninstalling=True,
                max_releases=10_000,
            )
        )
        found = (
            Installed(row["name"], row["namespace"], int(row["revision"]), row["status"], row["chart"]) for row in rows
        )
        return {(one.namespace, one.name): one for one in found}

    def values(self, installed: Installed) -> Values:
        """The user values of a release's revision."""
        where = {"namespace": installed.namespace, "revision": installed.revision}
        return dict(_wait(self._command.get_values(installed.name, **where)))

    def manifest(self, installed: Installed) -> list[Values]:
        """The objects of a release's revision, as the chart rendered them; hooks are not among them."""
        where = {"namespace": installed.namespace, "revision": installed.revision}
        return _objects(_wait(self._command.get_resources(installed.name, **where)))

    def last_good(self, installed: Installed) -> Installed | None:
        """The newest revision that was once deployed; None where there is none."""
        rows = _wait(self._command.history(installed.name, namespace=installed.namespace))
        good = [row for row in rows if row["status"] in _GOOD]
        if not good:
            return None
        row = max(good, key=lambda one: int(one["revision"]))
        return Installed(installed.name, installed.namespace, int(row["revision"]), "deployed", row["chart"])

    def render(self, release: Release, chart: Path, values: Values) -> list[Values]:
        """What an upgrade to this chart with these values would make; nothing is asked of the cluster."""
        return _objects(
            _wait(
                self._command.template(
                    release.name, chart, values, namespace=release.namespace, is_upgrade=True, no_hooks=True
                )
            )
        )

    def install(self, release: Release, chart: Path, values: Values) -> None:
        """Install or upgrade; hooks are waited for, workloads are not."""
        found = _wait(self._client.get_chart(chart))
        _wait(
            self._client.install_or_upgrade_release(
                release.name,
                found,
                values,
                namespace=release.namespace,
                create_namespace=False,
                force_conflicts=self._server_side(),
            )
        )

    def settle(self, installed: Installed) -> int:
        """Take a release out of a pending state by rolling back; returns the revision that was chosen.

        The last one that was deployed, else the interrupted one itself: its objects are completed, and
        nothing is uninstalled.
        """
        good = self.last_good(installed)
        revision = good.revision if good else installed.revision
        # pyhelm3's rollback does not know of conflicts.
        arguments = ["rollback", installed.name, str(revision), "--namespace", installed.namespace]
        arguments += ["--timeout", f"{WRITE_LIMIT_S}s", *(["--force-conflicts"] if self._server_side() else [])]
        self._command.call(arguments)
        return revision

    def _server_side(self) -> bool:
        """Whether this helm applies on the server, where who edited a field by hand would stop its next upgrade."""
        return bool(self._client.version >= _SERVER_SIDE)

    def pull(self, release: Release, folder: Path) -> Path:
        """Download the packaged chart into ``folder``; returns the archive."""
        oci = release.repository.startswith("oci://")
        reference = f"{release.repository}/{release.chart}" if oci else release.chart
        arguments = ["pull", reference, "--version", release.version, "--destination", str(folder)]
        if not oci:
            arguments += ["--repo", release.repository]
        try:
            # An own folder: helm prefers a folder of the chart's name in the current one to the repository.
            self._command.call(arguments, cwd=folder)
        except ToolError as error:
            raise ToolError(
                f"{release.title}: chart {release.chart} {release.version} cannot be had from "
                f"{release.repository}: {error}; on a closed network name a folder of charts "
                "in $GPUREADY_CHARTS or in inventory's `charts`"
            ) from error
        return next(iter(sorted(folder.glob("*.tgz"))))


def _objects(documents: Iterable[Any]) -> list[Values]:
    try:
        return [one for one in documents if isinstance(one, dict)]
    except yaml.YAMLError as error:
        raise ToolError(f"helm printed what is no YAML: {' '.join(str(error).split())}") from error


def find(cluster: Cluster) -> Path:
    """The helm binary: the rehearsal's own, else $GPUREADY_BIN, else PATH; raises InputError."""
    looked: list[str] = []
    if cluster.rehearsal and cluster.state_dir:
        folder = _engine_folder(Path(cluster.state_dir) / STATE_FILE)
        if folder is not None:
            looked.append(str(folder))
    if own := os.environ.get("GPUREADY_BIN"):
        looked.append(own)
    for folder_name in looked:
        if found := shutil.which("helm", path=folder_name):
            return Path(found).resolve()
    if found := shutil.which("helm"):
        return Path(found).resolve()
    for folder_name in looked:
        if (found_file := Path(folder_name) / "helm").is_file():
            raise InputError(f"{found_file} is not executable; make it so: chmod +x {found_file}")
    places = ", ".join([*looked, "PATH"])
    raise InputError(f"helm is missing (looked in {places}); install it: {_WHERE_FROM}, or set $GPUREADY_BIN")


class _Subprocess(Command):  # type: ignore[misc]
    """Runs helm without a shell, an event loop or a hang: the whole process group ends at the limit."""

    async def run(self, command: list[Any], input: bytes | None = None) -> bytes:
        """pyhelm3's seam; its name and arguments are fixed there."""
        return self.call(command, input)

    def call(self, command: list[Any], stdin: bytes | None = None, cwd: Path | None = None) -> bytes:
        """Run helm; returns its stdout.

        Raises ReleaseNotFoundError for an absent release, DeadlineError at the limit, else ToolError.
        """
        words = [self._executable, *map(str, command)]
        if self._kubeconfig:
            words += ["--kubeconfig", str(self._kubeconfig)]
        if self._kubecontext:
            words += ["--kube-context", self._kubecontext]
        limit = _limit(command[0])
        try:
            process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=cwd,
                env=_environment(),
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        except OSError as error:
            raise ToolError(f"{self._executable} cannot be run: {error.strerror}") from error
        try:
            out, complaint = process.communicate(stdin, timeout=limit)
        except subprocess.TimeoutExpired:
            raise DeadlineError(f"helm {command[0]} did not end within {limit:g} s") from None
        finally:
            _end(process)
        if process.returncode == 0:
            return out
        message = _one_line(complaint) or f"exit {process.returncode}"
        if "release: not found" in message.lower():
            raise helm_errors.ReleaseNotFoundError(process.returncode, out, complaint)
        raise ToolError(f"helm {command[0]}: {message}")

    def client_version(self) -> semver.Version:
        """The version of the binary."""
        said = self.call(["version", "--template", "{{ .Version }}"]).decode().strip()
        try:
            return semver.Version.parse(said.removeprefix("v"))
        except ValueError as error:
            raise ToolError(
                f"{self._executable} calls itself {said!r}, which is no full version; use an official build"
            ) from error


def _wait(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a pyhelm3 coroutine over _Subprocess; foreign errors become ours."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    except GpureadyError:
        raise
    except helm_errors.Error as error:
        raise ToolError(f"helm: {_one_line(error.stderr)}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ToolError(f"helm printed what cannot be read: {_one_line(str(error).encode())}") from error
    coroutine.close()
    raise ToolError("helm: pyhelm3 waits for an event loop; this version of it does not go with gpuready")


def _die_with_parent() -> None:
    """In the child: ask for SIGTERM when this process is killed, so that no helm works on behind the next run."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End helm with its children. Asked to stop, it records the release as failed before it goes."""
    for sign, seconds in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, None)):
        if process.poll() is not None:
            return
        os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=seconds)


def _limit(verb: str) -> float:
    """Seconds for a helm command; for writes a little more than helm gives itself."""
    if verb in ("upgrade", "rollback"):
        return WRITE_LIMIT_S + 30
    return PULL_LIMIT_S if verb in ("pull", "show") else READ_LIMIT_S


def _environment() -> dict[str, str]:
    """Ours, less what would send helm to another cluster or as another user than the inventory says."""
    return {
        key: value
        for key, value in os.environ.items()
        if not key.startswith("HELM_KUBE") and key not in ("HELM_NAMESPACE", "HELM_DEBUG")
    }


def _engine_folder(state: Path) -> Path | None:
    try:
        return Path(json.loads(state.read_text())["bin"])
    except (OSError, ValueError, KeyError):
        return None


def _one_line(text: bytes) -> str:
    """What helm complains of, without its warnings, on one line."""
    lines = [line.strip() for line in text.decode(errors="replace").splitlines()]
    kept = [line for line in lines if line and not (line.startswith(("WARNING", "level=WARN")) or _KLOG.match(line))]
    return " ".join(" ".join(kept or lines).split()).removeprefix("Error: ")[:600]
