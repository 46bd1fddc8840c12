"""What all tests share: where the verified facts lie, and what a skip is worth."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# One line per test that may skip in CI: its id (or a prefix of it), a tab, the reason.
ALLOWED_SKIPS = Path(__file__).with_name("allowed_skips.txt")


def allowed_skips() -> list[str]:
    """The ids, or prefixes of ids, that may skip in CI."""
    lines = ALLOWED_SKIPS.read_text(encoding="utf-8").splitlines()
    return [line.partition("\t")[0] for line in lines if line and not line.startswith("#")]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With GPUREADY_NO_SKIPS set, a skip that is not on the list is a failure.

    The acceptance suite is the users': there a skip says that a cluster does not promise what a check is about.
    """
    report = yield
    ours = not item.nodeid.startswith("tests/acceptance/")
    if ours and report.skipped and os.environ.get("GPUREADY_NO_SKIPS") and not hasattr(report, "wasxfail"):
        allowed = any(item.nodeid.startswith(prefix) for prefix in allowed_skips())
        if not allowed:
            report.outcome = "failed"
            report.longrepr = f"skipped, and not in {ALLOWED_SKIPS.name}: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of verified facts, real chart values and real NCCL logs; tests skip where it is absent."""
    folder = Path(os.environ.get("GPUREADY_SHARED") or ROOT.parent / "shared")
    if not folder.is_dir():
        pytest.skip("the folder of verified facts is not here; name it with $GPUREADY_SHARED")
    return folder


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The caller's own choices must not decide a test."""
    for name in ("CLUSTER", "NO_COLOR", "FORCE_COLOR", "GPUREADY_INVENTORY"):
        monkeypatch.delenv(name, raising=False)
    yield
