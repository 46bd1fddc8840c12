"""Errors by class, whom they name, and which of them is the cause."""

from __future__ import annotations

import pytest
from gpuready.validators import nccl


def _warn(text: str, host: str = "gpu-a") -> str:
    return f"[2026-01-02 03:04:05] {host}:101:140 [0] transport/net_ib.cc:789 (ncclIbTest) NCCL WARN {text}\n"


def _errors(*lines: str) -> list[dict[str, object]]:
    errors: list[dict[str, object]] = nccl.read([lines]).to_json()["errors"]
    return errors


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Cuda failure 802 'system not yet initialized'", "cuda_failure"),
        ("Cuda failure 'out of memory'", "cuda_failure"),
        ("Duplicate GPU detected : rank 0 and rank 1 both on CUDA device 1000", "duplicate_gpu"),
        ("Mismatched NCCL version detected : rank 1 version 22707 rank 0 version 22105", "version_mismatch"),
        ("Bootstrap : no socket interface found", "bootstrap_no_interface"),
        ("Error: network IB not found.", "network_not_found"),
        ("MNNVL (cliqueSize 8) is available but not working on some system.", "mnnvl_not_working"),
        ("Failed to bind NVLink SHARP (NVLS) Multicast memory of size 2097152", "nvls_failed"),
        ("NET/OFI Unable to register memory (type = 2) for device 1. RC: -22", "ofi_mr_register"),
        ("Call to ibv_reg_mr failed with error Cannot allocate memory", "ib_memory_registration"),
        ("Call to ibv_modify_qp failed with 110 Connection timed out", "ib_connect"),
        ("Call to ibv_create_qp failed with error Cannot allocate memory", "ib_verbs"),
        ("NET/IB : Got async event : port error", "ib_async_fatal"),
        ("NET/IB : mlx5_3:1 Got async error event: port error", "ib_async_fatal"),
        ("NET/IB : mlx5_3:1 async fatal event on QP (0x1): local work queue catastrophic error", "ib_async_fatal"),
        ("NET/IB : Got completion with error 4, opcode 0, len 0, vendor err 81", "ib_completion_4"),
        ("NET/IB : Got completion with error 12, opcode 1, len 0, vendor err 129", "ib_completion_12"),
        (
            "NET/IB: Got completion from peer 192.0.2.2<47> with status=12 opcode=1 (Recv) hca mlx5_3",
            "ib_completion_12",
        ),
        ("NET/IB : Got completion with status=IBV_WC_RETRY_EXC_ERR(12) opcode=1", "ib_completion_12"),
        ("NET/IB : Got completion with status=13 opcode=1 len=0", "ib_completion_13"),
        ("NET/IB : Got completion with error 10, opcode 1", "ib_completion_remote"),
        ("NET/IB : Got completion with error 2, opcode 1", "ib_completion"),
        ("NET/IB : Got completion with error 5, opcode 1", "ib_completion_5"),
        ("Bootstrap timed out waiting for rank 3", "bootstrap_timeout"),
        ("Net : Connect to 192.0.2.12<4711> failed : Connection refused", "socket"),
        ("socketProgress: Connection closed by remote peer gpu-b<4711>", "socket"),
    ],
)
def test_class(text: str, name: str) -> None:
    assert [error["class"] for error in _errors(_warn(text))] == [name]


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("[gpu-a:66712] Signal: Segmentation fault (11)", "segfault"),
        (
            "mpirun noticed that process rank 0 with PID 0 on node gpu-a exited on signal 11 (Segmentation fault).",
            "segfault",
        ),
        ("gpu-a: Test CUDA failure common.cu:1031 'invalid device ordinal'", "cuda_failure"),
        ("gpu-a: Test NCCL failure all_reduce.cu:44 'unhandled system error / '", "nccl_tests_failure"),
        ("gpu-a: Test timeout (600s) common.cu:500", "nccl_tests_timeout"),
    ],
)
def test_class_outside_of_records(line: str, name: str) -> None:
    assert [error["class"] for error in _errors(line)] == [name]


def test_peer_and_hca_are_named() -> None:
    lines = [
        "gpu-b:102:150 [0] NCCL INFO NET/IB : Using [0]mlx5_0:1/IB [RO]; OOB eth0:192.0.2.12<0>\n",
        *[_warn("NET/IB: Got completion from peer 192.0.2.12<4711> with status=12 opcode=1 hca mlx5_3")] * 3,
    ]

    (error,) = _errors(*lines)

    assert (error["class"], error["count"], error["host"]) == ("ib_completion_12", 3, "gpu-a")
    assert (error["peer"], error["hca"]) == ("gpu-b", "mlx5_3")


def test_causes_come_before_consequences() -> None:
    texts = [
        "NET/IB : Got completion with error 5, opcode 1",
        "socketProgress: Connection closed by remote peer gpu-b<4711>",
        "NET/IB : Got completion with error 12, opcode 1",
        "NET/IB : mlx5_3:1 Got async event : port error",
    ]

    errors = _errors(*map(_warn, texts), "gpu-a: Test NCCL failure x.cu:1 'remote process exited / '")

    assert [error["class"] for error in errors] == ["ib_async_fatal", "ib_completion_12", "socket", "ib_completion_5"]
    assert errors[0]["hca"] == "mlx5_3"


@pytest.mark.parametrize(
    "text", ["NET/IB : mlx5_0:1 Got non-fatal async event: GID table change (18)", "Something new and unheard of"]
)
def test_unknown_warnings_are_told_but_fail_nothing(text: str) -> None:
    report = nccl.read([[_warn(text), _warn(text)]])

    assert report.errors == ()
    assert [(one.count, one.text) for one in report.warnings] == [(2, text)]


def test_harmless_warning_is_silent() -> None:
    report = nccl.read([[_warn("Could not find real path of mlx5_0 (/sys/class/infiniband/mlx5_0/device)")]])

    assert (report.errors, report.warnings) == ((), ())


def test_failed_call_without_a_message_leaves_the_log_open() -> None:
    report = nccl.read([["gpu-a:1:2 [0] NCCL INFO transport/net.cc:783 -> 2\n"]])

    assert "calls inside NCCL returned 2 and no message says why" in report.incomplete
    closing = nccl.read([["gpu-a:1:2 [0] NCCL INFO misc/socket.cc:47 -> 3\n"]])
    assert not any("calls" in reason for reason in closing.incomplete)


def test_a_million_errors_cost_one_entry() -> None:
    lines = [_warn(f"NET/IB : Got completion with error 12, opcode {n}") for n in range(2000)]

    assert [error["count"] for error in _errors(*lines)] == [2000]
