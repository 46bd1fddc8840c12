"""The machines of a rehearsal on paper: names, addresses and what each is called on the host.

All of it follows from the state folder and the network that was chosen, so that what a killed rehearsal left
behind is found without a record.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, ip_network
from pathlib import Path
from typing import Any

from gpuready.charts_values.errors import ToolError

from .. import processes

MOST = 8
# Label and taint of the nodes: what the fleet runs would not work there.
MARK = "rehearsal.gpuready.io/machine"
SSH_USER = "ops"
SSH_PORT = 22
API_PORT = 6443
IMAGES_PORT = 5000
# Set aside for test beds (RFC 2544), and so not in use in anybody's office or cluster.
_RANGE = IPv4Network("198.18.0.0/15")
_PREFIX = 24
_FIRST_HOST = 11
_SECONDS = 10.0


@dataclass(frozen=True)
class Machine:
    """One machine: ``address`` is its own, ``pods`` the pod CIDR that its network plugin hands out."""

    name: str
    address: str
    pods: str


@dataclass(frozen=True)
class Plan:
    """The machines of the rehearsal in ``folder``, on ``network``; their pods' CIDRs end ``pods``."""

    folder: Path
    network: str
    pods: str
    count: int

    @property
    def machines(self) -> tuple[Machine, ...]:
        """All of them, in order."""
        net = IPv4Network(self.network)
        # The fleet's /24s count from the start of the range.
        last = _last_subnets(self.pods, self.count)
        return tuple(
            Machine(f"machine-{index}", str(net[_FIRST_HOST + index]), pods) for index, pods in enumerate(last)
        )

    @property
    def gateway(self) -> str:
        """The address at which the machines reach the API server."""
        return str(IPv4Network(self.network)[1])

    @property
    def host(self) -> str:
        """The host's own address among the machines."""
        return str(IPv4Network(self.network)[2])

    @property
    def home(self) -> Path:
        """What the machines own on disk."""
        return self.folder / "machines"

    @property
    def ssh_user(self) -> str:
        """Who logs in; root may, too."""
        return SSH_USER

    @property
    def key(self) -> Path:
        """The private SSH key, made for this rehearsal."""
        return self.home / "id_ed25519"

    @property
    def known_hosts(self) -> Path:
        """The machines' SSH host keys."""
        return self.home / "known_hosts"

    def ssh_nodes(self) -> dict[str, dict[str, Any]]:
        """The connection data of each machine, as `inventory` and pyinfra want them."""
        return {
            machine.name: {
                "ssh_hostname": machine.address,
                "ssh_port": SSH_PORT,
                "ssh_user": SSH_USER,
                "ssh_key": str(self.key),
                "ssh_known_hosts_file": str(self.known_hosts),
                "ssh_strict_host_key_checking": "yes",
                "_sudo": True,
            }
            for machine in self.machines
        }

    def record(self) -> dict[str, Any]:
        """What ``state.json`` says about the machines."""
        return {
            "network": self.network,
            "pods": self.pods,
            "nodes": {
                one.name: {"address": one.address, "ssh_port": SSH_PORT, "ssh_key": str(self.key)}
                for one in self.machines
            },
        }

    @classmethod
    def of(cls, folder: Path, record: dict[str, Any]) -> Plan:
        """The plan that a record describes."""
        return cls(folder, record["network"], record["pods"], len(record["nodes"]))


def link(folder: Path) -> str:
    """The name of the network interface on the host; the kernel allows 15 characters."""
    return f"gpr-{_digest(folder)}"


def group(folder: Path) -> str:
    """The name of the control group that holds every process of the machines."""
    return f"gpuready-{_digest(folder)}"


def draw(folder: Path, pods: str, count: int) -> Plan:
    """Choose a network that nothing on this host uses. Raises ToolError where there is none.

    No other rehearsal of this host is given it while this process lives: until the machines are up it looks free.
    """
    taken = list(_routes())
    subnets = list(_RANGE.subnets(new_prefix=_PREFIX))
    first = int(_digest(folder), 16) % len(subnets)
    for subnet in subnets[first:] + subnets[:first]:
        if not any(subnet.overlaps(one) for one in taken) and processes.claimed(f"network-{subnet}"):
            return Plan(folder, str(subnet), pods, count)
    raise ToolError(f"the host has routes to all of {_RANGE}, so the machines have no network")


def _last_subnets(pods: str, count: int) -> list[str]:
    net = ip_network(pods)
    size = 1 << (net.max_prefixlen - 24)
    end = int(net.broadcast_address) + 1
    return [f"{type(net.network_address)(end - (index + 1) * size)}/24" for index in range(count)]


def _routes() -> Iterable[IPv4Network]:
    command = ["ip", "-json", "-4", "route", "show", "table", "all"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True)
        routes = json.loads(answer.stdout or "[]")
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise ToolError(f"{' '.join(command)} failed: {error}") from error
    for route in routes:
        if route["dst"] != "default":
            yield IPv4Network(route["dst"], strict=False)


def _digest(folder: Path) -> str:
    return hashlib.sha256(str(folder).encode()).hexdigest()[:10]
