"""requirements.lock: everything the project asks for, pinned by hash, from no particular index."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


@pytest.fixture(scope="module")
def lock(root: Path) -> str:
    return (root / "requirements.lock").read_text()


def test_every_requirement_is_pinned(root: Path, lock: str) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())
    asked = [
        *project["build-system"]["requires"],
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["dev"],
    ]
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)(?: ; .+)? \\$", lock, re.MULTILINE))
    for requirement in map(Requirement, asked):
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


def test_every_pin_has_a_hash(lock: str) -> None:
    blocks = re.split(r"^(?=\S)", lock, flags=re.MULTILINE)
    pins = [block for block in blocks if "==" in block and not block.startswith("#")]
    assert len(pins) > 50
    assert [block.splitlines()[0] for block in pins if "--hash=sha256:" not in block] == []


def test_no_index_is_named(lock: str) -> None:
    assert "://" not in lock and "--find-links" not in lock.replace("--no-emit-find-links", "")
