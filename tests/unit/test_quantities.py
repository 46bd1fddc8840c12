"""Quantities: the API's notations, and what the two sides make of them."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from gpuready.charts_values import quantities
from gpuready.charts_values.errors import InputError
from gpuready.deploys import observed
from gpuready.validators.checks.subjects import allocatable

from .conftest import gpu_node


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *(("8", "8"), ("1k", "1000"), ("2M", "2000000"), ("1E", "1e18"), ("1e3", "1000"), ("1E3", "1000")),
        *(("12e-1", "1.2"), ("1Ki", "1024"), ("1.5Gi", "1610612736"), ("250m", "0.25"), (".5", "0.5"), ("5.", "5")),
        *(("-1", "-1"), ("100n", "1e-7"), (63, "63"), (0, "0")),
    ],
)
def test_what_the_api_writes_is_read(text: Any, number: str) -> None:
    assert quantities.parse(text) == Decimal(number)


@pytest.mark.parametrize(
    "text", ["", "k", "8 ", "8K", "1e", "0x8", "1ki", "1_000", "eight", "\u0663", None, True, ["8"]]
)
def test_what_is_no_quantity_is_refused(text: Any) -> None:
    with pytest.raises(InputError, match="is no quantity of Kubernetes"):
        quantities.parse(text)


def test_a_count_is_whole() -> None:
    assert [quantities.count(text) for text in ("1k", "8000m", "1500m")] == [1000, 8, 1]


def test_a_thousand_shares_are_a_thousand_for_checks_and_installer() -> None:
    node = gpu_node("gpu-0")
    node["status"]["allocatable"]["rdma/rdma_shared_device_a"] = "1k"
    assert allocatable(node, "rdma/rdma_shared_device_a") == 1000
    assert allocatable(node, "rdma/other") == 0
    assert observed._offered(node, "rdma/rdma_shared_device_a") == 1000


@pytest.mark.parametrize(("written", "milli"), [("500m", 500), ("2", 2000), (1.5, 1500), ("1k", 1_000_000)])
def test_cpu_is_counted_in_thousandths(written: object, milli: int) -> None:
    assert quantities.milli(written) == milli
