"""The examples of CONTRIBUTING, applied to a copy of the project as they tell, and tried."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from gpuready.rehearsal import controlplane, engine

from .commands import ROOT, environment

PACKAGES = ("charts_values", "deploys", "validators", "rehearsal")


def examples() -> list[tuple[str, str, str]]:
    """File, place and text of each example."""
    blocks = re.findall(r"^```(?:python|yaml)\n# (\S+), ([\w ]+)\n(.*?)^```", text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    return blocks


def text() -> str:
    return (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def apply(file: Path, place: str, example: str) -> None:
    """Put an example where its first line tells."""
    old = file.read_text(encoding="utf-8")
    row = re.search(r"^FAULTS.*= [\[(]\n", old, re.MULTILINE)
    if place == "at the end":
        new = f"{old}\n\n{example}" if file.suffix == ".py" else f"{old}\n{example}"
    else:
        assert row is not None, f"{file} has no FAULTS"
        at = row.start() if place == "above FAULTS" else row.end()
        new = old[:at] + (f"{example}\n\n" if place == "above FAULTS" else example) + old[at:]
    file.write_text(new, encoding="utf-8")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with the examples of Python in it."""
    folder = tmp_path_factory.mktemp("copy")
    for name in (*PACKAGES, "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("inventory", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "path" / "gpuready").mkdir(parents=True)
    for name in PACKAGES:
        (folder / "path" / "gpuready" / name).symlink_to(folder / name)
    for file, place, example in examples():
        if file.endswith(".py"):
            apply(folder / file, place, example)
    return folder


def python(copy: Path, *args: str, state_dir: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Python in the copy, with the copy's packages."""
    env = environment(state_dir or copy / "none", PYTHONPATH=str(copy / "path"))
    return subprocess.run(
        [sys.executable, "-P", *args], cwd=copy, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip


def gpuready(copy: Path, *args: str, state_dir: Path | None = None) -> str:
    done = python(copy, "-m", "gpuready.validators.cli", *args, state_dir=state_dir)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


def test_the_copy_is_what_runs(copy: Path) -> None:
    where = python(copy, "-c", "from gpuready.validators import cli; print(cli.__file__)").stdout
    assert where.startswith(str(copy))


def test_the_new_check_is_there_and_its_row_proves_it(copy: Path) -> None:
    assert "nodes.repair" in gpuready(copy, "list")
    assert "our own runbook" in gpuready(copy, "explain", "nodes.repair")
    done = python(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/unit/test_checks.py")
    assert done.returncode == 0, done.stdout[-3000:]
    assert "passed" in done.stdout


def test_the_new_release_is_planned(copy: Path) -> None:
    [(file, place, example)] = [one for one in examples() if one[0].endswith(".yaml")]
    before = (copy / file).read_text()
    apply(copy / file, place, example)
    table = yaml.safe_load(gpuready(copy, "values", "example-exporter"))
    assert (table["chart"], table["version"], table["namespace"]) == ("example-exporter", "1.2.3", "monitoring")
    (copy / file).write_text(before)


@pytest.fixture
def cluster(binaries: engine.Binaries, copy: Path, tmp_path: Path) -> Iterator[Path]:
    """A bare node, run by the copy."""
    folder = tmp_path / "state"
    gpuready(copy, "rehearse", "up", "--nodes", "1", "--leash", str(os.getpid()), state_dir=folder)
    yield folder
    controlplane.down(folder)


def test_the_new_fault_is_found_by_the_new_check(copy: Path, cluster: Path) -> None:
    def seen() -> list[tuple[str, str]]:
        results = json.loads(gpuready(copy, "check", "--only", "nodes.repair", "-o", "json", state_dir=cluster))[
            "results"
        ]
        return [(one["status"], one["detail"]) for one in results if one["check"] == "nodes.repair"]

    assert "ticket-open" in gpuready(copy, "rehearse", "faults", state_dir=cluster)
    assert seen() == [("pass", "")]
    gpuready(copy, "rehearse", "inject", "ticket-open", state_dir=cluster)
    assert seen() == [("warn", "ticket 7")]
    gpuready(copy, "rehearse", "heal", "ticket-open", state_dir=cluster)
    assert seen() == [("pass", "")]
