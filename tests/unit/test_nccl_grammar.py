"""What NCCL prints, version by version, under every launcher's decoration."""

from __future__ import annotations

import pytest
from gpuready.validators import nccl


def _log(*records: str, host: str = "gpu-a", pid: int = 101) -> list[str]:
    return [f"{host}:{pid}:{pid + 40} [0] NCCL INFO {record}\n" for record in records]


def _facts(*records: str) -> dict[str, object]:
    return nccl.read([_log(*records)]).to_json()


@pytest.mark.parametrize(
    ("record", "nic", "gdr"),
    [
        ("Ring 00 : 9 -> 0 [receive] via NET/IB/0", "IB/0", 0),
        ("Ring 00 : 11[3e000] -> 2[3d000] [send] via NET/Socket/0", "Socket/0", 0),
        ("Channel 00 : 0[1b000] -> 8[1b000] [send] via NET/IB/0/GDRDMA/Shared", "IB/0", 1),
        ("Channel 00/0 : 0[1b000] -> 8[1b000] [send] via NET/IB/0/GDRDMA", "IB/0", 1),
        ("Channel 00/0 : 0[0] -> 8[0] [receive] via NET/IB/2", "IB/2", 0),
        ("Channel 00/1 : 0[0] -> 8[0] [send] via NET/IB/1/GDRDMA(PCI)", "IB/1", 1),
        ("Channel 02/0 : 5[5] -> 12[4] [send] via NET/IB/4(4)/GDRDMA", "IB/4", 1),
        ("Channel 02/0 : 5[5] -> 12[4] [send] via NET/IB/4(4)/GDRDMA(PCI)/Shared", "IB/4", 1),
        ("Channel 00/0 : 0[0] -> 8[0] [send] via NET/AWS Libfabric/3/GDRDMA", "AWS Libfabric/3", 1),
        ("Channel 00/0 : 0[0] -> 8[0] [send] via NET/IBext_v10/11/GDRDMA  ", "IBext_v10/11", 1),
        ("CollNet 00/0 : 3 [send] via COLLNET/SHARP/0/GDRDMA", "SHARP/0", 1),
    ],
)
def test_channel_between_hosts(record: str, nic: str, gdr: int) -> None:
    transport = nccl.read([_log(record)]).to_json()["transport"]

    direction = "receive" if "[receive]" in record else "send"
    count = {"send": 0, "receive": 0, "gdr": gdr, "gdr_send": 0, "gdr_receive": 0}
    count |= {direction: 1, f"gdr_{direction}": gdr}
    assert transport["by_nic"] == {f"gpu-a/{nic}": count}
    assert (transport["net_channels"], transport["gdr_channels"]) == (1, gdr)
    assert transport["pxn_channels"] == ("4(4)" in record)
    assert transport["pci_channels"] == ("(PCI)" in record)
    assert transport["shared_channels"] == ("/Shared" in record)


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        ("Channel 00/0 : 1[1] -> 2[2] via P2P/IPC", "P2P/IPC"),
        ("Channel 00/0 : 1[1] -> 2[2] via P2P/IPC/read/CE", "P2P/IPC"),
        ("Channel 00/0 : 1[1] -> 2[2] via P2P/CUMEM/read", "P2P/CUMEM"),
        ("Channel 00/0 : 1[1] -> 2[2] via P2P/MNNVL", "P2P/MNNVL"),
        ("Channel 00/0 : 1[1] -> 2[2] via P2P/direct pointer/read", "P2P/direct pointer"),
        ("Channel 00/0 : 1[1] -> 2[2] via P2P/indirect/3[3]", "P2P/indirect"),
        ("Channel 00 : 0[1b000] -> 1[43000] via direct shared memory", "SHM"),
        ("Channel 00 : 1[1] -> 0[0] via SHM/direct/direct", "SHM"),
        ("Channel 00/0 : 1[1] -> 0[0] via SHM/CE/direct", "SHM"),
        ("Channel 00/0 : 1[1] -> 0[0] via SHM/direct", "SHM"),
        ("NVLS comm 0x55aa headRank 0 nHeads 8 buffSize 4194304", "NVLS"),
    ],
)
def test_path_inside_a_host(record: str, kind: str) -> None:
    facts = nccl.read([_log(record)]).to_json()

    assert facts["transport"]["intranode"] == {kind: 1}
    assert facts["transport"]["net_channels"] is None
    assert facts["torn_lines"] == 0


@pytest.mark.parametrize(
    "record",
    [
        "Channel 00/16 :    0   1   2   3",
        "Channel 01/08 : 0 5 7 6 4 1 3 2",
        "Channel 00 :    0   2   3",
        "Ring 07 : 1 -> 0 -> 2",
        "Trees [0] 1/8/-1->0->-1 [1] -1/-1/-1->0->7",
        "NVLS multicast support is available on dev 3 (NVLS_NCHANNELS 16)",
        "16 coll channels, 16 collnet channels, 0 nvls channels, 16 p2p channels, 2 p2p channels per peer",
    ],
)
def test_what_looks_like_a_channel_and_is_none(record: str) -> None:
    facts = nccl.read([_log(record)]).to_json()

    assert facts["torn_lines"] == 0
    assert facts["transport"]["intranode"] == {}
    assert facts["transport"]["gdr"] == "unproven"


@pytest.mark.parametrize(
    "record",
    [
        "Channel 00/0 : 1[1] -> 5[1] [sen",
        "Channel 00/0 : 1[1] -> 5[1] [receive] vi",
        "Channel 02/0 : 5[1] -> 6[2] via P2P/CUM",
        "Channel 02/0 : 5[1] -> 6[2] [send] via NET/IB/0/GDRD",
        "Channel ",
        "Chan",
    ],
)
def test_torn_channel_counts_and_keeps_the_log_from_passing(record: str) -> None:
    report = nccl.read([_log(record)])

    assert report.torn == 1
    assert "1 channel records are torn" in report.incomplete


def test_torn_channel_with_a_whole_twin_loses_nothing() -> None:
    whole = "Channel 00/0 : 1[1] -> 2[2] via P2P/CUMEM/read"

    report = nccl.read([_log(whole[:30], whole)])

    assert report.torn == 1
    assert not any("torn" in reason for reason in report.incomplete)


def test_more_torn_channels_than_are_kept_still_count() -> None:
    report = nccl.read([_log(*(f"Channel {n:04d}/0 : 1[1] -> 5[1] [sen" for n in range(1500)))])

    assert report.torn == 1500
    assert any(reason.startswith("500 records are torn") for reason in report.incomplete)


def test_channel_without_a_head_belongs_to_its_rank() -> None:
    init = "comm 0x1 rank {0} nranks 2 cudaDev 0 nvmlDev 0 busId 1b000 commId 0xaa - Init COMPLETE"
    ranks = _log(init.format(0)) + _log(init.format(1), host="gpu-b")
    headless = "] NCCL INFO Channel 00/0 : 0[0] -> 1[0] [receive] via NET/IB/0\n"

    assert nccl.read([[*ranks, headless]]).to_json()["transport"]["by_host"] == {"gpu-b": {"net": 1, "gdr": 0}}
    assert any("lost the name" in reason for reason in nccl.read([[headless]]).incomplete)


def test_same_channel_twice_counts_once_and_the_worse_one_stays() -> None:
    path = "Channel 00/0 : 0[0] -> 8[0] [send] via NET/IB"
    for records in ((f"{path}/0/GDRDMA", f"{path}/1"), (f"{path}/1", f"{path}/0/GDRDMA")):
        report = nccl.read([_log(*records)])

        assert (report.net_channels, report.gdr_channels) == (1, 0)
        assert report.rails("gpu-a") == (0, 1), "a NIC that was used once was used"


_ROW = "  1073741824  268435456  float  sum  -1   4575.2  234.69  440.04       0   4572.1  234.85  440.34       0"


@pytest.mark.parametrize(
    "tag",
    [
        "",
        "[1,3]<stdout>:",
        "[prterun-launcher-77@1,3]<stdout>: ",
        "Tue Jan  6 03:04:05 2026[1,3]<stdout>:",
        "2026-01-02T03:04:05.678901234Z ",
        "2026-01-02T03:04:05.678901234Z stdout F ",
        "2026-01-02T03:04:05.678901234+00:00 stderr F ",
        "[pod/nccl-worker-0/node] ",
        " 7: ",
        "[pod/nccl-worker-0/node] 2026-01-02T03:04:05.678901234Z ",
        "[default3]:",
        "[rank3]:",
        "[2026-01-02 03:04:05] ",
        "\x1b[32m",
    ],
)
def test_launchers_decoration_is_taken_off(tag: str) -> None:
    lines = [
        "# nThread 1 nGpus 1 minBytes 8 maxBytes 8 step: 2(factor)",
        "#  Rank  0 Group  0 Pid    101 on      gpu-a device  0 [0000:1b:00] NVIDIA H100 80GB HBM3",
        "gpu-a:101:140 [0] NCCL INFO Channel 00/0 : 0[0] -> 8[0] [send] via NET/IB/0/GDRDMA",
        "NCCL version 2.21.5+cuda12.4",
        "gpu-a:101:140 [0] NCCL INFO Using network IB",
        _ROW,
        "# Out of bounds values : 0 OK",
        "# Avg bus bandwidth    : 440.19 ",
    ]

    facts = nccl.read([[f"{tag}{line}\n" for line in lines]]).to_json()

    assert facts["hosts"] == ["gpu-a"]
    assert facts["versions"] == ["2.21.5+cuda12.4"]
    assert facts["networks_by_host"] == {"gpu-a": ["IB"]}
    assert facts["transport"]["by_host"] == {"gpu-a": {"net": 1, "gdr": 1}}
    assert facts["benchmark"]["max_size_busbw_gbytes_s"] == 440.04
    assert facts["benchmark"]["average_busbw_gbytes_s"] == 440.19


def test_lines_of_a_log_service() -> None:
    records = _log("Using network IB", "Channel 00/0 : 0[0] -> 8[0] [send] via NET/IB/0/GDRDMA")
    lines = [line.rstrip("\n") for line in (*records, _ROW)]

    report = nccl.read([[f"| 2026-01-02T03:04:05.678Z | {line} |\n" for line in lines]])

    assert (report.gdr_channels, report.torn, report.networks) == (1, 0, ("IB",))
    assert report.benchmark is not None and len(report.benchmark.rows) == 1


@pytest.mark.parametrize("at", range(1, 60, 3))
def test_line_that_the_container_runtime_split_anywhere(at: int) -> None:
    """What the first part alone looks like must not count."""
    stamp = "2026-01-02T03:04:05.678901234Z stdout"
    record = "gpu-a:101:141 [0] NCCL INFO Channel 00/0 : 0[0] -> 8[0] [send] via NET/IB/0/GDRDMA"
    parts = [f"{stamp} P {record[:at]}\n", f"{stamp} F {record[at:]}\n"]

    for lines in (parts, [*_log("Using network IB"), *parts, *_log("Using network IB")]):
        report = nccl.read([lines])
        assert (report.gdr_channels, report.torn) == (1, 0)


def test_line_whose_end_never_came() -> None:
    stamp = "2026-01-02T03:04:05.678901234Z stdout"

    report = nccl.read([[f"{stamp} P gpu-a:101:141 [0] NCCL INFO Channel 00/0 : 0[0] -> 8[0] [sen\n"]])

    assert report.torn == 1


def test_line_that_the_container_runtime_split_is_joined() -> None:
    stamp = "2026-01-02T03:04:05.678901234Z stdout"
    lines = [
        f"{stamp} P gpu-a:101:140 [0] NCCL INFO Channel 00/0 : 0[0] -> 8[0] [send] \n",
        f"{stamp} F via NET/IB/0/GDRDMA\n",
    ]

    assert nccl.read([lines]).gdr_channels == 1


def test_carriage_returns_and_merged_records() -> None:
    lines = [
        *_log(*["Comm config Blocking set to 1"] * 20, host="gpu-b", pid=102),
        "step 1/9\rstep 2/9\rgpu-a:101:140 [0] NCCL INFO Channel 00/0 : 1[1] -> 2[2] via P2P/IPC\r\n",
        "gpu-a:101:140 [0] NCCL INFO Bootstrap : Usinggpu-b:102:150 [0] NCCL INFO Using network AWS Libfabric\n",
    ]

    facts = nccl.read([lines]).to_json()

    assert facts["transport"]["intranode"] == {"P2P/IPC": 1}
    assert facts["networks_by_host"] == {"gpu-b": ["AWS Libfabric"]}


def test_record_glued_to_another_is_torn_unless_it_is_the_last() -> None:
    one = "gpu-a:101:140 [0] NCCL INFO Channel 00/0 : 1[1] -> 2[2] via P2P/IPC"
    two = "gpu-a:101:140 [0] NCCL INFO Channel 00/0 : 2[2] -> 3[3] via P2P/IPC"

    report = nccl.read([[*_log(*["Comm config Blocking set to 1"] * 20), f"{one}{two}\n"]])

    assert report.torn == 1
    assert report.traffic["gpu-a"].intranode == {"P2P/IPC": 1}


def test_host_name_with_a_piece_of_another_line_is_mended() -> None:
    whole = _log(*(f"Channel {n:02d}/0 : 0[0] -> 1[1] via P2P/IPC" for n in range(30)))
    comm = "comm 0x1 rank 0 nranks 2 cudaDev 0 nvmlDev 0 busId 1b000 commId 0xaa - Init COMPLETE"
    torn = ["xyzgpu-a:101:141 [0] NCCL INFO Channel 30/0 : 0[0] -> 1[1] via P2P/IPC\n"]
    headless = ["u-a:101:141 [0] NCCL INFO Channel 31/0 : 0[0] -> 1[1] via P2P/IPC\n"]

    facts = nccl.read([whole + _log(comm) + torn + headless]).to_json()

    assert facts["hosts"] == ["gpu-a"]
    assert facts["transport"]["intranode"] == {"P2P/IPC": 32}


@pytest.mark.parametrize(
    ("devices", "found"),
    [
        ("[0]mlx5_0:1/IB [1]mlx5_1:1/IB [RO]; OOB eth0:192.0.2.11<0>", [(0, "mlx5_0"), (1, "mlx5_1")]),
        ("[0]mlx5_0:1/RoCE ; OOB ib1:192.0.2.11<0>", [(0, "mlx5_0")]),
        ("[0]={[0] mlx5_0:1/IB, [1] mlx5_1:1/IB} [RO]; OOB eth0:192.0.2.11<0>", [(0, "mlx5_0+mlx5_1")]),
        ("[0]mlx5_0:1:3:1/IB [RO]; OOB eth0:192.0.2.11<0>", [(0, "mlx5_0")]),
        ("[0]mlx5_0:1/RoCE [1]mlx5_2:1/IB/SHARP [RO]; OOB eth0:192.0.2.11<0>", [(0, "mlx5_0"), (1, "mlx5_2")]),
    ],
)
def test_device_lists(devices: str, found: list[tuple[int, str]]) -> None:
    report = nccl.read([_log(f"NET/IB : Using {devices}")])

    assert [(nic.index, nic.name) for nic in report.devices.nics["gpu-a"]] == found
    assert report.devices.host_of == {"192.0.2.11": "gpu-a"}


def test_rails_used_and_idle() -> None:
    listed = "NET/IB : Using [0]mlx5_0:1/IB [1]mlx5_1:1/IB [2]mlx5_2:1/IB [RO]; OOB eth0:192.0.2.11<0>"
    used = [f"Channel 0{n}/0 : 0[0] -> 8[0] [send] via NET/IB/{n}/GDRDMA" for n in (0, 2)]

    assert nccl.read([_log(listed, *used)]).to_json()["rails"] == {"gpu-a": {"used": [0, 2], "idle": [1]}}
    assert nccl.read([_log(*used)]).to_json()["rails"] == {"gpu-a": {"used": [0, 2], "idle": None}}


@pytest.mark.parametrize(
    "record",
    [
        "comm 0x55aa rank 1 nranks 2 cudaDev 1 nvmlDev 1 - Init COMPLETE",
        "comm 0x55aa rank 1 nranks 2 cudaDev 1 busId 43000 - Init COMPLETE",
        "comm 0x55aa rank 1 nranks 2 cudaDev 1 nvmlDev 1 busId 43000 commId 0x24 - Init COMPLETE",
        "ncclCommInitRank comm 0x55aa rank 1 nranks 2 cudaDev 1 nvmlDev 1 busId 43000 commId 0x24 - Init COMPLETE",
        "ncclCommInitRankConfig comm 0x55aa rank 1 nranks 2 cudaDev 1 busId 43000 commId 0x24 - Init COMPLETE",
        "[Rank 1] ncclCommInitRank comm 0x55aa rank 1 nranks 2 cudaDev 1 busId 43000 commId 0x24 - Init COMPLETE",
    ],
)
def test_a_rank_is_complete_when_it_says_so(record: str) -> None:
    first = record.replace("rank 1", "rank 0").replace("[Rank 1]", "[Rank 0]").replace("cudaDev 1", "cudaDev 0")

    assert nccl.read([_log(first)]).incomplete == ("1 ranks were not seen to finish initialising",)
    both = nccl.read([_log(first) + _log(record, pid=102)])
    assert both.complete and both.ranks == 2 and both.nodes == 1 and both.gdr == "not_applicable"
    started = nccl.read([_log(first) + _log(record.replace("COMPLETE", "START"), pid=102)])
    assert not started.complete


def test_nvlink_domain_across_hosts_needs_no_network() -> None:
    def rank(number: int) -> list[str]:
        init = f"comm 0x{number} rank {number} nranks 2 cudaDev 0 nvmlDev 0 busId 1b000 commId 0x24 - Init COMPLETE"
        shape = f"comm 0x{number} rank {number} nRanks 2 nNodes 2 localRanks 1 localRank 0 MNNVL 1"
        clique = f"MNNVL 1 cliqueId 7ffe cliqueSize 2 cliqueRank {number}"
        path = f"Channel 00/0 : {number}[0] -> {1 - number}[0] via P2P/MNNVL"
        return _log(clique, shape, path, init, host=f"gpu-{number}")

    report = nccl.read([rank(0), rank(1)])

    assert (report.gdr, report.nodes, nccl.verdict(report).exit_code) == ("not_applicable", 2, 0)


@pytest.mark.parametrize(
    ("line", "version"),
    [
        ("NCCL version 2.8.3+cuda11.2", "2.8.3+cuda11.2"),
        ("gpu-a:1:1 [0] NCCL INFO NCCL version 2.27.7+cuda12.9", "2.27.7+cuda12.9"),
        (" 0: NCCL version 2.4.8+cuda10.1", "2.4.8+cuda10.1"),
    ],
)
def test_version(line: str, version: str) -> None:
    assert nccl.read([[line]]).versions == (version,)


def test_settings_are_kept_by_name() -> None:
    facts = _facts("NCCL_IB_HCA set to mlx5_2", "NCCL_NET_GDR_LEVEL set by environment to SYS", "NCCL_IB_HCA set to x")

    assert facts["environment"] == {"NCCL_IB_HCA": ["mlx5_2", "x"], "NCCL_NET_GDR_LEVEL": ["SYS"]}


def test_a_run_in_two_files_is_one_run() -> None:
    send = "Channel 00/0 : 0[0] -> 1[0] [send] via NET/IB/0/GDRDMA"
    receive = send.replace("send", "receive")

    report = nccl.read([_log(send), _log(receive, host="gpu-b")])

    assert report.hosts == ("gpu-a", "gpu-b")
    assert not any("one side only" in reason for reason in report.incomplete)
    assert any("one side only" in reason for reason in nccl.read([_log(send)]).incomplete)
