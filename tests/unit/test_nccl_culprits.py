"""Whom and what a verdict names: hosts, processes, NICs, directions, plug-ins; and what it says to look at next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gpuready.rehearsal.outputs.nccl import Host, render
from gpuready.validators import cli, nccl
from gpuready.validators.checks.nccl import nccl_transport
from gpuready.validators.evidence import Evidence
from gpuready.validators.expected import Expected
from gpuready.validators.nccl_evidence import NcclRun

_H100 = "NVIDIA H100 80GB HBM3"


def _lines(*changes: dict[str, Any]) -> list[str]:
    """The log of hosts nccl-0, nccl-1, ... with two GPUs and two NICs each."""
    promised: dict[str, Any] = {
        "gpus": 2,
        "nics": ("mlx5_0", "mlx5_1"),
        "link": "IB",
        "nic_gbits_s": 400,
        "rdma": True,
        "gdr": True,
    }
    hosts = [
        Host(name=f"nccl-{number}", address=f"10.20.0.{number}", **{**promised, **change})
        for number, change in enumerate(changes)
    ]
    logs = render(hosts, min_bytes=1 << 28, max_bytes=1 << 30, seed=3).logs.values()
    return [line for log in logs for line in log.splitlines(keepends=True)]


def _say(host: int, record: str, gpu: int = 0) -> str:
    return f"nccl-{host}:{101 + gpu}:{201 + gpu} [{gpu}] NCCL INFO {record}\n"


def _timeout(host: int, peer: int, status: int = 12) -> str:
    text = f"NET/IB: Got completion from peer 10.20.0.{peer}<47> with status={status} opcode=1 hca mlx5_1"
    return f"nccl-{host}:101:201 [0] transport/net_ib.cc:1 NCCL WARN {text}\n"


def _found(lines: list[str], check: str) -> list[tuple[str, str, str]]:
    findings = nccl.verdict(nccl.read([lines])).findings
    return [(one.status, one.reason, one.name) for one in findings if one.check == check]


# -- RDMA timeouts -------------------------------------------------------------------------------------------------


def test_node_that_most_timeouts_name_is_the_culprit() -> None:
    """Node 2 loses its link: the others accuse it, and it accuses all the others."""
    said = [_timeout(0, 2), _timeout(1, 2), _timeout(3, 2), _timeout(2, 0), _timeout(2, 1)]

    report = nccl.read([_lines({}, {}, {}, {}) + said])

    assert (report.timeouts, report.suspect) == ({"nccl-0": 2, "nccl-1": 2, "nccl-2": 5, "nccl-3": 1}, "nccl-2")
    assert report.to_json()["timeouts"] == {"by_node": report.timeouts, "suspect": "nccl-2"}
    (finding,) = [one for one in nccl.verdict(report).findings if one.check == "nccl.errors"]
    assert (finding.name, finding.reason) == ("nccl-2", "IbCompletion12")
    assert finding.detail.startswith(
        "ib_completion_12 x5 on nccl-0, nccl-1, nccl-2, nccl-3 peer nccl-0, nccl-1, nccl-2 mlx5_1: "
    )


def test_of_two_that_accuse_each_other_the_peer_is_named() -> None:
    report = nccl.read([[*_lines({}, {}), _timeout(0, 1), _timeout(1, 0)]])

    assert (report.timeouts, report.suspect) == ({"nccl-0": 2, "nccl-1": 2}, None)
    named = [one.name for one in nccl.verdict(report).findings if one.check == "nccl.errors"]
    assert named == ["nccl-1", "nccl-0"]


def test_of_two_that_accuse_each_other_the_one_whose_port_went_down_is_named() -> None:
    warn = "nccl-0:101:201 [0] transport/net_ib.cc:1 NCCL WARN NET/IB : mlx5_1:1 Got async event : port error\n"

    found = _found([*_lines({}, {}), _timeout(0, 1), _timeout(1, 0), warn], "nccl.errors")

    assert found == [("fail", "IbAsyncFatal", "nccl-0"), ("fail", "IbCompletion12", "nccl-0 #2")]


def test_errors_of_two_classes_on_one_node_are_two_findings() -> None:
    warn = "nccl-1:101:201 [0] transport/net_ib.cc:1 NCCL WARN NET/IB : mlx5_1:1 Got async event : port error\n"

    found = _found([*_lines({}, {}), _timeout(0, 1), warn], "nccl.errors")

    assert found == [("fail", "IbAsyncFatal", "nccl-1"), ("fail", "IbCompletion12", "nccl-1 #2")]


def test_who_was_flushed_first_is_no_suspect() -> None:
    said = [_timeout(1, 0, status=5), _timeout(1, 2), _timeout(1, 2), _timeout(0, 1)]

    report = nccl.read([_lines({}, {}, {}) + said])

    assert (report.timeouts["nccl-1"], report.suspect) == (3, "nccl-2")


def test_no_timeouts_no_votes() -> None:
    assert nccl.read([_lines({}, {})]).to_json()["timeouts"] is None


# -- hosts and processes -------------------------------------------------------------------------------------------


def test_process_on_tcp_beside_others_is_named() -> None:
    """Its host has a NIC that this process alone could not open."""
    lines = _lines({}, {})
    lines = [
        line.replace("Using network IB", "Using network Socket") if line.startswith("nccl-1:102:") else line
        for line in lines
    ]

    report = nccl.read([lines])

    assert report.networks_by_process["nccl-1:101"] == ("IB",)
    assert report.to_json()["networks_by_process"]["nccl-1:102"] == ["Socket"]
    failed = [one for one in nccl.verdict(report).findings if one.status == "fail"]
    assert [(one.reason, one.name) for one in failed] == [("TcpFallback", "nccl-1")]
    assert failed[0].detail.endswith("; processes 102")


def test_versions_are_told_by_host() -> None:
    lines = [line.replace("2.27.7", "2.26.2") if line.startswith("nccl-1") else line for line in _lines({}, {}, {})]

    report = nccl.read([lines])

    mixed = [one.detail for one in nccl.verdict(report).findings if one.check == "nccl.versions"]
    assert mixed == ["2.26.2+cuda12.9 on nccl-1; 2.27.7+cuda12.9 on nccl-0, nccl-2"]
    assert report.to_json()["versions_by_host"]["nccl-1"] == ["2.26.2+cuda12.9"]


def test_ranks_of_different_versions_are_an_error() -> None:
    text = "Mismatched NCCL version detected : rank 1 version 22707 rank 0 version 22105"

    report = nccl.read([[*_lines({}, {}), f"nccl-0:101:201 [0] init.cc:1 NCCL WARN {text}\n"]])

    assert [one.name for one in report.errors] == ["version_mismatch"]
    assert nccl.verdict(report).exit_code == 1


# -- NICs and directions -------------------------------------------------------------------------------------------


def test_gpudirect_is_counted_by_host_nic_and_direction() -> None:
    lines = [line.replace("NET/IB/1/GDRDMA", "NET/IB/1") if "[receive]" in line else line for line in _lines({}, {})]

    by_nic = nccl.read([lines]).to_json()["transport"]["by_nic"]

    assert by_nic["nccl-0/IB/0"]["gdr_receive"] == by_nic["nccl-0/IB/0"]["receive"] > 0
    assert by_nic["nccl-0/IB/1"]["gdr_send"] == by_nic["nccl-0/IB/1"]["send"] > 0
    assert by_nic["nccl-0/IB/1"]["gdr_receive"] == 0


def test_nic_that_one_host_alone_leaves_idle_is_a_warning() -> None:
    lines = [line.replace("NET/IB/1", "NET/IB/0") if line.startswith("nccl-1") else line for line in _lines({}, {})]

    assert _found(lines, "nccl.rails") == [("warn", "IdleRails", "nccl-1")]
    assert nccl.verdict(nccl.read([lines])).exit_code == 0
    assert nccl.verdict(nccl.read([lines]), rails=2).exit_code == 1


def test_as_many_nics_of_other_numbers_are_no_sign() -> None:
    one_each = [
        line.replace("NET/IB/1", "NET/IB/0") if line.startswith("nccl-1") else line.replace("NET/IB/0", "NET/IB/1")
        for line in _lines({}, {})
    ]

    assert _found(one_each, "nccl.rails") == []


def test_nic_that_every_host_leaves_idle_is_none() -> None:
    """It may be there for storage."""
    lines = [line.replace("NET/IB/1", "NET/IB/0") for line in _lines({}, {})]

    assert nccl.read([lines]).to_json()["rails"]["nccl-1"] == {"used": [0], "idle": [1]}
    assert _found(lines, "nccl.rails") == []


def test_lists_of_nics_are_told_and_compared() -> None:
    lines = _lines({}, {}, {"nics": ("mlx5_0", "mlx5_1", "mlx5_9")})

    assert nccl.read([lines]).to_json()["nics"]["nccl-1"] == [
        {"index": 0, "name": "mlx5_0", "link": "IB"},
        {"index": 1, "name": "mlx5_1", "link": "IB"},
    ]
    assert ("warn", "ListsDiffer", "nccl-2 (list)") in _found(lines, "nccl.rails")
    mixed = _lines({}, {}, {"link": "RoCE"})
    assert _found(mixed, "nccl.rails") == [("warn", "ListsDiffer", "nccl-2 (list)")]


def test_receiving_through_the_host_on_one_node() -> None:
    lines = _lines({}, {})
    lines = [
        line.replace("/GDRDMA", "") if line.startswith("nccl-1") and "[receive]" in line else line for line in lines
    ]

    (reason,) = nccl.why_no_gdr(nccl.read([lines]))

    assert reason.reason == "ReceiveOnly" and reason.evidence.endswith("on nccl-1")
    assert "nvidia_peermem" in reason.next


def test_reasons_are_ranked_and_the_next_step_is_told() -> None:
    lines = _lines({"gdr": False}, {"gdr": False})
    said = [
        _say(0, "GPU Direct RDMA Disabled for GPU 0 / HCA 0 (distance 8 > 5)"),
        _say(0, "NET/IB : GPU Direct RDMA Disabled for HCA 0 'mlx5_0' (no module)"),
        _say(0, "NCCL_NET_GDR_LEVEL set by environment to LOC"),
    ]

    found = nccl.why_no_gdr(nccl.read([lines + said]))

    assert [one.reason for one in found] == ["GdrLevel", "NoModule", "TooFar"]
    assert all(one.evidence and one.next for one in found)


@pytest.mark.parametrize(
    ("product", "version", "reason"),
    [
        ("NVIDIA GB200", "2.26.2", "CoherentPlatform"),
        ("NVIDIA GH200 480GB", "2.25.1", "CoherentPlatform"),
        ("NVIDIA GB300", "2.28.3", "GraceBlackwell"),
    ],
)
def test_boards_that_want_something_of_their_own(product: str, version: str, reason: str) -> None:
    lines = [line.replace("2.27.7", version).replace(_H100, product) for line in _lines({"gdr": False}, {"gdr": False})]

    assert [one.reason for one in nccl.why_no_gdr(nccl.read([lines]))] == [reason]


# -- plug-ins ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["FasTrak", "GPUDirectTCPX_v7"])
def test_plugin_that_need_not_say_it_is_open_without_the_word(network: str) -> None:
    lines = [
        line.replace("NET/IB/", f"NET/{network}/").replace("network IB", f"network {network}")
        for line in _lines({}, {})
    ]
    silent = [line.replace("/GDRDMA", "") for line in lines]

    assert nccl.verdict(nccl.read([lines])).exit_code == 0
    report = nccl.read([silent])
    assert (report.gdr, nccl.verdict(report).exit_code) == ("unproven", 2)
    assert _found(silent, "nccl.transport") == [
        ("unproven", "PluginSilent", "nccl-0"),
        ("unproven", "PluginSilent", "nccl-1"),
    ]


def test_the_acceptance_says_of_a_silent_plugin_what_the_log_reader_says(
    expected: Expected, evidence: Evidence
) -> None:
    lines = [
        line.replace("NET/IB/", "NET/FasTrak/").replace("network IB", "network FasTrak") for line in _lines({}, {})
    ]
    nodes = {"nccl-0": "gpu-0", "nccl-1": "gpu-1"}
    for word, found in (("/GDRDMA", ("unproven", "PluginSilent")), ("", ("pass", "AsExpected"))):
        report = nccl.read([[line.replace(word, "") for line in lines]])
        evidence.parsed["nccl"] = (NcclRun("nccl-pair", tuple(nodes.values()), (), nodes, report),)
        assert {(one.status.value, one.reason) for one in nccl_transport(expected, evidence)} == {found}


@pytest.mark.parametrize("network", ["gIB", "AWS Libfabric", "Libfabric", "IBext_v10", "UCX"])
def test_other_plugins_need_the_word(network: str) -> None:
    lines = [
        line.replace("NET/IB/", f"NET/{network}/").replace("network IB", f"network {network}")
        for line in _lines({}, {})
    ]

    assert nccl.verdict(nccl.read([lines]), network=network).exit_code == 0
    report = nccl.read([[line.replace("/GDRDMA", "") for line in lines]])
    assert (report.gdr, nccl.verdict(report).exit_code) == ("none", 1)


# -- inside a host -------------------------------------------------------------------------------------------------

_NVSWITCH = "NVLS multicast support is available on dev 0 (NVLS_NCHANNELS 16)"


@pytest.mark.parametrize("path", ["SHM/direct/direct", "P2P/indirect/1[1]"])
def test_way_around_nvswitch_fails(path: str) -> None:
    lines = [line.replace("via P2P/CUMEM", f"via {path}") for line in _lines({}) if "NVLS" not in line]
    assert any(path in line for line in lines)

    assert nccl.verdict(nccl.read([lines])).exit_code == 0, "without NVSwitch it may be the only way"
    switched = [*lines, _say(0, _NVSWITCH)]
    assert nccl.verdict(nccl.read([switched])).exit_code == 1
    assert _found(switched, "nccl.inside") == [("fail", "NoPeerAccess", "nccl-0")]


def test_peer_access_that_is_off_between_nvlinked_gpus_is_an_error() -> None:
    text = "P2P is disabled between NVLINK connected GPUs 1 and 0. This should not be the case given their connectivity"

    report = nccl.read([[*_lines({}), f"nccl-0:101:201 [0] graph/paths.cc:1 NCCL WARN {text}\n"]])

    assert [(one.name, one.host) for one in report.errors] == [("p2p_disabled", "nccl-0")]


# -- what people see -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("level", "said"), [("SYS", True), ("4", True), ("PHB", False)])
def test_decree_is_said_in_the_text(tmp_path: Path, capsys: pytest.CaptureFixture[str], level: str, said: bool) -> None:
    log = tmp_path / "run.log"
    log.write_text("".join([*_lines({}, {}), _say(0, f"NCCL_NET_GDR_LEVEL set by environment to {level}")]))

    assert cli.main(["nccl", str(log)]) == 0
    assert (f"by decree: NCCL_NET_GDR_LEVEL={level}" in capsys.readouterr().out) == said


def test_votes_are_told_in_the_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "run.log"
    log.write_text("".join([*_lines({}, {}, {}), _timeout(0, 2), _timeout(1, 2)]))

    assert cli.main(["nccl", str(log)]) == 1
    out = capsys.readouterr().out
    assert out.startswith("FAIL nccl.errors: a peer did not answer in time (nccl-2)")
    assert "RDMA timeouts name nccl-2 most, as reporter or as peer: nccl-2 2, nccl-0 1, nccl-1 1" in out


def test_nvlink_domain_says_how_to_test_the_nics() -> None:
    lines = []
    for number in (0, 1):
        init = f"comm 0x{number} rank {number} nranks 2 cudaDev 0 nvmlDev 0 busId 1b000 commId 0x24 - Init COMPLETE"
        lines += [
            _say(number, "MNNVL 1 cliqueId 7ffe cliqueSize 2 cliqueRank 0"),
            _say(number, f"comm 0x{number} rank {number} nRanks 2 nNodes 2 localRanks 1 localRank 0 MNNVL 1"),
            _say(number, f"Channel 00/0 : {number}[0] -> {1 - number}[0] via P2P/MNNVL"),
            _say(number, init),
        ]

    verdict = nccl.verdict(nccl.read([lines]))

    assert verdict.exit_code == 0
    assert any("NCCL_MNNVL_ENABLE=0" in one.detail for one in verdict.findings)
