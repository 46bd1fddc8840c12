"""`gpuready rehearse ...`: the command line of the rehearsal cluster.

``add_parser`` and ``run`` are what the main command line calls. Results go to stdout, progress to stderr.
What a command needs is imported by it: `gpuready check` must not wait for it.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpuready.charts_values.inventory import state_folder

from . import DEFAULT_NODES, DEFAULT_PROFILE

if TYPE_CHECKING:
    from .controlplane import Status
    from .state import State

_DESCRIPTION = """\
A Kubernetes cluster to rehearse on: a real etcd, kube-apiserver, controller-manager and scheduler on the
loopback interface, with a simulated fleet of GPU nodes. Its state is kept in --state-dir, else
$GPUREADY_STATE_DIR, else .rehearsal/ beside the inventory."""


def add_parser(subparsers: Any) -> None:
    """Add `rehearse` and its commands to the subparsers of the main command line."""
    parser = subparsers.add_parser(
        "rehearse",
        help="run a rehearsal cluster on this machine",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True, title="commands")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--state-dir", metavar="D", help="folder that holds the cluster's state")
    output = argparse.ArgumentParser(add_help=False)
    output.add_argument("-o", "--output", choices=("text", "json"), default="text", help="form of the result")
    size = argparse.ArgumentParser(add_help=False)
    size.add_argument("--nodes", type=int, metavar="N", help=f"GPU nodes (default {DEFAULT_NODES})")
    size.add_argument("--profile", metavar="P", help=f"hardware profile (default {DEFAULT_PROFILE})")
    size.add_argument(
        "--dra", choices=("off", "compute-domains", "gpus"), help="DRA mode of the inventory entry (the profile's)"
    )

    size.add_argument(
        "--ssh-nodes", type=int, metavar="N", help="real nodes besides, on machines that SSH reaches (needs root)"
    )

    def add(name: str, function: Any, text: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        command: argparse.ArgumentParser
        command = commands.add_parser(name, parents=[common, *parents], help=text, description=text)
        command.set_defaults(rehearse=function)
        return command

    up = add("up", _up, "start the cluster, or mend the one that is there", size, output)
    up.add_argument("--leash", type=int, metavar="PID", help="end the cluster when this process ends")
    add("status", _status, "say how the cluster is; exit 1 where something is broken", output)
    add("down", _down, "stop the cluster and remove every file of it")
    add("run", _run, "up, install, accept and report, in one go", size)
    add("faults", _faults, "list the faults that can be injected", output)
    inject = add("inject", _inject, "break something on purpose")
    inject.add_argument("fault", metavar="NAME")
    inject.add_argument("--node", metavar="N", help="the node to break (default: the fault's own choice)")
    heal = add("heal", _heal, "take a fault back")
    heal.add_argument("fault", metavar="NAME")


def run(args: argparse.Namespace) -> int:
    """Run the command that was parsed; returns the exit code. Raises GpureadyError."""
    code: int = args.rehearse(args)
    return code


def _folder(args: argparse.Namespace) -> Path:
    inventory = os.environ.get("GPUREADY_INVENTORY")
    return state_folder(Path(inventory).parent if inventory else None, args.state_dir)


def _say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


def _up(args: argparse.Namespace) -> int:
    from . import controlplane

    began = time.monotonic()
    now = controlplane.up(
        _folder(args),
        nodes=args.nodes,
        profile=args.profile,
        dra=args.dra,
        ssh_nodes=args.ssh_nodes,
        leash=args.leash,
        say=_say,
    )
    seconds = time.monotonic() - began
    if args.output == "json":
        print(json.dumps({**_as_json(now), "seconds": round(seconds, 2)}, indent=2))
        return 0
    print(f"The rehearsal cluster is up: {len(now.nodes)} nodes of profile {now.profile}, {seconds:.1f} s.")
    print(f"export KUBECONFIG={shlex.quote(str(now.kubeconfig))}")
    for name, one in _machines(now).items():
        hosts = f"UserKnownHostsFile={one['known_hosts']}"
        print(f"{name}: ssh -i {one['ssh_key']} -o {hosts} {one['ssh_user']}@{one['address']}")
    if now.folder != state_folder(Path.cwd()):
        print(f"export GPUREADY_STATE_DIR={shlex.quote(str(now.folder))}")
    return 0


def _status(args: argparse.Namespace) -> int:
    from . import controlplane

    folder = _folder(args)
    found = controlplane.status(folder)
    if args.output == "json":
        if found is None:
            print(json.dumps({"state_dir": str(folder), "up": False, "pids": {}}, indent=2))
        else:
            print(json.dumps({**_as_json(found.state), "up": found.healthy, "dead": list(found.dead)}, indent=2))
    elif found is None:
        print(f"No rehearsal cluster is up in {folder}. Start one with: gpuready rehearse up")
    elif found.healthy:
        now = found.state
        print(f"The rehearsal cluster is up: {len(now.nodes)} nodes of profile {now.profile}, {now.server}")
        for name, process in now.processes.items():
            print(f"  {name:<24} pid {process.pid:<8} {process.rss_bytes / 2**20:5.0f} MiB")
        for name, one in _machines(now).items():
            print(f"  {name:<24} {one['address']:<12} {one['rss_bytes'] / 2**20:5.0f} MiB")
    else:
        print(f"The rehearsal cluster in {folder} is broken: {_complaint(found)}. Mend it with: gpuready rehearse up")
    return 0 if found and found.healthy else 1


def _complaint(found: Status) -> str:
    if found.dead:
        return f"{', '.join(found.dead)} died"
    return "its start was cut short" if found.state.entry is None else "the API server does not answer"


def _down(args: argparse.Namespace) -> int:
    from . import controlplane

    folder = _folder(args)
    was_up = controlplane.down(folder)
    print(f"The rehearsal cluster in {folder} is gone." if was_up else f"No rehearsal cluster was up in {folder}.")
    return 0


def _run(args: argparse.Namespace) -> int:
    # It runs the main command line, which imports this module.
    from . import rehearse

    return rehearse.run(args)


def _faults(args: argparse.Namespace) -> int:
    from . import faults

    active = faults.active(_folder(args))
    if args.output == "json":
        table = [
            {
                "name": fault.name,
                "title": fault.title,
                "finding": fault.finding,
                # Empty where it hits the whole cluster, null where it is not injected.
                "node": active.get(fault.name),
                "breaks": fault.breaks,
                "phase": fault.phase,
                "follows": list(fault.follows),
                "scope": fault.scope,
            }
            for fault in faults.catalogue()
        ]
        print(json.dumps(table, indent=2))
        return 0
    for subject, rows in faults.SUBJECTS.items():
        print(f"{subject}, found by")
        for fault in rows:
            by = fault.finding if fault.phase == "check" else f"{fault.finding}, in an acceptance"
            where = f" [injected{_on(active[fault.name])}]" if fault.name in active else ""
            print(f"  {fault.name:<21} {fault.title:<51} {by}{where}")
    return 0


def _inject(args: argparse.Namespace) -> int:
    from . import faults

    node = faults.inject(_folder(args), args.fault, args.node)
    faults.settle(_folder(args))
    print(f"Injected {args.fault}{_on(node)}. Take it back with: gpuready rehearse heal {args.fault}")
    return 0


def _heal(args: argparse.Namespace) -> int:
    from . import faults

    node = faults.heal(_folder(args), args.fault)
    faults.settle(_folder(args))
    print(f"Healed {args.fault}{_on(node)}.")
    return 0


def _on(node: str) -> str:
    return f" on {node}" if node else ""


def _as_json(now: State) -> dict[str, Any]:
    return {
        "kubeconfig": str(now.kubeconfig),
        "server": now.server,
        "state_dir": str(now.folder),
        "nodes": list(now.nodes),
        "pids": {name: process.pid for name, process in now.processes.items()},
        **({"machines": _machines(now)} if now.machines else {}),
        "profile": now.profile,
        "cluster_uid": now.uid,
    }


def _machines(now: State) -> dict[str, dict[str, Any]]:
    """The test machines: where SSH reaches each, and what it uses; without processes it is off."""
    from .machines import nodes

    if now.machines is None:
        return {}
    records = now.machines.record()["nodes"]
    return {
        one.machine.name: {
            **records[one.machine.name],
            "ssh_user": now.machines.ssh_user,
            "known_hosts": str(now.machines.known_hosts),
            "processes": one.processes,
            "rss_bytes": one.rss_bytes,
        }
        for one in nodes.power(now.machines)
    }
