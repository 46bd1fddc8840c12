"""Machines as nodes of the rehearsal cluster: what `up`, `status` and `down` call."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from gpuready.charts_values.errors import DeadlineError, GpureadyError, InputError, ToolError
from gpuready.charts_values.kube import Api

from .. import fleet, pki, processes, state
from ..progress import Say
from ..state import State
from . import host, plan, rootfs
from .plan import SSH_PORT, Machine, Plan

# The name of the process that holds them, among the rehearsal's processes.
NAME = "machines"
_PATIENCE = 120.0
_PAUSE = 0.1
_ANSWER_SECONDS = 2.0
_NOT_READY = "node.kubernetes.io/not-ready"


@dataclass(frozen=True)
class Power:
    """How a machine is: ``processes`` is 0 where it is off."""

    machine: Machine
    processes: int
    rss_bytes: int


def prepare(count: int | None, say: Say) -> int | None:
    """Make ready what ``count`` machines need besides a cluster; returns how many this host can have.

    Where it cannot have machines ``say`` gets one line that says what is missing. Raises InputError where that is
    no sensible number.
    """
    if not count:
        return count
    if not 0 < count <= plan.MOST:
        raise InputError(f"--ssh-nodes {count}: give 0 to {plan.MOST}")
    try:
        _make_base(count, say)
    except GpureadyError as error:
        say(f"no machines: {error}")
        return 0
    return count


def settle(now: State) -> State:
    """The state without the process that holds the machines where that has died; their remains are ended."""
    if NAME not in now.processes or now.processes[NAME].alive:
        return now
    end(now.folder)
    return dataclasses.replace(now, processes={name: one for name, one in now.processes.items() if name != NAME})


def join(now: State, count: int | None, say: Say) -> State:
    """Start machines and join them, or mend those that are there.

    Where they do not come up ``say`` gets one line that says why, and the cluster stays as it is without. Raises
    InputError where ``count`` is another than that of running machines.
    """
    if now.machines and count and count != now.machines.count:
        raise InputError(
            f"{now.machines.count} machines are up in {now.folder}, not {count}; "
            "end the cluster first with: gpuready rehearse down"
        )
    finished = now.entry is not None and "ssh_nodes" in now.entry
    if (NAME in now.processes and finished) or (now.machines is None and not count):
        return now
    try:
        wanted = now.machines or plan.draw(now.folder, _pods(now), count or 0)
        end(now.folder)
        base = _make_base(wanted.count, say)
        return _start(now, wanted, base, say)
    except InputError:
        raise
    except GpureadyError as error:
        say(f"no machines: {error}")
        return _without(state.load(now.folder) or now)


def power(plan_: Plan) -> list[Power]:
    """How each machine is."""
    found = []
    for machine in plan_.machines:
        pids = host.pids(f"{plan.group(plan_.folder)}/{machine.name}")
        alive = [one for pid in pids if (one := processes.of(pid))]
        found.append(Power(machine, len(alive), sum(one.rss_bytes for one in alive)))
    return found


def end(folder: Path) -> bool:
    """End the machines of a state folder, recorded or not, and what holds them; returns whether there were any.

    Raises DeadlineError where a process does not end.
    """
    return host.clear(folder)


def _make_base(count: int, say: Say) -> Path:
    """The root file system that the machines share. Raises ToolError where this host lacks something."""
    base = rootfs.find(say)
    if fault := host.lacking(count, *([] if base else rootfs.lacking())):
        raise ToolError(fault)
    return base or rootfs.make(say)


def _start(now: State, wanted: Plan, base: Path, say: Say) -> State:
    names = ", ".join(one.name for one in wanted.machines)
    again = now.machines is not None
    say(f"{'booting' if not again else 'the machines had died; booting'} {names}")
    if not again:
        _write_keys(wanted)
        now = dataclasses.replace(now, machines=wanted)
        now.save()
    since = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    argv = [sys.executable, "-P", "-m", "gpuready.rehearsal.machines"]
    argv += ["--state-dir", str(now.folder), "--base", str(base)]
    holder = processes.start(argv, state_dir=now.folder, log=now.log(NAME), environ=dict(os.environ))
    now = now.with_process(NAME, holder)
    now.save()
    api = Api.connect(now.kubeconfig)
    booted = time.monotonic()
    _wait(now, wanted, "answer by SSH", lambda one: _greets(one.address))
    reached = time.monotonic()
    _wait(now, wanted, "be Ready", lambda one: _ready(api, one, since))
    for one in wanted.machines:
        # The controller-manager of a kubeadm cluster hands them out; here nobody does.
        api.patch(f"/api/v1/nodes/{one.name}", {"spec": {"podCIDR": one.pods, "podCIDRs": [one.pods]}})
    ready = time.monotonic()
    say(f"{names}: SSH after {reached - booted:.1f} s, Ready after {ready - booted:.1f} s")
    if now.entry is not None:
        cidrs = [*dict.fromkeys([*now.entry["node_cidrs"], wanted.network])]
        promised = {
            "ssh_nodes": wanted.ssh_nodes(),
            "node_cidrs": cidrs,
            # Nothing runs on them yet that a change of the kubelet could disturb.
            "maintenance": [one.name for one in wanted.machines],
        }
        now = dataclasses.replace(now, entry={**now.entry, **promised})
        now.save()
    return now


def _write_keys(wanted: Plan) -> None:
    wanted.home.mkdir(mode=0o700)
    pki.write_ssh_key(wanted.key)
    lines = []
    for machine in wanted.machines:
        public = pki.write_ssh_key(wanted.home / f"{machine.name}.host_key")
        lines.append(f"{machine.address} {public}")
    wanted.known_hosts.write_text("\n".join(lines) + "\n")


def _without(now: State) -> State:
    """The cluster as it was before the machines."""
    end(now.folder)
    if now.machines:
        with contextlib.suppress(GpureadyError):
            api = Api.connect(now.kubeconfig)
            for one in now.machines.machines:
                api.delete(f"/api/v1/nodes/{one.name}")
        shutil.rmtree(now.machines.home, ignore_errors=True)
    rest = {name: process for name, process in now.processes.items() if name != NAME}
    entry = {key: value for key, value in (now.entry or {}).items() if key not in ("ssh_nodes", "maintenance")}
    if now.machines and entry:
        entry["node_cidrs"] = [one for one in entry["node_cidrs"] if one != now.machines.network]
    now = dataclasses.replace(now, machines=None, processes=rest, entry=entry or None)
    now.save()
    return now


def _wait(now: State, wanted: Plan, what: str, done: Callable[[Machine], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE
    left = list(wanted.machines)
    while left := [one for one in left if not done(one)]:
        words = f"its last words: {processes.last_words(now.log(NAME))}"
        if not now.processes[NAME].alive:
            raise ToolError(f"the process that holds the machines ended; {words}")
        if time.monotonic() > deadline:
            names = ", ".join(one.name for one in left)
            raise DeadlineError(f"waited {_PATIENCE:.0f} s for {names} to {what}; see {wanted.home}/*.log")
        time.sleep(_PAUSE)


def _greets(address: str) -> bool:
    try:
        with socket.create_connection((address, SSH_PORT), timeout=_ANSWER_SECONDS) as connection:
            connection.settimeout(_ANSWER_SECONDS)
            return connection.recv(64).startswith(b"SSH-2.0-")
    except OSError:
        return False


def _ready(api: Api, machine: Machine, since: str) -> bool:
    """Whether its kubelet has said so since then: what it said before it died stays for minutes."""
    try:
        node = api.find(f"/api/v1/nodes/{machine.name}")
    except GpureadyError:
        return False
    if node is None or any(taint["key"] == _NOT_READY for taint in node["spec"].get("taints") or ()):
        # The controller-manager takes the taint back only after it has seen that the node is Ready.
        return False
    conditions = {one["type"]: one for one in node["status"].get("conditions") or ()}
    said = conditions.get("Ready", {"status": "", "lastHeartbeatTime": ""})
    return bool(said["status"] == "True" and (said["lastHeartbeatTime"] or "") >= since)


def _pods(now: State) -> str:
    return fleet.load_profile(now.profile).network.pods
