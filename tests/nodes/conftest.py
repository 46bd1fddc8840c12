"""Two test machines for the whole run, joined to a rehearsal cluster; they end with the test process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import paramiko
import pytest
from gpuready.charts_values.errors import ToolError
from gpuready.rehearsal import controlplane, engine
from gpuready.rehearsal.machines import host, rootfs
from gpuready.rehearsal.progress import quiet
from gpuready.rehearsal.state import State

# Runs a command on a machine as a user; returns its exit code and output.
Shell = Callable[..., tuple[int, str]]


@pytest.fixture(scope="session")
def able() -> None:
    """Skips where this host cannot have machines."""
    try:
        engine.find(make=False)
    except ToolError as error:
        pytest.skip(f"no engine: {error}")
    if fault := host.lacking(3, *([] if rootfs.find(quiet) else rootfs.lacking())):
        pytest.skip(f"no machines: {fault}")


@pytest.fixture(scope="session")
def machines(able: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[State]:
    """One simulated GPU node, and two machines; leave them as you found them."""
    folder = tmp_path_factory.mktemp("machines") / "state"
    said: list[str] = []
    now = controlplane.up(folder, nodes=1, ssh_nodes=2, leash=os.getpid(), say=said.append)
    try:
        assert now.machines, said[-1]
        yield now
    finally:
        controlplane.down(folder)


@pytest.fixture(scope="session")
def shell(machines: State) -> Shell:
    """`shell("machine-0", "id", user="root")`, over SSH, with the host keys that the rehearsal knows."""

    def run(name: str, command: str, user: str = "ops") -> tuple[int, str]:
        assert machines.entry
        data = machines.entry["ssh_nodes"][name]
        client = paramiko.SSHClient()
        client.load_host_keys(data["ssh_known_hosts_file"])
        with client:
            client.connect(
                data["ssh_hostname"],
                data["ssh_port"],
                user,
                key_filename=data["ssh_key"],
                timeout=60,
                banner_timeout=60,
                auth_timeout=60,
                allow_agent=False,
                look_for_keys=False,
            )
            _, out, err = client.exec_command(command, timeout=60)
            text = out.read().decode() + err.read().decode()
            return out.channel.recv_exit_status(), text.strip()

    return run
