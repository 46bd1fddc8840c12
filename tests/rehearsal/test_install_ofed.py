"""The installer looks where the way to a node runs before it loads OFED, and says where it could not look."""

from __future__ import annotations

from pathlib import Path

import pytest
from gpuready.rehearsal.state import State

from .installer import inventory, pyinfra


@pytest.mark.parametrize(("owner", "told"), [("operator", 1), ("host", 0)])
def test_what_could_not_be_looked_at_is_said_before_ofed_is_loaded(
    rehearsal: State, tmp_path: Path, owner: str, told: int
) -> None:
    done = pyinfra(rehearsal.folder, "--dry", file=inventory(tmp_path, ofed_owner=owner), PYINFRA_YES="")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("whether gpu-0000 gpu-0001 gpu-0002 gpu-0003 and 4 more can be reached while OFED") == told
