"""Every command that README and docs show runs, in their order, in a copy of the checkout."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from gpuready.charts_values import bill, inventory
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
    """The lines of a page's ``sh`` blocks with the exit code that a comment may announce.

    Blocks that are marked ``sh kubectl`` need that program, and count where this machine has it.
    """
    found = []
    for mark, block in re.findall(r"^ *```sh( kubectl)?\n(.*?)^ *```", read(page), re.MULTILINE | re.DOTALL):
        if mark and shutil.which("kubectl") is None:
            continue
        for line in block.splitlines():
            command, _, comment = line.partition("  # ")
            code = re.fullmatch(r"exit (\d+)", comment.strip())
            if command.strip():
                found.append((command.strip(), int(code.group(1)) if code else 0))
    return found


def entries(page: Path) -> dict[str, dict[str, object]]:
    """The inventory entries that a page's ``python`` blocks show, whole or as they stand within the table."""
    found: dict[str, dict[str, object]] = {}
    for block in re.findall(r"^```python\n(.*?)^```", read(page), re.MULTILINE | re.DOTALL):
        table = re.match(r"(?:_CLUSTERS = )?(?=[{\"])", block)
        if table is None:
            continue
        text = block[table.end() :]
        found |= ast.literal_eval(text if text.startswith("{") else "{" + text + "}")
    return {name: entry for name, entry in found.items() if not entry.get("rehearsal")}


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


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


def stand_in(folder: Path, lines: list[tuple[str, int]]) -> None:
    """An inventory in which the rehearsal stands in for every other cluster that a page names, too."""
    names = {name for command, _ in lines for name in re.findall(r"(?:CLUSTER=|--cluster )(\w+)", command)}
    rows = "".join(f'    "{name}": {{"rehearsal": True}},\n' for name in sorted(names | {"rehearsal"}))
    text = read(ROOT / "inventory").replace('    "rehearsal": {"rehearsal": True},\n', rows)
    assert rows in text
    (folder / "inventory").write_text(text, encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_commands_of_a_page(page: Path, checkout: Path, cluster: Path) -> None:
    lines = [one for one in commands(page) if one[0] not in RUN_BY_CI]
    stand_in(checkout, lines)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    # What a page says without the name of a cluster it says of the rehearsal, which is no longer the only one.
    env = environment(cluster, PATH=path, KUBECONFIG=str(cluster / "kubeconfig"), CLUSTER="rehearsal")
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
        assert done.returncode == code, f"{command}\n{done.stdout[:2000]}\n...\n{done.stderr[-3000:]}"


@pytest.mark.parametrize("page", [page for page in PAGES if entries(page)], ids=lambda page: page.name)
def test_entries_of_a_page_are_entries(page: Path) -> None:
    for name, entry in entries(page).items():
        if "groups" in entry:
            assert bill.releases(inventory.parse(name, entry))
        else:  # a part of one, which goes with any other
            whole = next(iter(entries(ROOT / "docs" / "howto" / "own-cluster.md").values()))
            inventory.parse(name, {**whole, **entry})


def test_pages_show_entries() -> None:
    assert len([page for page in PAGES if entries(page)]) >= 5


def test_ci_runs_what_this_leaves_out() -> None:
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert set(ci) >= RUN_BY_CI


def test_the_list_of_checks_is_the_registry() -> None:
    written = read(ROOT / "docs" / "reference" / "checks.md")
    assert written == catalogue.markdown(), "run: make docs"


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", read(page)):
        assert (page.parent / target).exists(), f"{page.name}: {target}"
