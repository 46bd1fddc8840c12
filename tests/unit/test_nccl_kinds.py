"""Every row of NCCL's grammar stands in a log that the rehearsal's generator words, and each such log has its truth."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from gpuready.validators import nccl

from . import nccl_failures, nccl_jobs, nccl_kinds
from .nccl_jobs import Kind
from .test_nccl_logs import seen as shown

_ALL = [*nccl_kinds.every(), *nccl_failures.every()]
_KINDS = {one.name: one for one in _ALL}
_HEAD = r"[\w\-]+:\d+:\d+ \[\d\] NCCL INFO "
_NET = r"Channel \d\d/0 : \d\[\d\] -> \d\[\d\] \[(?:send|receive)\] via NET/"
# What stands in some log for each row of the grammar: prefixes, start, devices, capability, channels, errors, tables.
# A row that only damaged or missing text can show is named by its kind.
_ROWS = {
    "warning on a line of its own": r"\n[\w\-]+:\d+:\d+ \[0\] \S+:\d+ NCCL WARN ",
    "warning with a date": r"\n\[2026-[\d\-: ]+\] [\w\-]+:\d+:\d+ \[0\] \S+:\d+ NCCL WARN ",
    "warning with its function": r"\S+:\d+ \(\w+\) NCCL WARN ",
    "call, which has no device": r"pod-0:101:101 NCCL CALL ncclAllReduce",
    "record cut at 1,024 bytes": r"(?m)^(?=.{1023}$)pod-1:101:201 \[0\] NCCL INFO Trees .*$",
    "bare version": r"(?m)^NCCL version 2\.21\.5\+cuda12\.4$",
    "version of every rank": rf"{_HEAD}NCCL version 2\.22\.3\+cuda12\.5",
    "git id": rf"{_HEAD}NCCL git version \w+ \w+",
    "CUDA driver": rf"{_HEAD}cudaDriverVersion 12090",
    "bootstrap up to 2.23": rf"{_HEAD}Bootstrap : Using eth0:",
    "bootstrap since 2.24": rf"{_HEAD}Bootstrap: Using eth0:",
    "network": rf"{_HEAD}Using network AWS Libfabric\n",
    "plug-in assigned": rf"{_HEAD}Assigned NET plugin IB to comm",
    "plug-in not found, which is noise": rf"{_HEAD}NET/Plugin: Could not find",
    "EFA's provider": rf"{_HEAD}NET/OFI Selected Provider is efa \(found 2 nics\)",
    "EFA's DMA-BUF": rf"{_HEAD}NET/OFI Support for DMA-BUF registrations: false",
    "nodes": rf"{_HEAD}comm \S+ rank 3 nRanks 4 nNodes 2 localRanks 2 localRank 1 MNNVL 0",
    "init, 2.4": rf"{_HEAD}comm \S+ rank 1 nranks 4 cudaDev 1 nvmlDev 1 - Init COMPLETE",
    "init, plain": rf"{_HEAD}comm \S+ rank 1 nranks 4 cudaDev 1 busId 43000 - Init COMPLETE",
    "init, START": rf"{_HEAD}comm \S+ rank 1 nranks 4 cudaDev 1 nvmlDev 1 busId 43000 commId 0x\w+ - Init START",
    "init, named": rf"{_HEAD}ncclCommInitRank comm \S+ rank 1 .* - Init COMPLETE",
    "init, rank first": rf"{_HEAD}\[Rank 1\] ncclCommInitRank comm \S+ rank 1 .* - Init COMPLETE",
    "init timings": rf"{_HEAD}Init timings - ",
    "channel counts": rf"{_HEAD}16 coll channels, 16 p2p channels",
    "channel counts with CollNet": rf"{_HEAD}16 coll channels, 16 collnet channels, 0 nvls channels",
    "environment": rf"{_HEAD}NCCL_NET_GDR_LEVEL set by environment to SYS",
    "devices up to 2.10": r"NET/IB : Using \[0\]mlx5_0:1/IB \[1\]mlx5_1:1/IB ; OOB eth0:",
    "devices with relaxed ordering": r"NET/IB : Using \[0\]mlx5_0:1/IB \[1\]mlx5_1:1/IB \[RO\]; OOB",
    "devices with rails": r"NET/IB : Using \[0\]mlx5_0:1:0:0/IB \[1\]mlx5_1:1:1:0/IB \[RO\]",
    "devices in groups": r"NET/IB : Using \[0\]=\{\[0\] mlx5_0:1/IB, \[1\] mlx5_1:1/IB\}",
    "devices of SHARP": r"mlx5_0:1/IB/SHARP",
    "RoCE devices": r"mlx5_0:1/RoCE",
    "no device": r"NET/IB : No device found",
    "virtual device": r"NET/IB : Made virtual device \[2\] name=mlx5_0\+mlx5_1 speed=400000 ndevs=2",
    "sockets": r"NET/Socket : Using \[0\]eth0:",
    "capability by HCA, old": r"NET/IB : GPU Direct RDMA Disabled for HCA 0 'mlx5_0' \(no module\)",
    "capability by HCA": r"NET/IB : GPU Direct RDMA Enabled for HCA 0 'mlx5_0'",
    "capability by bus": r"GPU Direct RDMA Enabled for GPU 1b000 / HCA 0 \(distance 4 <= 4\), read 0\n",
    "capability by rank": r"GPU Direct RDMA Disabled for GPU 0 / HCA 0 \(distance 9 > 5\)",
    "capability with mode": r"GPU Direct RDMA Enabled for GPU 0 / HCA 0 \(distance 5 <= 5\), read 0 mode Default",
    "capability of 2.29": r"GPU Direct RDMA Enabled for GPU/0-\w+ \(rank 0\) - NET/0 \(distance 5 <= 5\)",
    "DMA-BUF": r"DMA-BUF is available on GPU device 0",
    "channel of 2.4": r"Ring 00 : 0 -> 2 \[send\] via NET/IB/\d/GDRDMA",
    "channel of 2.5": r"Ring 01 : 1\[43000\] -> 3\[43000\] \[send\] via NET/IB/\d/GDRDMA",
    "channel of 2.8": r"Channel 00 : \d\[\w+000\] -> \d\[\w+000\] \[send\] via NET/IB/\d/GDRDMA",
    "channel of 2.8 with shared buffers": r"Channel 00 : .* \[send\] via NET/IB/\d/GDRDMA/Shared",
    "channel of 2.12": r"Channel 00/0 : \d\[\w+000\] -> \d\[\w+000\] \[send\] via NET/IB/\d/GDRDMA",
    "channel since 2.18": rf"{_NET}IB/\d/GDRDMA\n",
    "channel over PCIe": rf"{_NET}IB/\d/GDRDMA\(PCI\)\n",
    "channel of a proxy": rf"{_NET}IB/\d\(\d\)/GDRDMA\n",
    "channel of EFA": rf"{_NET}AWS Libfabric/\d/GDRDMA\n",
    "channel over TCP": rf"{_NET}Socket/0\n",
    "channel through the host": rf"{_NET}IB/\d\n",
    "channel of CollNet": r"CollNet 00/0 : 3 \[send\] via COLLNET/SHARP/0/GDRDMA",
    "P2P of 2.4": r"Ring 00 : 1\[1\] -> 0\[0\] via P2P/IPC\n",
    "P2P by IPC": r"via P2P/IPC\n",
    "P2P by IPC, reading": r"via P2P/IPC/read\n",
    "P2P by cuMem": r"via P2P/CUMEM\n",
    "P2P between hosts": r"via P2P/MNNVL\n",
    "P2P in one process": r"via P2P/direct pointer\n",
    "P2P through another GPU": r"via P2P/indirect/1\[1\]\n",
    "host memory up to 2.12": r"via direct shared memory\n",
    "host memory since 2.14": r"via SHM/direct/direct\n",
    "host memory since 2.30": r"via SHM/direct\n",
    "ring list": rf"{_HEAD}Channel 00/16 : +0 +2 +3 +1\n",
    "NVLS": r"NVLS comm 0x\w+ headRank 0",
    "NVLS tree": r"Connected NVLS tree",
    "MNNVL": r"MNNVL 1 cliqueId 0 cliqueSize 4 cliqueRank 1\n",
    "MNNVL since 2.30": r"MNNVL 1 cliqueId 0 cliqueSize 4 cliqueRank 1 nvlDomainSize 4",
    "rings connected": r"Connected all rings\n",
    "rings connected, with flags": r"Connected all rings, use ring PXN 0 GDR 1\n",
    "rings of one node, which say GDR": r"nNodes 1 .*(?s:.)*Connected all rings, use ring PXN 0 GDR 1\n",
    "trees connected": r"Connected all trees",
    "completion by number": r"Got completion from peer \S+ with error 12",
    "completion by status": r"Got completion from peer \S+ with status=12 opcode",
    "completion with HCA": r"Got completion from peer \S+ with status=12 .* hca mlx5_1",
    "completion by name": r"Got completion from peer \S+ with status=IBV_WC_RETRY_EXC_ERR\(12\)",
    "event without a device": r"NET/IB : Got async event : port error",
    "event of a device": r"NET/IB : mlx5_1:1 Got async event : port error",
    "event, 2.24": r"NET/IB : mlx5_1:1 Got async error event: port error",
    "event, 2.28": r"NET/IB : mlx5_1:1 Got non-fatal async event: port error\(10\)",
    "fatal event": r"NET/IB : mlx5_1:1 async fatal event on QP",
    "verbs": r"Call to ibv_reg_mr failed\n",
    "verbs with the reason": r"Call to ibv_create_qp failed with error Cannot allocate memory",
    "verbs, modify": r"Call to ibv_modify_qp failed with 110 Connection timed out, on dev",
    "rails mismatched": r"There are mismatched physical devices between local \(mlx5_0\) and remote \(mlx5_1\)",
    "sockets, 2.14": r"Net : Connect to \S+ failed",
    "sockets, 2.21": r"socketStartConnect: Connect to",
    "sockets, 2.27": r"socketProgress: Connection closed by remote peer",
    "sockets, 2.29": r"Call to connect to \S+ failed",
    "no interface": r"no socket interface found",
    "bootstrap timeout": r"bootstrapRoot: timed out",
    "version mismatch": r"Mismatched NCCL version detected",
    "network missing": r"Error: network IB not found",
    "plug-in failed": r"Failed to initialize any NET plugin",
    "MNNVL broken": r"MNNVL \(cliqueSize 8\) is available but not working",
    "NVLS broken": r"Failed to bind NVLink SHARP",
    "CUDA": r"Cuda failure 'out of memory'",
    "CUDA with its number": r"Cuda failure 999 'unknown error'",
    "return trace": rf"{_HEAD}transport/net_ib\.cc:1200 -> 6",
    "last words": r"pod-0: Test NCCL failure common\.cu:\d+ '",
    "banner": r"# nccl-tests version 2\.17\.4 nccl-headers",
    "banner with a hash": r"# nccl-tests version 2\.20\.0 \(0a1b2c3\)",
    "start and end": r"# Collective test starting: all_reduce_perf(?s:.)*# Collective test concluded: all_reduce_perf",
    "parameters": r"# nThread 1 nGpus 1 minBytes \d+ .* graph: 0\n",
    "parameters with unalign": r"graph: 0 unalign: 0\n",
    "device, old": r"#  Rank  3 Pid    102 on      pod-1 device  1 \[0x43\] ",
    "device": r"#  Rank  3 Group  0 Pid    102 on      pod-1 device  1 \[0000:43:00\] ",
    "table of 11 columns": r"redop +time +algbw +busbw +error +time +algbw +busbw +error",
    "table of 13 columns": r"root +time +algbw +busbw +#wrong +time +algbw +busbw +#wrong *\n",
    "table with statistics": r"#wrong +i_min +i_max +i_p99 +i_cv%",
    "table with time stamps": r"timestamp",
    "table of CPU times": r"root +cputime",
    "table without validation": r"\bN/A\b",
    "foot": r"# Out of bounds values : 0 OK\n# Avg bus bandwidth    : ",
    "foot with wrong results": r"# Out of bounds values : 3 FAILED",
    "JSON": r'"okay":"true"',
}


def _seen(report: nccl.NcclReport) -> dict[str, Any]:
    facts = report.to_json()
    return shown(facts) | {"errors": [one["class"] for one in facts["errors"]]}


def _read(kind: Kind) -> nccl.NcclReport:
    return nccl.read([io.BytesIO(file) for file in kind.files])


@pytest.mark.parametrize("name", _KINDS)
def test_the_reader_agrees_with_the_truth(name: str) -> None:
    kind = _KINDS[name]

    report = _read(kind)

    seen = _seen(report)
    assert {what: seen[what] for what in kind.truth} == kind.truth
    judged = nccl.verdict(report)
    assert judged.exit_code == kind.exit_code, report.incomplete
    assert kind.says <= {one.reason for one in judged.findings if one.status in ("fail", "unproven")}


def test_names_are_unique() -> None:
    assert len(_ALL) == len(_KINDS)


@pytest.mark.parametrize("row", _ROWS)
def test_every_row_of_the_grammar_stands_in_a_log(row: str) -> None:
    pattern = re.compile(_ROWS[row])
    assert any(pattern.search(file.decode()) for kind in _KINDS.values() for file in kind.files)


def test_gpudirect_by_decree_is_said() -> None:
    (finding, *_) = [one for one in nccl.verdict(_read(_KINDS["by decree"])).findings if one.check == "nccl.transport"]
    assert finding.detail.endswith("by decree, since NCCL_NET_GDR_LEVEL=SYS is set")


@pytest.mark.parametrize(("version", "place", "text", "name", "peer", "hca"), nccl_failures.ERRORS)
def test_an_error_names_peer_and_hca(
    version: str, place: tuple[str, str], text: str, name: str, peer: str | None, hca: str | None
) -> None:
    logs = nccl_failures.broken(nccl_jobs.Job(nccl_jobs.pair(), version), (place, text))
    (error,) = nccl.read([io.BytesIO(file) for file in logs]).errors
    assert (error.name, error.host, error.peer, error.hca) == (name, "pod-0", peer, hca)


def test_of_grouped_and_merged_nics_none_is_idle() -> None:
    for name in ("grouped NICs", "merged NICs"):
        rails = _read(_KINDS[name]).to_json()["rails"]
        assert all(not rail["idle"] for rail in rails.values())
