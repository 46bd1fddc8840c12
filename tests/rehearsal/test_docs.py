"""Every command that README and docs show runs, in their order, in a copy of the checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from gpuready.rehearsal import controlplane, engine
from gpuready.rehearsal.state import State
from gpuready.validators import catalogue

from .commands import BIN, ROOT, environment

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
# CI runs these as they stand; from within the tests they would run the tests again.
RUN_BY_CI = {"make rehearse", "make test"}
# They need nothing of a cluster that is up, and must find none when they begin.
BARE = ("tutorial.md",)


def commands(page: Path) -> list[tuple[str, int]]:
    """The lines of a page's ``sh`` blocks with the exit code that a comment may announce."""
    found = []
    for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            command, _, comment = line.partition("  # ")
            code = re.fullmatch(r"exit (\d+)", comment.strip())
            if command.strip():
                found.append((command.strip(), int(code.group(1)) if code else 0))
    return found


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The tracked files as they are now, with this very virtual environment."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, timeout=30, check=True,
    ).stdout  # fmt: skip
    folder = tmp_path / "checkout"
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    (folder / ".venv").symlink_to(BIN.parent)
    return folder


@pytest.fixture
def cluster(request: pytest.FixtureRequest, binaries: engine.Binaries, tmp_path: Path) -> Iterator[Path]:
    """The state folder that a page's commands use: installed, or empty where the page starts the cluster."""
    page: Path = request.getfixturevalue("page")
    if page.name in BARE:
        folder = tmp_path / "state"
        yield folder
        controlplane.down(folder)
    else:
        installed: State = request.getfixturevalue("installed")
        yield installed.folder


def prod_inventory(folder: Path, state: Path) -> None:
    """An inventory with an entry `prod`, as the how-to describes it: here it is the rehearsal."""
    (folder / "inventory").write_text(
        (ROOT / "inventory")
        .read_text(encoding="utf-8")
        .replace('    "rehearsal": {"rehearsal": True},\n', '    "prod": {"rehearsal": True},\n'),
        encoding="utf-8",
    )
    assert "prod" in (folder / "inventory").read_text()


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_commands_of_a_page(page: Path, checkout: Path, cluster: Path) -> None:
    lines = [one for one in commands(page) if one[0] not in RUN_BY_CI]
    if any("prod" in command for command, _ in lines):
        prod_inventory(checkout, cluster)
    env = environment(cluster, PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    for command, code in lines:
        if command.startswith("make"):
            target = ["make", "-n", *command.split()[1:]]  # what it would run; CI runs the targets themselves
            done = subprocess.run(
                target, cwd=checkout, env=env, capture_output=True, text=True, timeout=60, check=False
            )
        else:
            done = subprocess.run(
                ["bash", "-c", command],
                cwd=checkout,
                env=env,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
        assert done.returncode == code, f"{command}\n{done.stdout[-2000:]}{done.stderr[-3000:]}"


def test_ci_runs_what_this_leaves_out() -> None:
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert set(ci) >= RUN_BY_CI


def test_the_list_of_checks_is_the_registry() -> None:
    written = (ROOT / "docs" / "reference" / "checks.md").read_text(encoding="utf-8")
    assert written == catalogue.markdown(), "run: make docs"


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name}: {target}"
