"""The reader against logs that people published, each with its truth labelled by hand."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from gpuready.validators import nccl

_SHARED = Path(os.environ.get("GPUREADY_SHARED") or Path(__file__).resolve().parents[3] / "shared")
_NAMES = sorted(path.stem for path in (_SHARED / "nccl-logs").glob("*.log"))
# Exit code of `gpuready nccl` for each: 1 wrong, 2 not proven, 0 proven or not applicable.
_EXIT = {
    "alcf-resnet50-20250115-slingshot-no-gdr": 1,
    "alcf-resnet50-20250115-slingshot-torn": 2,
    "alcf-resnet50-20250627-socket": 1,
    "alcf-vae-20241108-slingshot-gdr": 0,
    "alcf-vae-20250115-slingshot-torn": 2,
    "aws-efa-eks-p4d-efa-2.8.3": 0,
    "aws-efa-eks-p4d-efa-2.9.9": 0,
    "create-a3mega-h100-table": 2,
    "nano4m-two-nodes-ib-no-gdr": 1,
    "nccl-test-results-ib-gdr-allreduce": 0,
    "nccl-test-results-ib-gdr-sendrecv": 0,
    "nccl-test-results-ib-no-gdr-allreduce": 1,
    "nccl-test-results-one-host-ipc": 0,
    "nccl-test-results-one-host-shm-2.23.4": 0,
    "nccl-test-temp-2.7.8-roce-shm": 2,
    "nccl-tests-cluster-10-nodes-table": 2,
    "nccl-tests-cluster-smoke-two-tables": 2,
    "p5-nccl-test-efa-2.22.3": 0,
    "p5-nccl-test-efa-with-tuner-2.20.3": 0,
    "podman-nccl-testing-30606107-one-rank": 0,
    "podman-nccl-testing-30743802-slingshot-mr-fail": 1,
    "pwhmass-nccl-test-2.18.3-one-rank": 0,
    "pwhmass-nccl-test-2.27.7-two-ranks": 1,
    "pwhmass-nccl-test-2.28.7-segfault": 1,
    "pytorch-nccl-init-2.27.3-ibext-all": 2,
    "pytorch-nccl-init-2.27.3-ibext-init": 2,
    "pytorch-nccl-test-416593-2.4.8-ib": 1,
    "pytorch-nccl-test-416768-2.5.6-socket": 1,
    "raddet-torn-shm": 2,
    "timez-nccl-tests-2.27.7-one-process": 0,
    "zarzen-4p3dn-old-table": 2,
}


@pytest.mark.parametrize("name", _NAMES or ["absent"])
def test_agrees_with_the_truth(shared: Path, name: str) -> None:
    folder = shared / "nccl-logs"
    truth = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))

    report = nccl.read([folder / f"{name}.log"])

    assert seen(report.to_json()) == _expected(truth)
    assert nccl.verdict(report).exit_code == _EXIT[name]


def test_every_log_is_judged() -> None:
    assert set(_NAMES) <= _EXIT.keys(), "a log without an expected exit code"


def test_several_tables_are_kept_apart(shared: Path) -> None:
    name = "nccl-tests-cluster-10-nodes-table"
    truth = json.loads((shared / "nccl-logs" / f"{name}.json").read_text(encoding="utf-8"))

    facts = nccl.read([shared / "nccl-logs" / f"{name}.log"]).to_json()

    found = [facts["benchmark"], *facts["other_benchmarks"]]
    assert [
        (f"{one['collective']}_perf", one["max_size_busbw_gbytes_s"], one["average_busbw_gbytes_s"]) for one in found
    ] == [(one["collective"], one["busbw_max_size_gbps"], one["avg_busbw"]) for one in truth["tables"]]


def seen(facts: dict[str, Any]) -> dict[str, Any]:
    """What a report says, to hold against a truth."""
    transport, table = facts["transport"], facts["benchmark"] or {}
    return {
        "versions": facts["versions"],
        "hosts": set(facts["hosts"]),
        "ranks": facts["ranks"],
        "networks": set(facts["networks"]),
        "net": transport["net_channels"],
        "gdr_channels": transport["gdr_channels"],
        "gdr": transport["gdr"],
        "intranode": set(transport["intranode"]),
        "errors": {error["class"] for error in facts["errors"]},
        "busbw": table.get("max_size_busbw_gbytes_s"),
        "average": table.get("average_busbw_gbytes_s"),
        "wrong": table.get("out_of_bounds"),
        "torn": facts["torn_lines"],
    }


def _expected(truth: dict[str, Any]) -> dict[str, Any]:
    return {
        "versions": [truth["nccl_version"]] if truth["nccl_version"] else [],
        "hosts": set(truth["hosts"]),
        "ranks": truth["ranks"],
        "networks": set(truth["networks"]),
        "net": truth["net_channels"],
        "gdr_channels": truth["gdr_channels"],
        "gdr": truth["gdr"],
        "intranode": set(truth["intranode"]),
        "errors": set(truth["errors"]),
        "busbw": truth["busbw_max_size_gbps"],
        "average": truth["avg_busbw"],
        "wrong": truth["wrong_or_oob"],
        "torn": truth.get("torn_channel_records", 0),
    }
