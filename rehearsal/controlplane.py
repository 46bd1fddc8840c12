"""The rehearsal cluster's life: up, status, down.

A real etcd, kube-apiserver, controller-manager and scheduler with RBAC, on the loopback interface, and kwok
in the place of the kubelets. `up` starts what is missing, so the same call makes a cluster and mends one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path

from gpuready.charts_values.errors import ApiError, DeadlineError, InputError, ToolError
from gpuready.charts_values.kube import Api, Object

from . import DEFAULT_NODES, DEFAULT_PROFILE, components, engine, fleet, processes, state
from .machines import nodes as machines
from .processes import Process
from .progress import Say, quiet
from .state import State

# Seconds that one component gets to become ready; far more than it needs, for slow and busy machines.
_PATIENCE = 60.0
_WRITERS = 16
# How every component of the engine says that its port is in use.
_TAKEN = "address already in use"


@dataclasses.dataclass(frozen=True)
class Status:
    """How a cluster is: ``dead`` names the components that should run and do not."""

    state: State
    dead: tuple[str, ...]
    answers: bool

    @property
    def healthy(self) -> bool:
        """Everything runs, the API server answers, and `up` had finished."""
        return self.answers and not self.dead and self.state.entry is not None


def up(
    folder: Path,
    *,
    nodes: int | None = None,
    profile: str | None = None,
    dra: str | None = None,
    ssh_nodes: int | None = None,
    leash: int | None = None,
    say: Say = quiet,
) -> State:
    """Start a cluster in the state folder, or mend the one that is there.

    ``nodes`` (GPU nodes, default 8) and ``profile`` (default h100-ib) must match a running cluster where they
    are given, as must ``dra``, the DRA mode that the entry promises (default: the profile's). ``ssh_nodes`` test
    machines join it, where this host can have them. With ``leash`` the cluster ends with the process of that pid.
    ``say`` gets a line for each step. Raises InputError, RefusedError, ToolError, DeadlineError; a failed start
    leaves nothing behind.
    """
    _check_platform()
    folder = folder.resolve()
    owner = _owner(leash)
    binaries = engine.find(say)
    ssh_nodes = machines.prepare(ssh_nodes, say)
    with state.locked(folder, create=True):
        state.check_ours(folder)
        found = _readable(folder, say)
        if found and found.entry is not None and found.data.is_dir():
            _check_same(found, nodes, profile, dra)
            return machines.join(_mend(machines.settle(found), owner, say), ssh_nodes, say)
        if found:
            lost = "its data is gone" if found.entry is not None else "an earlier start was cut short"
            say(f"{lost}; starting afresh")
        _clear(folder)
        chosen = nodes if nodes is not None else DEFAULT_NODES
        try:
            now = _start_somewhere(folder, chosen, profile or DEFAULT_PROFILE, dra, binaries, owner, say)
            return machines.join(now, ssh_nodes, say)
        except BaseException as error:
            # Why it failed counts, not what the cleanup of a place that cannot be written says.
            with contextlib.suppress(OSError, ToolError):
                _clear(folder)
                folder.rmdir()
            if isinstance(error, OSError):
                place = error.filename2 or error.filename or folder
                raise ToolError(f"cannot write {place}: {error.strerror}; give another --state-dir") from error
            raise


def down(folder: Path) -> bool:
    """Stop every process of the cluster and remove its files; returns whether there was anything.

    Raises DeadlineError where a process does not end, RefusedError where the folder is not ours.
    """
    folder = folder.resolve()
    with state.locked(folder, create=False) as there:
        if there:
            state.check_ours(folder)
        was_up = there or bool(processes.marked(folder)) or state.memory_folder(folder).exists()
        _clear(folder)
        if there:
            folder.rmdir()
        return was_up


def status(folder: Path) -> Status | None:
    """How the cluster of the state folder is; None where there is none. Raises InputError on a damaged state."""
    found = state.load(folder)
    if found is None:
        return None
    answers = components.healthy("kube-apiserver", found)
    return Status(found, tuple(found.dead()), answers)


# -- start and mend -----------------------------------------------------------------------------------------


def _start_somewhere(
    folder: Path,
    count: int,
    profile: str,
    dra: str | None,
    binaries: engine.Binaries,
    owner: Process | None,
    say: Say,
) -> State:
    """Start; once more on other ports where another program took one between our choice and our use of it."""
    try:
        return _start(folder, count, profile, dra, binaries, owner, say)
    except ToolError as error:
        if _TAKEN not in str(error):
            raise
    say("another program has taken a port meanwhile; starting again on other ports")
    _clear(folder)
    return _start(folder, count, profile, dra, binaries, owner, say)


def _start(
    folder: Path,
    count: int,
    profile: str,
    dra: str | None,
    binaries: engine.Binaries,
    owner: Process | None,
    say: Say,
) -> State:
    hardware = fleet.load_profile(profile)
    ports = components.free_ports()
    node_objects = fleet.nodes(hardware, count, ports["kwok"])
    folder.chmod(0o700)
    data = state.choose_data_folder(folder)
    now = State(folder=folder, profile=profile, nodes=tuple(fleet.gpu_nodes(count)), ports=ports, data=data)
    now.save()
    state.make_data_folder(data)
    engine.link(binaries, now.bin)
    tokens = components.prepare(now)
    now = _leash(now, owner)
    say("starting etcd and kube-apiserver")
    for name in ("etcd", "kube-apiserver"):
        now = _run(name, now)
    certificate = now.folder / "components" / "pki" / "apiserver.crt"
    _wait("kube-apiserver", now, certificate.is_file, "to make its certificate")
    components.write_kubeconfigs(now, tokens)
    _wait_healthy("kube-apiserver", now)
    api = Api.connect(now.kubeconfig, connections=_WRITERS)
    say("starting kube-controller-manager, kube-scheduler and kwok")
    api.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", components.LOGS_CRD)
    for name in ("kube-controller-manager", "kube-scheduler"):
        now = _run(name, now)
    _wait("kube-apiserver", now, lambda: _served(api, "/apis/kwok.x-k8s.io/v1alpha1"), "to serve kwok's Logs")
    now = _run("kwok", now)
    say(f"joining {count} nodes of profile {profile}")
    _create_all(api, "/api/v1/nodes", node_objects)
    now = _run(components.ACTORS, now)
    for name in components.ENGINE:
        _wait_healthy(name, now)
    default_account = "/api/v1/namespaces/default/serviceaccounts/default"
    _wait("kube-controller-manager", now, lambda: api.find(default_account) is not None, "to work")
    _check_alive(now)
    uid = api.get("/api/v1/namespaces/kube-system")["metadata"]["uid"]
    # Without a word from the user the stand-in charts are installed.
    charts = None if os.environ.get("GPUREADY_CHARTS") else str(files(__package__) / "charts")
    entry = fleet.entry(hardware, count, folder, now.kubeconfig, uid, charts)
    if dra:
        entry["dra"] = dra
    now = dataclasses.replace(now, uid=uid, entry=entry)
    now.save()
    return now


def _mend(now: State, owner: Process | None, say: Say) -> State:
    """Start again what has died, with the same ports and data."""
    ours = {process.pid for process in (*now.processes.values(), now.leash) if process and process.alive}
    processes.stop_all([stray for stray in processes.marked(now.folder) if stray.session not in ours])
    if owner:
        now = _leash(now, owner)
    if not now.dead():
        say("it was up already")
    for last in (False, True):
        dead = [name for name in components.ORDER if name in now.dead()]
        if dead:
            say(f"{', '.join(dead)} had died; starting again")
        for name in dead:
            now = _run(name, now)
            if name == "kube-apiserver":
                _wait_healthy(name, now)
        try:
            for name in components.ENGINE:
                _wait_healthy(name, now)
            _check_alive(now)
        except ToolError as error:
            # One that was about to end when we looked has ended now.
            if last:
                fresh = "gpuready rehearse down, then up, starts afresh"
                raise ToolError(f"{error}; {fresh}") from error
        else:
            break
    return now


def _run(name: str, now: State) -> State:
    process = processes.start(
        components.command(name, now),
        state_dir=now.folder,
        log=now.log(name),
        environ=components.environ(name, now),
    )
    now = now.with_process(name, process)
    now.save()
    return now


def _leash(now: State, owner: Process | None) -> State:
    """Start the process that ends the cluster together with its owner."""
    if now.leash and now.leash.alive:
        processes.stop_all([now.leash])
    if owner is None:
        return now
    argv = [sys.executable, "-P", "-m", "gpuready.rehearsal.leash"]
    argv += ["--state-dir", str(now.folder), "--pid", str(owner.pid), "--started", str(owner.started)]
    process = processes.start(argv, state_dir=now.folder, log=now.log("leash"), environ=dict(os.environ))
    now = dataclasses.replace(now, leash=process)
    now.save()
    return now


def _create_all(api: Api, path: str, objects: list[Object]) -> None:
    with ThreadPoolExecutor(_WRITERS) as pool:
        for _ in pool.map(lambda body: api.create(path, body), objects):
            pass


# -- readiness ----------------------------------------------------------------------------------------------


def _wait(name: str, now: State, condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition while the component runs.

    Raises ToolError where it ends meanwhile, DeadlineError where it takes too long; both show its last words.
    """
    deadline = time.monotonic() + _PATIENCE
    already = set(now.dead()) - {name}
    while not condition():
        # The first that ends is to blame: without etcd the API server waits, and then ends as well.
        for one in (dead for dead in now.dead() if dead not in already):
            said = f"; its last words: {processes.last_words(now.log(one))}"
            raise ToolError(f"{one} ended while we waited for {'it' if one == name else name} {what}{said}")
        if time.monotonic() > deadline:
            said = f"; its last words: {processes.last_words(now.log(name))}"
            raise DeadlineError(f"waited {_PATIENCE:.0f} s for {name} {what}{said}")
        time.sleep(0.05)


def _wait_healthy(name: str, now: State) -> None:
    _wait(name, now, lambda: components.healthy(name, now), "to be healthy")


def _check_alive(now: State) -> None:
    """Raises ToolError where a component has died meanwhile."""
    for name in now.dead():
        raise ToolError(f"{name} ended after its start; its last words: {processes.last_words(now.log(name))}")


def _served(api: Api, path: str) -> bool:
    try:
        return api.find(path) is not None
    except ApiError:
        return False


# -- the ground rules ---------------------------------------------------------------------------------------


def _clear(folder: Path) -> None:
    """Stop whatever runs for this folder, recorded or not, and remove its data."""
    try:
        found = state.load(folder)
    except InputError:
        found = None
    recorded = dict(found.processes) if found else {}
    machines.end(folder)
    # Clients first: the API server waits for open watches to end, and etcd has nobody left to serve then.
    last = [recorded.pop(name) for name in ("kube-apiserver", "etcd") if name in recorded]
    own = {os.getpid(), *(process.pid for process in last)}
    clients = {process.pid: process for process in (*recorded.values(), *processes.marked(folder))}
    processes.stop_all([process for pid, process in clients.items() if pid not in own])
    for process in last:
        processes.stop_all([process], grace=2.0)
    # Their holder may have been about to start.
    machines.end(folder)
    state.empty(folder)


def _check_platform() -> None:
    if sys.platform != "linux":
        raise InputError(f"the rehearsal cluster needs Linux, not {sys.platform}; a virtual machine or WSL 2 will do")


def _check_same(found: State, nodes: int | None, profile: str | None, dra: str | None) -> None:
    promised = (found.entry or {}).get("dra", "off")
    if dra and dra != promised:
        raise InputError(
            f"the cluster in {found.folder} is up with DRA mode {promised}, not {dra}; "
            "end it first with: gpuready rehearse down"
        )
    asked = (nodes if nodes is not None else len(found.nodes), profile or found.profile)
    if asked != (len(found.nodes), found.profile):
        raise InputError(
            f"a cluster of {len(found.nodes)} nodes, profile {found.profile}, is up in {found.folder}, "
            f"not {asked[0]} of {asked[1]}; end it first with: gpuready rehearse down"
        )


def _owner(leash: int | None) -> Process | None:
    if leash is None:
        return None
    owner = processes.of(leash)
    if owner is None:
        raise InputError(f"no process has pid {leash}, so the cluster cannot end with it")
    return owner


def _readable(folder: Path, say: Say) -> State | None:
    try:
        return state.load(folder)
    except InputError as error:
        say(str(error))
        return None
