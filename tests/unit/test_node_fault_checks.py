"""Every check of a machine has a fault that tests/nodes makes on one, or a reason why not; the page says so."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from gpuready.validators import registry

from ..nodes import faults

PAGE = Path(__file__).parents[2] / "docs/reference/node-faults.md"


def test_every_check_has_a_fault_on_a_machine_or_a_reason() -> None:
    checks = {one.id for one in registry.all_checks() if one.group == "node"}
    made = {one.check for one in faults.FAULTS}
    assert made | faults.NOT_MADE.keys() == checks
    assert not made & faults.NOT_MADE.keys()
    known = {name for one in faults.FAULTS for name in one.also} - {"node.*"}
    assert known <= checks


def test_rows_differ_and_none_is_undone_by_nothing() -> None:
    assert max(Counter((one.check, one.reason) for one in faults.FAULTS).values()) == 1
    assert all(one.make.strip() and one.undo.strip() and one.make != one.undo for one in faults.FAULTS)


def test_the_page_is_written_from_the_table() -> None:
    write = "python -m tests.nodes.faults > docs/reference/node-faults.md"
    assert PAGE.read_text(encoding="utf-8") == faults.markdown(), write
