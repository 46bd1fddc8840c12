"""nvidia-smi and NCCL as the rehearsal prints them: parsed again, they say what the profile says."""

from __future__ import annotations

import csv
import io
import itertools
from dataclasses import replace
from datetime import datetime
from typing import Any
from xml.etree import ElementTree

import pytest
from gpuready.charts_values.errors import InputError
from gpuready.rehearsal.outputs import smi
from gpuready.rehearsal.outputs.nccl import Host, Rendered, render
from gpuready.rehearsal.outputs.smi import Gpu
from gpuready.validators import nccl

_H100 = "NVIDIA H100 80GB HBM3"
_AT = datetime(2026, 3, 4, 5, 6, 7)


def _gpus(count: int = 8, product: str = _H100, memory_mib: int = 81559) -> list[Gpu]:
    return [
        Gpu(index, f"GPU-{index:08x}", product, f"00000000:{0x1B + 16 * index:02X}:00.0", memory_mib, f"16500{index}")
        for index in range(count)
    ]


@pytest.mark.parametrize(
    "product", [_H100, "NVIDIA L40S", "NVIDIA A100-SXM4-80GB", "Tesla T4", "NVIDIA Unheard-of GPU of 2031"]
)
def test_table_keeps_its_frame(product: str) -> None:
    lines = smi.text(_gpus(8, product), "580.173.02", "13.0", at=_AT).splitlines()

    assert lines[0].rstrip() == "Wed Mar  4 05:06:07 2026"
    assert {len(line) for line in lines[1:] if line} == {91}
    assert sum("MiB |" in line for line in lines) == 8
    assert "Driver Version: 580.173.02" in lines[2]


def test_without_gpus_there_are_no_devices() -> None:
    assert {smi.text([], "580.1", "13.0"), smi.listing([]), smi.query([], "580.1", ["name"])} == {
        "No devices were found\n"
    }


def test_list() -> None:
    assert smi.listing(_gpus(2)) == f"GPU 0: {_H100} (UUID: GPU-00000000)\nGPU 1: {_H100} (UUID: GPU-00000001)\n"


def test_xml_says_what_the_profile_says() -> None:
    root = ElementTree.fromstring(smi.xml(_gpus(), "580.173.02", "13.0", at=_AT))

    assert (root.findtext("driver_version"), root.findtext("cuda_version")) == ("580.173.02", "13.0")
    assert root.findtext("attached_gpus") == "8"
    found = root.findall("gpu")
    assert [(one.get("id"), one.findtext("uuid"), one.findtext("serial")) for one in found] == [
        (gpu.bus_id, gpu.uuid, gpu.serial) for gpu in _gpus()
    ]
    first = found[0]
    assert first.findtext("product_name") == _H100
    assert first.findtext("fb_memory_usage/total") == "81559 MiB"
    assert first.findtext("ecc_errors/volatile/dram_uncorrectable") == "0"
    assert first.findtext("remapped_rows/remapped_row_pending") == "No"
    assert first.findtext("fabric/state") == "Completed"
    assert first.findtext("mig_mode/current_mig") == first.findtext("mig_mode/pending_mig") == "Disabled"
    slow = first.find("clocks_event_reasons")
    assert slow is not None and [one.tag for one in slow if one.text == "Active"] == ["clocks_event_reason_gpu_idle"]


def test_xml_of_boards_without_nvswitch_or_row_remap() -> None:
    l40s = ElementTree.fromstring(smi.xml(_gpus(1, "NVIDIA L40S", 46068), "580.1", "13.0"))
    t4 = ElementTree.fromstring(smi.xml(_gpus(1, "Tesla T4", 15360), "580.1", "13.0"))

    assert l40s.findtext("gpu/fabric/state") == "N/A"
    assert l40s.findtext("gpu/mig_mode/current_mig") == "N/A"
    assert t4.findtext("gpu/remapped_rows") == "N/A"
    assert t4.findtext("gpu/retired_pages/pending_retirement") == "No"


def test_xml_escapes_names() -> None:
    root = ElementTree.fromstring(smi.xml(_gpus(1, "R&D <board>"), "580.1", "13.0"))

    assert root.findtext("gpu/product_name") == "R&D <board>"


def test_query_with_and_without_units_and_header() -> None:
    fields = ["index", "gpu_name", "memory.total", "driver_version", "power.limit"]

    rows = list(csv.reader(io.StringIO(smi.query(_gpus(2), "580.1", fields)), skipinitialspace=True))
    bare = smi.query(_gpus(1), "580.1", fields, units=False, header=False)

    assert rows[0] == ["index", "gpu_name", "memory.total [MiB]", "driver_version", "power.limit [W]"]
    assert rows[2] == ["1", _H100, "81559 MiB", "580.1", "700.00 W"]
    assert bare == f"0, {_H100}, 81559, 580.1, 700.00\n"


def test_query_of_an_unknown_field_is_refused_in_its_own_words() -> None:
    with pytest.raises(InputError, match='Field "nonsense" is not a valid field to query'):
        smi.query(_gpus(1), "580.1", ["name", "nonsense"])


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


def _render(*hosts: Host, seed: int = 1) -> Rendered:
    return render(hosts, min_bytes=8 << 20, max_bytes=8 << 30, seed=seed)


def test_the_seed_decides_the_text() -> None:
    one, again, other = (_render(_host(0), _host(1), seed=seed) for seed in (1, 1, 2))

    assert one == again
    assert one.logs != other.logs
    assert other.busbw_gbytes_s == pytest.approx(one.busbw_gbytes_s, rel=0.021)


def test_bandwidth_of_the_fabric() -> None:
    def rate(*hosts: Host) -> float:
        return _render(*hosts).busbw_gbytes_s

    nodes = [_host(number) for number in range(4)]
    assert rate(*nodes[:1]) == pytest.approx(475, rel=0.02), "NVLink"
    assert rate(*nodes[:2]) == pytest.approx(460, rel=0.02), "two nodes take a tree"
    assert rate(*nodes) == pytest.approx(384, rel=0.02), "48 GB/s for each rail"
    assert rate(*nodes[:3], replace(nodes[3], slow={"mlx5_5": 0.5})) == pytest.approx(192, rel=0.02), "slowest rail"
    assert rate(*nodes[:3], replace(nodes[3], gdr=False)) == pytest.approx(192, rel=0.02)
    assert 3 < rate(*nodes[:3], replace(nodes[3], rdma=False)) < 4
    cloud = {"gpus": 1, "nics": (), "product": "NVIDIA L40S", "rdma": False}
    assert rate(_host(0, **cloud, nic_gbits_s=25), _host(1, **cloud, nic_gbits_s=25)) == pytest.approx(1.5, rel=0.02)


@pytest.mark.parametrize(("gpus", "nics"), [(8, 8), (8, 4), (8, 1), (1, 1), (1, 2), (2, 8), (4, 4)])
@pytest.mark.parametrize("nodes", [1, 2, 3, 6])
def test_the_reader_understands_every_shape(nodes: int, gpus: int, nics: int) -> None:
    names = tuple(f"mlx5_{nic}" for nic in range(nics))
    rendered = _render(*(_host(number, gpus=gpus, nics=names) for number in range(nodes)))

    report = nccl.read(log.splitlines() for log in rendered.logs.values())

    assert (report.ranks, report.nodes, report.incomplete) == (nodes * gpus, nodes, ())
    assert rendered.ranks == nodes * gpus
    assert report.gdr == ("all" if nodes > 1 else "not_applicable")
    if nodes > 1:
        assert {report.rails(host) for host in report.hosts} == {tuple(range(nics))}
    assert report.benchmark is not None and report.benchmark.largest is not None
    assert report.benchmark.largest.busbw == rendered.busbw_gbytes_s


_TRAY = {"gpus": 4, "nics": tuple(f"mlx5_{nic}" for nic in range(4)), "product": "NVIDIA GB200"}


def test_within_an_nvlink_domain_nothing_takes_a_nic() -> None:
    rendered = _render(*(_host(number, **_TRAY, clique="rack-a.0") for number in range(3)))

    report = nccl.read(log.splitlines() for log in rendered.logs.values())

    assert (report.ranks, report.nodes, report.incomplete, report.gdr) == (12, 3, (), "not_applicable")
    assert all(traffic.intranode["P2P/MNNVL"] for traffic in report.traffic.values())
    assert rendered.busbw_gbytes_s == pytest.approx(811, rel=0.02)


def test_between_nvlink_domains_the_nics_carry_the_traffic() -> None:
    racks = ("rack-a.0", "rack-a.0", "rack-b.0", "")
    rendered = _render(*(_host(number, **_TRAY, clique=rack) for number, rack in enumerate(racks)))

    report = nccl.read(log.splitlines() for log in rendered.logs.values())

    assert (report.incomplete, report.gdr) == ((), "all")
    assert ["P2P/MNNVL" in report.traffic[host].intranode for host in sorted(report.hosts)] == [
        True,
        True,
        False,
        False,
    ]
    assert rendered.busbw_gbytes_s == pytest.approx(192, rel=0.02)


def test_xml_names_the_nvlink_domain() -> None:
    gpu = replace(_gpus(1, "NVIDIA GB200")[0], clique="0b5e.3")
    fabric = ElementTree.fromstring(smi.xml([gpu], "580.1", "13.0")).find("gpu/fabric")

    assert fabric is not None
    assert {one.tag: one.text for one in fabric} == {
        "state": "Completed",
        "status": "Success",
        "cliqueId": "3",
        "clusterUuid": "0b5e",
    }


def test_hosts_of_unequal_size() -> None:
    rendered = _render(_host(0), _host(1, gpus=7), _host(2))

    report = nccl.read(log.splitlines() for log in rendered.logs.values())

    assert (report.ranks, report.incomplete, report.gdr) == (23, (), "all")


def test_only_an_odd_number_of_hosts_crosses_rails() -> None:
    def crossings(nodes: int) -> int:
        logs = _render(*map(_host, range(nodes))).logs
        found: int = nccl.read(log.splitlines() for log in logs.values()).to_json()["transport"]["pxn_channels"]
        return found

    assert [crossings(nodes) for nodes in (2, 3, 4)] == [0, 16, 0]


def test_a_host_on_sockets_takes_its_peers_along() -> None:
    logs = _render(_host(0), _host(1, rdma=False), _host(2), _host(3)).logs
    facts = nccl.read(log.splitlines() for log in logs.values()).to_json()

    assert facts["networks_by_host"]["nccl-1"] == ["Socket"]
    assert facts["networks_by_host"]["nccl-0"] == ["IB"]
    assert {key.split("/")[1] for key in facts["transport"]["by_nic"] if key.startswith("nccl-1/")} == {"Socket"}
    assert {key.split("/")[1] for key in facts["transport"]["by_nic"] if key.startswith("nccl-0/")} == {"Socket", "IB"}


def test_only_the_first_log_holds_the_table() -> None:
    logs = list(_render(_host(0), _host(1)).logs.values())

    assert ["# Avg bus bandwidth" in log for log in logs] == [True, False]


@pytest.mark.parametrize(
    ("hosts", "smallest", "largest"),
    [((), 8, 16), ((_host(0, gpus=0),), 8, 16), ((_host(0),), 16, 8), ((_host(0),), 0, 8)],
)
def test_a_run_of_nothing_is_refused(hosts: tuple[Host, ...], smallest: int, largest: int) -> None:
    with pytest.raises(InputError):
        render(hosts, min_bytes=smallest, max_bytes=largest, seed=1)


def test_times_fit_their_column() -> None:
    log = _render(_host(0, rdma=False), _host(1, rdma=False)).logs["nccl-0"]

    rows = [line for line in log.splitlines() if line[:12].strip().isdigit()]
    assert len(rows) == 11
    assert {len(line) for line in rows} == {len(rows[0])}
    assert all(a < b for a, b in itertools.pairwise(int(row.split()[0]) for row in rows))
