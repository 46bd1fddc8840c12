"""Copies of a node's files, by a real shell: an interrupted change can still be put back by the next run."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from gpuready.charts_values.errors import InputError
from gpuready.charts_values.node_settings import parse
from gpuready.deploys.nodes import copies
from gpuready.deploys.nodes.plan import File


@pytest.fixture(autouse=True)
def before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "before"
    monkeypatch.setattr(copies, "BEFORE", str(folder))
    return folder


def sh(command: str) -> int:
    return subprocess.run(["sh", "-c", command], capture_output=True, timeout=10, check=False).returncode


def test_the_first_copies_survive_an_interruption(tmp_path: Path, before: Path) -> None:
    there, new = tmp_path / "etc" / "there", tmp_path / "etc" / "new"
    there.parent.mkdir()
    there.write_text("old\n")
    for again in (False, True):
        assert sh(copies.begin(again=again)) == 0
        for path in (there, new):
            assert sh(copies.keep(str(path))) == 0
            assert sh(copies.write(File(str(path), "changed\n"))) == 0
    assert sh(copies.restore_all()) == 0
    assert (there.read_text(), new.exists()) == ("old\n", False)
    assert sh(copies.finish()) == 0
    assert not before.exists()
    assert (Path(f"{before}.last{there}")).read_text() == "old\n"
    # Without that, the next change has copies of its own.
    assert sh(copies.begin(again=False)) == 0
    assert list(before.iterdir()) == []


def test_a_file_that_cannot_be_written_stays_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old\n")
    # A limit on the size of files is the full disk that needs no root.
    small = f"ulimit -f 1; {copies.write(File(str(path), 'x' * 5000))}"
    assert sh(small) != 0
    assert path.read_text() == "old\n"
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_the_deadline_of_a_drain_is_a_number_of_seconds() -> None:
    assert (parse("here", {}).drain_timeout, parse("here", {"drain_timeout": 60}).drain_timeout) == (900, 60)
    for wrong in (0, "60", True, 1.5):
        with pytest.raises(InputError, match=r"`drain_timeout` is .*; it is a number of seconds, such as 900"):
            parse("here", {"drain_timeout": wrong})
