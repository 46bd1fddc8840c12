"""Verdicts on whole runs: what passes, what fails, and what stays open. Logs come from the rehearsal's fabric."""

from __future__ import annotations

from typing import Any

import pytest
from gpuready.rehearsal.outputs.nccl import Host, render
from gpuready.validators import nccl
from gpuready.validators.nccl import Verdict


def _host(number: int, **changes: Any) -> Host:
    promised: dict[str, Any] = {
        "name": f"nccl-{number}",
        "gpus": 8,
        "nics": tuple(f"mlx5_{nic}" for nic in range(8)),
        "link": "IB",
        "nic_gbits_s": 400,
        "rdma": True,
        "gdr": True,
        "address": f"10.20.0.{number}",
    }
    return Host(**{**promised, **changes})


def _lines(*hosts: Host) -> list[str]:
    logs = render(hosts, min_bytes=8 << 20, max_bytes=8 << 30, seed=1).logs
    return [line for log in logs.values() for line in log.splitlines(keepends=True)]


def _judge(lines: list[str], **asked: Any) -> Verdict:
    return nccl.verdict(nccl.read([lines]), **asked)


def _bad(verdict: Verdict) -> list[tuple[str, str, str]]:
    return [(one.check, one.reason, one.name) for one in verdict.findings if one.status in ("fail", "unproven")]


@pytest.mark.parametrize("count", [2, 3, 4, 7])
def test_healthy_run_passes(count: int) -> None:
    lines = _lines(*map(_host, range(count)))
    report = nccl.read([lines])

    verdict = nccl.verdict(report, rails=8, network="IB")

    assert (verdict.status, verdict.exit_code, _bad(verdict)) == ("pass", 0, [])
    assert (report.ranks, report.nodes, report.gdr) == (8 * count, count, "all")
    assert nccl.why_no_gdr(report) == []


def test_one_node_has_nothing_to_prove() -> None:
    verdict = _judge(_lines(_host(0)))

    assert (verdict.status, verdict.exit_code) == ("pass", 0)
    assert ("nccl.transport", "NotApplicable") in {(one.check, one.reason) for one in verdict.findings}


def test_the_host_on_sockets_is_blamed_and_its_peers_are_not() -> None:
    lines = _lines(_host(0), _host(1, rdma=False), _host(2))
    report = nccl.read([lines])

    verdict = nccl.verdict(report)

    assert verdict.exit_code == 1
    assert _bad(verdict) == [("nccl.transport", "TcpFallback", "nccl-1")]
    assert [one.reason for one in nccl.why_no_gdr(report)] == ["NoRdmaDevice"]


def test_with_one_peer_on_sockets_nothing_is_known_of_the_other() -> None:
    verdict = _judge(_lines(_host(0), _host(1, rdma=False)))

    assert _bad(verdict) == [
        ("nccl.transport", "TcpFallback", "nccl-1"),
        ("nccl.transport", "OnlyPeersTcp", "nccl-0"),
    ]


def test_host_without_gpudirect_is_named() -> None:
    report = nccl.read([_lines(_host(0), _host(1), _host(2, gdr=False))])

    verdict = nccl.verdict(report)

    assert report.gdr == "partial"
    assert (verdict.exit_code, _bad(verdict)) == (1, [("nccl.transport", "NoGpuDirect", "nccl-2")])
    (reason,) = nccl.why_no_gdr(report)
    assert reason.reason == "SomeHosts" and "nccl-2" in reason.evidence


def test_no_host_with_gpudirect_and_no_word_why() -> None:
    report = nccl.read([_lines(_host(0, gdr=False), _host(1, gdr=False))])

    assert (report.gdr, nccl.verdict(report).exit_code) == ("none", 1)
    assert [one.reason for one in nccl.why_no_gdr(report)] == ["NotShown"]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ("NET/IB : GPU Direct RDMA Disabled for HCA 0 'mlx5_0' (no module)", "NoModule"),
        ("NET/IB : GPU Direct RDMA Disabled for GPU 0[0] / HCA 0 'mlx5_0' (no module or not)", "NoModule"),
        ("NET/IB : GPU Direct RDMA Disabled for HCA 0 'mlx5_0'", "NicWithoutGpuMemory"),
        ("GPU Direct RDMA Disabled for GPU 81000 / HCA 0 (distance 6 > 4)", "TooFar"),
        ("GPU Direct RDMA Disabled for GPU/0-81000 (rank 0) - NET/0-0 (distance 8 > 5)", "TooFar"),
        ("NET/OFI Could not disable CUDA API usage for HMEM, disabling GDR", "PluginDisabledIt"),
        ("NCCL_NET_GDR_LEVEL set by environment to LOC", "GdrLevel"),
    ],
)
def test_why_gpudirect_is_off(record: str, reason: str) -> None:
    lines = _lines(_host(0, gdr=False), _host(1, gdr=False))
    said = [f"nccl-{number}:101:201 [0] NCCL INFO {record}\n" for number in (0, 1)]

    found = nccl.why_no_gdr(nccl.read([lines + said]))

    assert [one.reason for one in found] == [reason]


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("NCCL_IB_DISABLE set by environment to 1", "IbDisabled"),
        ("NCCL_NET set by environment to Socket", "NetForced"),
        ("NCCL_IB_HCA set to mlx5_9", "HcaFilter"),
    ],
)
def test_why_tcp(setting: str, reason: str) -> None:
    lines = _lines(_host(0, rdma=False), _host(1, rdma=False))

    found = nccl.why_no_gdr(nccl.read([[*lines, f"nccl-0:101:201 [0] NCCL INFO {setting}\n"]]))

    assert found[0].reason == reason


def test_reads_that_go_through_the_host() -> None:
    lines = [line.replace("/GDRDMA", "") if "[send]" in line else line for line in _lines(_host(0), _host(1))]

    report = nccl.read([lines])

    assert report.gdr == "partial"
    assert [one.reason for one in nccl.why_no_gdr(report)] == ["SendOnly"]


def test_one_nic_without_gpudirect_is_named() -> None:
    lines = [line.replace("NET/IB/3/GDRDMA", "NET/IB/3") for line in _lines(_host(0), _host(1))]

    report = nccl.read([lines])

    assert [(one.reason, one.evidence) for one in nccl.why_no_gdr(report)] == [
        ("SomeNics", "nccl-0 NIC 3, nccl-1 NIC 3")
    ]


def test_gpudirect_by_decree_passes_and_says_so() -> None:
    said = "nccl-0:101:201 [0] NCCL INFO NCCL_NET_GDR_LEVEL set by environment to SYS\n"

    verdict = _judge([*_lines(_host(0), _host(1)), said])

    assert verdict.exit_code == 0
    details = [one.detail for one in verdict.findings if one.check == "nccl.transport"]
    assert all("by decree" in detail for detail in details)


def test_missing_rail_is_named() -> None:
    seven = tuple(f"mlx5_{nic}" for nic in range(7))
    lines = _lines(_host(0), _host(1, nics=seven))

    assert _judge(lines).exit_code == 0
    verdict = _judge(lines, rails=8)
    assert verdict.exit_code == 1
    assert ("nccl.rails", "FewerRails", "nccl-1") in _bad(verdict)


def test_missing_rail_of_a_torn_log_is_open() -> None:
    lines = [line for line in _lines(_host(0), _host(1)) if "NET/IB/5" not in line or "[send]" not in line]
    lines = [line for line in lines if "nccl-0" not in line or "NET/IB/5" not in line]

    assert {(one.check, one.status) for one in _judge(lines, rails=8).findings if one.reason == "FewerRails"} == {
        ("nccl.rails", "unproven")
    }


def test_rails_in_another_order_are_a_warning() -> None:
    said = "There are mismatched physical devices between local (mlx5_0) and remote (mlx5_1). To disable this warning"

    verdict = _judge([*_lines(_host(0), _host(1)), f"nccl-1:101:301 [0] NCCL INFO {said}\n"], rails=8)

    assert verdict.exit_code == 0
    assert [(one.reason, one.name) for one in verdict.findings if one.status == "warn"] == [
        ("RailsMismatched", "nccl-1 (order)")
    ]


@pytest.mark.parametrize(("asked", "code"), [("IB", 0), ("AWS Libfabric", 1)])
def test_network_asked_for(asked: str, code: int) -> None:
    assert _judge(_lines(_host(0), _host(1)), network=asked).exit_code == code


def test_network_with_a_version_in_its_name() -> None:
    lines = [line.replace("network IB", "network IBext_v10") for line in _lines(_host(0), _host(1))]

    assert _judge(lines, network="IBext").exit_code == 0
    assert _judge(lines, network="IB").exit_code == 1


def test_wrong_results_fail() -> None:
    lines = _lines(_host(0), _host(1))
    wrong = [line.replace("values : 0 OK", "values : 3 FAILED") for line in lines]

    verdict = _judge(wrong)

    assert (verdict.exit_code, _bad(verdict)) == (1, [("nccl.correct", "WrongResults", "log")])


def test_error_is_put_on_the_peer_it_names() -> None:
    warn = (
        "nccl-0:101:301 [0] transport/net_ib.cc:1 NCCL WARN NET/IB: Got completion from peer 10.20.0.1<47> with "
        "status=12 opcode=1 hca mlx5_3\n"
    )

    verdict = _judge([*_lines(_host(0), _host(1)), warn])

    assert verdict.exit_code == 1
    first = verdict.findings[0]
    assert (first.check, first.reason, first.name) == ("nccl.errors", "IbCompletion12", "nccl-1")
    assert "mlx5_3" in first.detail


def test_silent_rank_leaves_it_open() -> None:
    lines = [line for line in _lines(_host(0), _host(1)) if not line.startswith("nccl-1:105:")]

    verdict = _judge(lines)

    assert verdict.exit_code == 2
    detail = next(one.detail for one in verdict.findings if one.check == "nccl.complete")
    assert "1 ranks were not seen to finish initialising" in detail


def test_process_that_connects_nothing_leaves_it_open() -> None:
    lines = [line for line in _lines(_host(0), _host(1)) if not (line.startswith("nccl-1:105:") and " via " in line)]

    detail = next(one.detail for one in _judge(lines).findings if one.check == "nccl.complete")

    assert "nccl-1:105" in detail


def test_both_halves_of_a_ring_hop_gone_leaves_it_open() -> None:
    """Without the printed ring, the rest would look whole."""
    lost = "Channel 03/0 : 3[3] -> 11[3]"
    lines = _lines(_host(0), _host(1))
    assert sum(lost in line for line in lines) == 2

    verdict = _judge([line for line in lines if lost not in line])

    assert verdict.exit_code == 2


def test_separate_runs_prove_nothing() -> None:
    lines = []
    for host in ("gpu-a", "gpu-b"):
        for pid in (101, 102):
            lines += _alone(host, pid)

    verdict = _judge(lines)

    assert (verdict.exit_code, _bad(verdict)) == (2, [("nccl.transport", "SeparateRuns", "log")])


def test_one_run_of_one_rank_is_not_applicable() -> None:
    assert _judge(_alone("gpu-a", 101)).exit_code == 0


def test_no_record_at_all_is_open() -> None:
    verdict = _judge(["hello\n"], rails=8, network="IB")

    assert verdict.exit_code == 2
    assert {reason for _, reason, _ in _bad(verdict)} == {"NoNetChannel", "NoRails", "NoNetwork", "Incomplete"}


def test_mixed_versions_are_a_warning() -> None:
    lines = [
        line.replace("2.27.7", "2.26.2") if line.startswith("nccl-1") else line for line in _lines(_host(0), _host(1))
    ]

    verdict = _judge(lines)

    assert verdict.exit_code == 0
    assert [one.check for one in verdict.findings if one.status == "warn"] == ["nccl.versions"]


@pytest.mark.parametrize(
    ("product", "nics", "rate", "nodes", "rdma", "baseline"),
    [
        ("NVIDIA-H100-80GB-HBM3", 8, 400, 1, True, 460),
        ("NVIDIA H100 80GB HBM3", 8, 400, 2, True, 440),
        ("NVIDIA H100 80GB HBM3", 32, 100, 2, True, 437),
        ("NVIDIA-H100-80GB-HBM3", 8, 400, 16, True, 366),
        ("NVIDIA-H100-80GB-HBM3", 8, 200, 2, True, 334),
        ("NVIDIA-H200", 8, 400, 2, True, 440),
        ("NVIDIA-B200", 8, 400, 3, True, 384),
        ("NVIDIA-A100-SXM4-80GB", 8, 200, 2, True, 185),
        ("NVIDIA-A100-SXM4-80GB", 0, 0, 1, False, 228),
    ],
)
def test_known_floor(product: str, nics: int, rate: float, nodes: int, rdma: bool, baseline: float) -> None:
    floor = nccl.expected_floor(product, nics, rate, nodes, rdma)

    assert floor is not None and floor.gbytes_s == baseline and floor.source
    assert (floor.fail_gbytes_s, floor.warn_gbytes_s) == (round(baseline * 0.8, 1), round(baseline * 0.92, 1))


@pytest.mark.parametrize(
    ("product", "nics", "rate", "nodes", "rdma"),
    [
        ("NVIDIA-L40S", 0, 0, 2, False),
        ("NVIDIA-H100-80GB-HBM3", 8, 400, 2, False),
        ("NVIDIA-H100-80GB-HBM3", 4, 400, 2, True),
        ("NVIDIA-H100-NVL", 8, 400, 2, True),
        ("NVIDIA-H200-NVL", 8, 400, 2, True),
        ("NVIDIA-GB200", 4, 400, 2, True),
        ("NVIDIA-GH200-480GB", 8, 400, 1, True),
        ("NVIDIA-A100-PCIE-40GB", 8, 200, 2, True),
    ],
)
def test_unknown_class_has_no_floor(product: str, nics: int, rate: float, nodes: int, rdma: bool) -> None:
    assert nccl.expected_floor(product, nics, rate, nodes, rdma) is None


def _alone(host: str, pid: int) -> list[str]:
    prefix = f"{host}:{pid}:{pid} [0] NCCL INFO"
    init = f"comm 0x{pid} rank 0 nranks 1 cudaDev 0 nvmlDev 0 busId 1b000 commId 0x{host[-1]}{pid}"
    return [
        f"{prefix} {init} - Init START\n",
        f"{prefix} comm 0x{pid} rank 0 nRanks 1 nNodes 1 localRanks 1 localRank 0 MNNVL 0\n",
        f"{prefix} {init} - Init COMPLETE\n",
    ]
