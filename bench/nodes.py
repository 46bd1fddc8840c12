"""How long a second run over prepared machines takes: gpuready's node part against Ansible, where nothing changes.

    python bench/nodes.py                                # 2 machines, 5 pairs for each way to run Ansible
    python bench/nodes.py --machines 4 --pairs 9
    python bench/nodes.py --ways 3                       # the fastest way to run Ansible alone

The machines are those of the rehearsal (systemd-nspawn, real kubelets, real SSH), brought and taken away by this file.
The playbook is made from gpuready's own plan for a fresh machine: the same files with the same content, and the same
checks with Ansible's own modules. Before anything is timed, files are spoilt on every machine, Ansible mends them, and
gpuready must then find nothing to do. ansible-core gets an environment of its own in gpuready's cache.

What favours Ansible: the playbook makes no folders and asks no API server, it reads nothing of PCI, RDMA, NUMA and the
driver, and its SSH connections live on from run to run. What differs from a data centre: machines and both tools share
the CPUs of this host, and the network has no latency.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from gpuready.charts_values import inventory
from gpuready.charts_values.errors import GpureadyError
from gpuready.charts_values.kube import Api
from gpuready.deploys.nodes import facts, kubelet, machine, preparation
from gpuready.deploys.nodes.plan import NodePlan
from gpuready.rehearsal import controlplane
from gpuready.rehearsal.engine import cache

ANSIBLE = "ansible-core==2.19.14"
DEPLOY = Path(__file__).parents[1] / "deploys" / "gpu.py"
# What a cluster of GPU nodes usually asks for; the rest are gpuready's defaults.
NODE = {
    "cpu_manager": {"policy": "static"},
    "memory_manager": {"policy": "Static"},
    "reserved": {"cpus": "0", "kube_memory": "512Mi", "system_memory": "256Mi"},
    "sysctl": {"vm.max_map_count": "262144"},
    "registry_mirrors": {"docker.io": ["https://mirror.example"], "nvcr.io": ["https://mirror.example"]},
}
INVENTORY = f"""
from gpuready.charts_values import inventory as _inventory

_this = _inventory.choose({{"rehearsal": {{"rehearsal": True, "node": {NODE!r}}}}}, __file__)
cluster = (["@local"], {{"gpuready": _this}})
gpu_nodes = (_inventory.hosts(_this), {{"gpuready": _this}})
"""
RUN_S = 300
Environment = Mapping[str, str]


@dataclass(frozen=True)
class Way:
    """A way to run Ansible: lines of ansible.cfg, whether it gathers facts, and whether files are one task."""

    title: str
    settings: Sequence[str] = ()
    gathers: bool = True
    looped: bool = False


FAST = (
    "[defaults]",
    "forks = 32",
    "interpreter_python = /usr/bin/python3",
    "[connection]",
    "pipelining = True",
    "[ssh_connection]",
    "ssh_args = -C -o ControlMaster=auto -o ControlPersist=600s",
)
WAYS = (
    Way("as it comes"),
    Way("pipelining, ControlPersist", FAST),
    Way("the same, no facts, one loop", FAST, gathers=False, looped=True),
)


@dataclass
class Times:
    """Seconds of one tool's runs: on the clock, and of CPU on this side of the connection."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def measure(self, run: Callable[[], object]) -> None:
        """Add one run."""
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        run()
        self.wall.append(time.perf_counter() - began)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def ansible() -> Path:
    """The folder of Ansible's programs, made where it is not in the cache yet."""
    folder = cache.folder() / ANSIBLE.replace("==", "-")
    if not (folder / "complete").exists():
        print(f"installing {ANSIBLE} into {folder}", file=sys.stderr)
        venv.create(folder, clear=True, with_pip=True)
        subprocess.run([folder / "bin" / "pip", "install", "-q", ANSIBLE], check=True, timeout=600)
        (folder / "complete").touch()
    return folder / "bin"


def call(command: Sequence[str | Path], env: Environment, text: str | None = None) -> str:
    """What a command prints; ends this bench where it fails."""
    done = subprocess.run(command, env=dict(env), input=text or "", capture_output=True, text=True, timeout=RUN_S)
    if done.returncode:
        said = (done.stdout + done.stderr).strip()[-3000:]
        sys.exit(f"{said}\n{shlex.join(map(str, command))[:200]} ended with {done.returncode}")
    return done.stdout + done.stderr


def options(data: Mapping[str, Any]) -> list[str]:
    """The options by which OpenSSH reaches a machine and nobody else's configuration counts."""
    known = ("-o", f"UserKnownHostsFile={data['ssh_known_hosts_file']}", "-o", "StrictHostKeyChecking=yes")
    return ["-F", "/dev/null", *known]


def shell(data: Mapping[str, Any], command: str) -> str:
    """What a command prints on a machine, as root."""
    target = f"{data['ssh_user']}@{data['ssh_hostname']}"
    login = ["ssh", *options(data), "-i", data["ssh_key"], "-p", str(data["ssh_port"]), target, "sudo sh"]
    return call(login, os.environ, command)


def plans(cluster: inventory.Cluster, api: Api) -> dict[str, NodePlan]:
    """gpuready's plan for each machine as it now is."""
    found = {}
    for name, data in cluster.ssh_nodes.items():
        seen = facts.read(name, shell(data, facts.command(preparation.FILES)))
        node = api.find(f"/api/v1/nodes/{name}")
        found[name] = preparation.plan(cluster, preparation.group_of(cluster, name, node), seen, node)
    return found


# -- Ansible's side -----------------------------------------------------------------------------------------------


def copies(made: NodePlan) -> list[str]:
    """The files that Ansible copies as a whole; the environment of the kubelet is a matter of one line."""
    return [one.path for one in (*made.files, *made.disruption.files) if one.path != "/etc/default/kubelet"]


def restarts(path: str) -> list[str]:
    """The handlers that a change of a file needs."""
    if path == machine.SYSCTL_FILE:
        return ["sysctl"]
    if path == machine.NOUVEAU_FILE or not path.startswith(("/etc/systemd", "/etc/kubernetes")):
        return []
    return ["containerd"] if "containerd" in path else ["kubelet"]


def tasks(made: NodePlan, folder: Path, way: Way) -> list[dict[str, Any]]:
    """The plan of a fresh machine as tasks; ``folder`` holds the files of each machine."""
    found: list[dict[str, Any]] = []
    modes = {one.path: f"0{one.mode}" for one in (*made.files, *made.disruption.files)}
    source = f"{folder}/{{{{ inventory_hostname }}}}"
    owner = {"owner": "root", "group": "root"}
    if way.looped:
        copy = {"src": f"{source}{{{{ item.dest }}}}", "dest": "{{ item.dest }}", "mode": "{{ item.mode }}", **owner}
        items = [{"dest": path, "mode": modes[path]} for path in copies(made)]
        found.append({"name": "Files", "copy": copy, "loop": items, "notify": ["sysctl", "kubelet", "containerd"]})
    else:
        for path in copies(made):
            copy = {"src": f"{source}{path}", "dest": path, "mode": modes[path], **owner}
            found.append({"name": path, "copy": copy, "notify": restarts(path)})
    environment = next(one for one in made.disruption.files if one.path == "/etc/default/kubelet")
    line = next(one for one in (environment.content or "").splitlines() if one.startswith("KUBELET_EXTRA_ARGS="))
    edit = {"path": environment.path, "regexp": "^KUBELET_EXTRA_ARGS=", "line": line}
    found.append({"name": environment.path, "lineinfile": edit, "notify": ["kubelet"]})
    content = next(one.content for one in made.files if one.path == machine.SYSCTL_FILE) or ""
    wanted = dict(re.findall(r"^(\S+) = (.*)$", content, re.MULTILINE))
    found += [
        {
            "name": "Values of the kernel",
            "command": f"sysctl -n {' '.join(wanted)}",
            "register": "values",
            "changed_when": f"values.stdout_lines != {list(wanted.values())!r}",
            "notify": ["sysctl"],
        },
        {"name": "containerd's configuration", "command": "containerd config dump", "changed_when": False},
        {
            "name": "Arguments of the kubelet",
            "command": "pgrep -a -x kubelet",
            "register": "process",
            "changed_when": f"{line.partition('=')[2]!r} not in process.stdout",
            "notify": ["kubelet"],
        },
    ]
    for path, key in ((kubelet.CPU_STATE, "cpuManagerPolicy"), (kubelet.MEMORY_STATE, "memoryManagerPolicy")):
        policy = f'"policyName":"{made.disruption.expected[key]}"'
        wrong = f"{policy!r} not in (state.content | b64decode)"
        found.append({"name": path, "slurp": {"src": path}, "register": "state", "failed_when": wrong})
    for unit in ("containerd", "kubelet"):
        found.append({"name": unit, "systemd": {"name": unit, "state": "started", "enabled": True}})
    return found


def playbook(made: NodePlan, folder: Path, way: Way) -> list[dict[str, Any]]:
    """The whole play, with the handlers that no run without changes calls."""
    handlers: list[dict[str, Any]] = [{"name": "sysctl", "command": f"sysctl -q -p {machine.SYSCTL_FILE}"}]
    for unit in ("containerd", "kubelet"):
        again = {"name": unit, "state": "restarted", "daemon_reload": True}
        handlers.append({"name": unit, "systemd": again})
    play = {"hosts": "all", "become": True, "tasks": tasks(made, folder, way), "handlers": handlers}
    return [play if way.gathers else {**play, "gather_facts": False}]


class Playbook:
    """One way to run Ansible, ready to run."""

    def __init__(self, way: Way, folder: Path, cluster: inventory.Cluster, made: Mapping[str, NodePlan]) -> None:
        programs = ansible()
        own = Path(tempfile.mkdtemp(dir=folder))
        self._sockets = own / "cp"
        for name, one in made.items():
            for file in (*one.files, *one.disruption.files):
                place = Path(f"{own}/{name}{file.path}")
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_text(file.content or "", encoding="utf-8")
        # JSON is YAML, too.
        play = playbook(next(iter(made.values())), own, way)
        (own / "play.yml").write_text(json.dumps(play))
        self.tasks = len(play[0]["tasks"])
        (own / "ansible.cfg").write_text("\n".join(way.settings) + "\n")
        hosts = {
            name: {
                "ansible_host": data["ssh_hostname"],
                "ansible_port": data["ssh_port"],
                "ansible_user": data["ssh_user"],
                "ansible_ssh_private_key_file": data["ssh_key"],
                "ansible_ssh_common_args": shlex.join(options(data)),
            }
            for name, data in cluster.ssh_nodes.items()
        }
        (own / "hosts.json").write_text(json.dumps({"all": {"hosts": hosts}}))
        self._command: list[str | Path] = [programs / "ansible-playbook", "-i", own / "hosts.json", own / "play.yml"]
        keep = {key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")}
        places = {"ANSIBLE_HOME": str(own / "home"), "ANSIBLE_SSH_CONTROL_PATH_DIR": str(self._sockets)}
        self._env = {**keep, **places, "ANSIBLE_CONFIG": str(own / "ansible.cfg")}

    def run(self) -> int:
        """One run; how many changes it made on all machines."""
        text = call(self._command, self._env)
        return sum(int(one) for one in re.findall(r"changed=(\d+)", text))

    def quiet_run(self) -> None:
        """One run that must change nothing."""
        if changes := self.run():
            sys.exit(f"Ansible made {changes} changes where none were due; this is no run without changes")

    def close(self) -> None:
        """End the connections that OpenSSH keeps."""
        for socket in self._sockets.glob("*"):
            subprocess.run(["ssh", "-O", "exit", "-o", f"ControlPath={socket}", "any"], capture_output=True, timeout=10)


# -- our side, and the comparison ---------------------------------------------------------------------------------


class Installer:
    """gpuready's installer, over the machines alone."""

    def __init__(self, folder: Path, state: Path, made: Mapping[str, NodePlan]) -> None:
        (folder / "inventory").write_text(INVENTORY)
        # One for each file that waits for nothing, and one for all that a drained node gets.
        self._least = sum(len(one.files) + 1 for one in made.values())
        pyinfra = Path(sys.executable).with_name("pyinfra")
        self._command: list[str | Path] = [pyinfra, folder / "inventory", DEPLOY, "--limit", "gpu_nodes", "-y"]
        self._env = {**os.environ, "GPUREADY_STATE_DIR": str(state), "PYINFRA_PROGRESS": "off"}
        self._env.pop("CLUSTER", None)

    def run(self) -> int:
        """One run; how many operations changed something, on all machines."""
        text = call(self._command, self._env)
        *_, total, success, _, same = next(line for line in text.splitlines() if "Grand total" in line).split()
        changes = 0 if success == "-" else int(success)
        if int(total) < self._least or (not changes and same != total):
            sys.exit(f"{text[-3000:]}\ngpuready left out machines or operations: {self._least} at least are due")
        return changes

    def quiet_run(self) -> None:
        """One run that must change nothing."""
        if changes := self.run():
            sys.exit(f"gpuready made {changes} changes where none were due; this is no run without changes")


def prove(ours: Installer, theirs: Playbook, cluster: inventory.Cluster, made: Mapping[str, NodePlan]) -> None:
    """Ansible mends what is spoilt, and gpuready then finds nothing to do: both want the same, to the byte."""
    spoilt = 0
    for name, data in cluster.ssh_nodes.items():
        paths = copies(made[name])
        shell(data, f"for one in {shlex.join(paths)}; do echo '# spoilt' >> $one || exit 1; done")
        spoilt += len(paths)
    mended = theirs.run()
    if mended < spoilt:
        sys.exit(f"Ansible mended {mended} of {spoilt} spoilt files")
    ours.quiet_run()
    print(f"Ansible mended {spoilt} spoilt files; gpuready then found nothing to do: both want the same")


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median, least and most."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def compare(ours: Installer, theirs: Playbook, way: Way, pairs: int) -> float:
    """Time pairs of runs in turn, after one of each that is not counted; prints a row, and returns the ratio."""
    ours.quiet_run()
    theirs.quiet_run()
    mine, other = Times(), Times()
    for _ in range(pairs):
        mine.measure(ours.quiet_run)
        other.measure(theirs.quiet_run)
        print(f"{way.title}: {mine.wall[-1]:.2f} s, Ansible {other.wall[-1]:.2f} s", file=sys.stderr, flush=True)
    ratios = [b / a for a, b in zip(mine.wall, other.wall, strict=True)]
    load = os.getloadavg()[0]
    columns = (theirs.tasks, pairs, spread(mine.wall), spread(other.wall), f"{spread(ratios, 1)}x")
    print(ROW.format(way.title, *columns, f"{median(mine.cpu):.2f}", f"{median(other.cpu):.2f}", f"{load:.1f}"))
    sys.stdout.flush()
    return median(ratios)


ROW = "{:<30}{:>6}{:>6}{:>20}{:>22}{:>18}{:>11}{:>10}{:>6}"
HEAD = ("Ansible", "tasks", "pairs", "gpuready s", "Ansible s", "ratio", "our CPU s", "their CPU", "load")


def bench(folder: Path, machines: int, pairs: int, ways: Sequence[Way]) -> int:
    """Bring machines, prepare them, compare; 1 where a ratio is below 3."""
    state = controlplane.up(folder / "state", nodes=1, ssh_nodes=machines, leash=os.getpid())
    if not state.entry or not state.machines:
        sys.exit("this host cannot have machines: `gpuready rehearse up --ssh-nodes 2` says why")
    cluster = inventory.parse("rehearsal", {**state.entry, "node": NODE}, None)
    made = plans(cluster, Api.connect(str(state.kubeconfig)))
    ours = Installer(folder, state.folder, made)
    print(f"{machines} machines, {len(copies(next(iter(made.values())))) + 1} files each; {ANSIBLE}")
    print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f} at the start")
    ours.run()
    ratios, opened = [], []
    try:
        for way in ways:
            theirs = Playbook(way, folder, cluster, made)
            opened.append(theirs)
            if way is ways[0]:
                prove(ours, theirs, cluster, made)
                print(ROW.format(*HEAD))
            ratios.append(compare(ours, theirs, way, pairs))
    finally:
        for one in opened:
            one.close()
    return int(min(ratios) < 3)


def main() -> int:
    """Print a line for each way to run Ansible."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machines", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=5, help="runs of each tool, in turn")
    numbers = range(1, len(WAYS) + 1)
    text = "; ".join(f"{number}: {way.title}" for number, way in zip(numbers, WAYS, strict=True))
    parser.add_argument("--ways", type=int, nargs="+", choices=numbers, default=[*numbers], help=text)
    chosen = parser.parse_args()
    if not shutil.which("ssh"):
        sys.exit("Ansible needs OpenSSH's client: apt install openssh-client")
    ansible()
    # So that machines and connections end, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="gr-") as name:
        try:
            return bench(Path(name), chosen.machines, chosen.pairs, [WAYS[number - 1] for number in chosen.ways])
        except GpureadyError as error:
            sys.exit(str(error))
        finally:
            controlplane.down(Path(name) / "state")


if __name__ == "__main__":
    sys.exit(main())
