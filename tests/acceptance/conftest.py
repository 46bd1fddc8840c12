"""The acceptance suite: the checks of `gpuready accept` as tests, against a cluster of inventory.

    CLUSTER=prod .venv/bin/pytest tests/acceptance --junitxml report.xml

One run serves all tests. `--read-only` runs no pod and judges what `gpuready check` judges.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest
from gpuready.validators import registry, runs
from gpuready.validators.model import Result, Run
from gpuready.validators.progress import Progress

ROOT = Path(__file__).resolve().parents[2]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("gpuready")
    group.addoption("--inventory", default=str(ROOT / "inventory"), help="inventory file (default: the checkout's)")
    group.addoption("--read-only", action="store_true", help="run no pods")
    group.addoption("--acceptance-timeout", type=float, default=1800.0, help="seconds for the whole run")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "check" in metafunc.fixturenames:
        phase = "check" if metafunc.config.getoption("--read-only") else "accept"
        metafunc.parametrize("check", [one.id for one in registry.of_phase(phase)])


@pytest.fixture(scope="session")
def run(request: pytest.FixtureRequest) -> Run:
    """The one run that all tests look at. A cluster that does not answer is an error of every test."""
    option = request.config.getoption
    args = argparse.Namespace(
        cluster=os.environ.get("CLUSTER"),
        kubeconfig=None,
        context=None,
        inventory=option("--inventory"),
        timeout=option("--acceptance-timeout"),
        only=None,
        skip=None,
        node=None,
        strict=False,
        nccl="all",
        save=None,
        from_bundle=None,
    )
    with Progress() as progress:
        return (runs.check if option("--read-only") else runs.accept)(args, progress).run


@pytest.fixture
def results(run: Run, check: str) -> list[Result]:
    """What the run found for one check."""
    return [result for result in run.results if result.check == check]
