"""Each check of gpuready is one test; its message is the report's own text."""

from __future__ import annotations

import pytest
from gpuready.validators.model import Result, Status
from gpuready.validators.report.groups import group


def test_check(check: str, results: list[Result]) -> None:
    assert results, f"{check} judged nothing"
    wrong = [
        result
        for result in results
        if result.status is Status.FAIL
        or (result.finding.required and result.status in (Status.ERROR, Status.UNPROVEN))
    ]
    if wrong:
        pytest.fail(
            "\n".join(
                f"{one.first.status.value}: {one.first.finding.cause} ({one.subjects})\n"
                f"  seen: {one.first.finding.detail}\n  fix:  {one.first.fix}"
                for one in group(wrong)
            ),
            pytrace=False,
        )
    if all(result.status is Status.SKIP for result in results):
        pytest.skip(results[0].finding.cause)
