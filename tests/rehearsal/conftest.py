"""Rehearsal clusters for tests. They end with the test process, however it ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from gpuready.charts_values.errors import ToolError
from gpuready.rehearsal import controlplane, engine, processes, state
from gpuready.rehearsal.state import State

from . import commands, trouble


@pytest.fixture(scope="session")
def binaries() -> engine.Binaries:
    """The engine, where this machine has it; a test never downloads or builds it."""
    try:
        return engine.find(make=False)
    except ToolError as error:
        pytest.skip(f"no engine: {error}")


@pytest.fixture(scope="session")
def rehearsal(binaries: engine.Binaries, tmp_path_factory: pytest.TempPathFactory) -> Iterator[State]:
    """A bare cluster of 8 h100-ib nodes for the whole run; leave it as you found it."""
    folder = tmp_path_factory.mktemp("rehearsal") / "state"
    yield controlplane.up(folder, nodes=8, profile="h100-ib", leash=os.getpid())
    controlplane.down(folder)


@pytest.fixture
def state_dir(binaries: engine.Binaries, tmp_path: Path) -> Iterator[Path]:
    """The folder of a cluster that the test starts itself; nothing of it outlives the test."""
    folder = tmp_path / "state"
    yield folder
    if (folder / "state.json").exists() or processes.marked(folder):
        controlplane.down(folder)
    assert processes.marked(folder) == []
    assert not state.memory_folder(folder).exists()


@pytest.fixture(scope="session")
def installed(binaries: engine.Binaries, tmp_path_factory: pytest.TempPathFactory) -> Iterator[State]:
    """Four h100-ib nodes with everything installed by the literal command; heal what you break."""
    folder = tmp_path_factory.mktemp("installed") / "state"
    now = controlplane.up(folder, nodes=4, profile="h100-ib", leash=os.getpid())
    done = commands.run("pyinfra", "inventory", "deploys/gpu.py", state_dir=folder, seconds=240)
    assert done.returncode == 0, done.stderr[-4000:]
    yield now
    controlplane.down(folder)


@pytest.fixture
def network(installed: State, tmp_path: Path) -> Iterator[trouble.Proxy]:
    """The way to the installed cluster, which a test may spoil."""
    with trouble.proxy(installed, tmp_path) as running:
        yield running
