"""`gpuready rehearse up` in trouble: one line, exit code 2, no process and no file left."""

from __future__ import annotations

import os
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from gpuready.rehearsal import components, controlplane, engine, processes, state

from .commands import BIN, run
from .spoilt import Done, complaint, confined

# On a leash: where one of these comes up after all, it ends with the tests.
UP = f"gpuready rehearse up --nodes 1 --leash {os.getpid()} --state-dir"


@pytest.fixture
def place(binaries: engine.Binaries, tmp_path: Path) -> Iterator[Path]:
    """Where the state folder shall be; in the end nothing of a cluster is there, or elsewhere."""
    folder = tmp_path / "place"
    folder.mkdir()
    yield folder
    assert list(folder.iterdir()) == []
    for one in (folder, folder / "state"):
        assert processes.marked(one) == []
        assert not state.memory_folder(one).exists()


def up(folder: Path, before: str) -> Done:
    """`gpuready rehearse up` after the script ``before``; nothing may be left where only that script can look."""
    left = folder.parent.parent / "left"
    script = f"{before}; code=0; {UP} {folder} || code=$?; ls -A {folder.parent} /dev/shm > {left}; exit $code"
    done = confined(script, folder)
    assert not {folder.name, state.memory_folder(folder).name} & set(left.read_text().split())
    return done


@pytest.mark.parametrize("size", ["4k", "40k"])
def test_a_disk_that_is_full(place: Path, size: str) -> None:
    line = complaint(up(place / "state", f"mount -t tmpfs -o size={size} full {place}"))
    assert line == f"cannot write {place}/state: No space left on device; give another --state-dir"


def test_no_room_for_the_data_anywhere(place: Path) -> None:
    small = f"mount -t tmpfs -o size=30m small {place}; mount -t tmpfs -o size=1m small /dev/shm"
    line = complaint(up(place / "state", small))
    free = f"30 MiB are free in {place}/state and 96 MiB are needed"
    assert line == f"no room for a cluster's data: {free}; give another --state-dir"


@pytest.mark.parametrize("files", [8, 20, 27, 30])
def test_a_disk_that_fills_up_later(place: Path, files: int) -> None:
    """Room for the data, but for so many files only: the disk is full at another moment each time."""
    small = f"mount -t tmpfs -o size=200m,nr_inodes={files} few {place}; mount -t tmpfs -o size=1m small /dev/shm"
    line = complaint(up(place / "state", small))
    assert "no space left on device" in line.lower()
    # Either we ourselves found no room, or a program of the engine, whose last words are shown.
    assert line.startswith("cannot write ") or " ended while we waited for " in line


def test_no_folder_in_memory(place: Path) -> None:
    there = place / "state"
    script = f"mount -t tmpfs -o ro none /dev/shm; {UP} {there}; test -d {there}/data; "
    script += f"gpuready rehearse status --state-dir {there}; gpuready rehearse down --state-dir {there}"
    done = confined(script, there)
    assert done.returncode == 0, done.stderr


def test_a_read_only_place(place: Path) -> None:
    locked = f"mount -t tmpfs none {place}; mkdir {place}/there; mount -o remount,ro {place}"
    line = complaint(confined(f"{locked}; {UP} {place}/state", place))
    assert line == f"cannot use {place}/state as state folder: Read-only file system"
    line = complaint(confined(f"{locked}; {UP} {place}/there", place))
    assert line == f"cannot write {place}/there: Read-only file system; give another --state-dir"


def test_a_place_of_somebody_else(place: Path) -> None:
    line = complaint(confined(f"chmod 555 {place}; {UP} {place}/state", place))
    assert line == f"cannot use {place}/state as state folder: Permission denied"
    if os.geteuid() == 0:
        others = f"mount -t tmpfs none {place}; mkdir {place}/theirs; chown 65534 {place}/theirs"
        line = complaint(confined(f"{others}; {UP} {place}/theirs", place))
        assert line == f"cannot write {place}/theirs: Operation not permitted; give another --state-dir"
        others = f"mount -t tmpfs none {place}; mkdir -m 700 {place}/theirs; chown 65534 {place}/theirs"
        line = complaint(confined(f"{others}; {UP} {place}/theirs", place))
        assert line == f"cannot use {place}/theirs as state folder: Permission denied"


def test_what_is_no_folder(place: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder, why in ((tmp_path / "file", "File exists"), (tmp_path / "file" / "below", "Not a directory")):
        done = run("gpuready", "rehearse", "up", "--state-dir", str(folder), state_dir=folder)
        assert complaint(done) == f"cannot use {folder} as state folder: {why}"


def test_files_of_somebody_else_are_left_alone(place: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.tex").touch()
    done = run("gpuready", "rehearse", "up", "--state-dir", str(tmp_path / "theirs"), state_dir=tmp_path)
    assert complaint(done).endswith("holds files, but no rehearsal cluster; give another folder with --state-dir")
    assert (tmp_path / "theirs" / "thesis.tex").exists()


def test_a_cache_that_cannot_be_written(place: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    locked = f"mount -t tmpfs -o ro none {tmp_path}/cache"
    # Without any other place from which the engine could come.
    script = f"{locked}; PATH={BIN}:/usr/bin:/bin; {UP} {place}/state"
    line = complaint(confined(script, place, XDG_CACHE_HOME=f"{tmp_path}/cache", GPUREADY_BIN=""))
    assert line == f"cannot write to the cache {tmp_path}/cache/gpuready: Read-only file system; set $XDG_CACHE_HOME"


# -- ports ------------------------------------------------------------------------------------------------


@contextmanager
def taken() -> Iterator[int]:
    """A port on which another program takes connections, and drops them."""
    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("name", ["etcd", "kube-apiserver", "kwok"])
def test_a_port_that_was_taken_meanwhile(state_dir: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The chance that another program is faster is too small to wait for: the first choice is made for it."""
    said: list[str] = []
    choose = components.free_ports
    with taken() as port:
        choices = iter([{**choose(), name: port}])
        monkeypatch.setattr(components, "free_ports", lambda: next(choices, None) or choose())
        now = controlplane.up(state_dir, nodes=1, say=said.append, leash=os.getpid())
    assert "another program has taken a port meanwhile; starting again on other ports" in said
    assert now.dead() == [] and port not in now.ports.values()
