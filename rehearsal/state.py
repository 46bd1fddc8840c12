"""The state folder of a rehearsal cluster: what runs, where, and since when.

``state.json`` is written atomically after every step, so that a killed `up` leaves a true record. A folder is
ours, and may be emptied, only where it holds that file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpuready.charts_values.errors import DeadlineError, InputError, RefusedError, ToolError
from gpuready.charts_values.inventory import STATE_FILE, STATE_SCHEMA

from .machines.plan import Plan
from .processes import Process

_HALF_WRITTEN = STATE_FILE + ".new"
_MEMORY = Path("/dev/shm")
# Containers often get 64 MiB of it, which is less than etcd's first log file.
_ROOM = 1 << 30
_LEAST = 96 << 20


@dataclass(frozen=True)
class State:
    """What ``state.json`` says.

    ``entry`` is the cluster's inventory entry, None until `up` has finished; ``ports`` are those of the
    components, on 127.0.0.1; ``data`` is where etcd keeps its data; ``leash`` is the process that ends the
    cluster together with its owner; ``machines`` are the test machines, where there are any.
    """

    folder: Path
    profile: str
    nodes: tuple[str, ...]
    ports: Mapping[str, int]
    data: Path
    uid: str = ""
    entry: Mapping[str, Any] | None = None
    processes: Mapping[str, Process] = field(default_factory=dict)
    leash: Process | None = None
    machines: Plan | None = None

    @property
    def server(self) -> str:
        """The URL of the API server."""
        return f"https://127.0.0.1:{self.ports['kube-apiserver']}"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's credentials."""
        return self.folder / "kubeconfig"

    @property
    def bin(self) -> Path:
        """The folder that holds the engine's programs, helm among them."""
        return self.folder / "bin"

    def credentials(self, component: str) -> Path:
        """The kubeconfig of a component, such as ``actors``."""
        return self.folder / "components" / f"{component}.kubeconfig"

    def log(self, component: str) -> Path:
        """The log of a component."""
        return self.folder / "components" / f"{component}.log"

    def dead(self) -> list[str]:
        """The components that should run and do not."""
        return [name for name, process in self.processes.items() if not process.alive]

    def with_process(self, name: str, process: Process) -> State:
        """A copy that knows one more process."""
        return dataclasses.replace(self, processes={**self.processes, name: process})

    def save(self) -> None:
        """Write ``state.json``, at once and as a whole."""
        value = {
            "schema": STATE_SCHEMA,
            "uid": self.uid,
            "server": self.server,
            "kubeconfig": str(self.kubeconfig),
            "profile": self.profile,
            "nodes": list(self.nodes),
            "bin": str(self.bin),
            "data": str(self.data),
            "ports": dict(self.ports),
            "processes": {
                name: {"pid": process.pid, "started": process.started, "port": self.ports.get(name)}
                for name, process in self.processes.items()
            },
            "leash": dataclasses.asdict(self.leash) if self.leash else None,
        }
        if self.machines:
            value["machines"] = self.machines.record()
        if self.entry is not None:
            value["entry"] = dict(self.entry)
        new = self.folder / _HALF_WRITTEN
        new.write_text(json.dumps(value, indent=1) + "\n")
        new.replace(self.folder / STATE_FILE)


def load(folder: Path) -> State | None:
    """The state, or None where the folder holds none.

    Raises InputError where ``state.json`` cannot be read.
    """
    folder = folder.resolve()
    file = folder / STATE_FILE
    try:
        value = json.loads(file.read_text())
        return State(
            folder=folder,
            profile=value["profile"],
            nodes=tuple(value["nodes"]),
            ports=value["ports"],
            data=Path(value["data"]),
            uid=value["uid"],
            entry=value.get("entry"),
            processes={name: Process(one["pid"], one["started"]) for name, one in value["processes"].items()},
            leash=Process(**value["leash"]) if value["leash"] else None,
            machines=Plan.of(folder, value["machines"]) if "machines" in value else None,
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        raise InputError(f"cannot read {file}: {error.strerror}; it is another user's, give --state-dir") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file} is damaged ({error}); mend it with: gpuready rehearse up") from error


def need(folder: Path) -> State:
    """The state of a cluster whose `up` has finished; raises InputError where there is none."""
    state = load(folder)
    if state is None or state.entry is None:
        raise InputError(f"no rehearsal cluster is up in {folder}; start one with: gpuready rehearse up")
    return state


def memory_folder(folder: Path) -> Path:
    """Where the data of this state folder lies if it lies in memory.

    The name follows from the state folder, so that it is found even without ``state.json``.
    """
    digest = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    return _MEMORY / f"gpuready-{os.getuid()}-{digest}"


def choose_data_folder(folder: Path, room: int = _ROOM) -> Path:
    """Where etcd's data go: into memory where there are ``room`` bytes, else into the state folder.

    Raises ToolError where there is no room there either.
    """
    if os.access(_MEMORY, os.W_OK | os.X_OK) and shutil.disk_usage(_MEMORY).free >= room:
        return memory_folder(folder)
    free = shutil.disk_usage(folder).free
    if free < _LEAST:
        raise ToolError(
            f"no room for a cluster's data: {free >> 20} MiB are free in {folder} and {_LEAST >> 20} MiB are needed; "
            "give another --state-dir"
        )
    return folder / "data"


def make_data_folder(data: Path) -> None:
    """Make the folder for etcd's data, for our eyes only.

    Raises RefusedError where somebody else has made it before us.
    """
    data.mkdir(mode=0o700, exist_ok=True)
    if data.is_symlink() or data.lstat().st_uid != os.getuid():
        raise RefusedError(f"{data} belongs to somebody else; remove it, or give another --state-dir")


@contextlib.contextmanager
def locked(folder: Path, *, create: bool, seconds: float = 180.0) -> Iterator[bool]:
    """Hold the state folder for one `up` or `down` at a time; yields whether the folder exists.

    The lock is on the folder itself: it needs no file, and the kernel drops it when its holder dies.
    Raises DeadlineError after ``seconds``, InputError where the folder cannot be made.
    """
    deadline = time.monotonic() + seconds
    while True:
        handle = _open(folder, create=create)
        if handle is None:
            yield False
            return
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Another `down` may have removed the folder between opening and locking it.
            if folder.is_dir() and os.path.samestat(os.fstat(handle), folder.stat()):
                break
            os.close(handle)
        except BlockingIOError:
            os.close(handle)
            if time.monotonic() > deadline:
                raise DeadlineError(
                    f"another gpuready rehearse command has been at work on {folder} for {seconds:.0f} s"
                ) from None
            time.sleep(0.1)
    try:
        yield True
    finally:
        os.close(handle)


def check_ours(folder: Path) -> None:
    """Raises RefusedError where the folder holds files, and none that says that they are ours.

    InputError where it cannot be read.
    """
    try:
        names = {entry.name for entry in folder.iterdir()} - {_HALF_WRITTEN}
    except OSError as error:
        raise InputError(f"cannot use {folder} as state folder: {error.strerror}") from error
    if names and STATE_FILE not in names:
        raise RefusedError(f"{folder} holds files, but no rehearsal cluster; give another folder with --state-dir")


def empty(folder: Path) -> None:
    """Remove the data, and everything in the state folder but the folder itself.

    The record goes last: as long as it is there, the folder is known to be ours. Raises ToolError where
    something cannot be removed.
    """
    try:
        _remove(memory_folder(folder))
        entries = list(folder.iterdir()) if folder.is_dir() else []
        for entry in sorted(entries, key=lambda entry: entry.name == STATE_FILE):
            _remove(entry)
    except OSError as error:
        raise ToolError(f"cannot remove {error.filename}: {error.strerror}") from error


def _remove(entry: Path) -> None:
    if not os.path.lexists(entry):
        return  # a read-only place refuses even this
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink(missing_ok=True)


def _open(folder: Path, *, create: bool) -> int | None:
    try:
        if create:
            folder.mkdir(parents=True, exist_ok=True)
        return os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"cannot use {folder} as state folder: {error.strerror}") from error
