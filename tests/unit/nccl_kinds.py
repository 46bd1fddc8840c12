"""Kinds of NCCL logs that nobody published, each with its truth: every release, launcher, network, path and table."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from gpuready.rehearsal.outputs.nccl import Form, Style, render

from .nccl_jobs import FAIL, GB200, H100, OPEN, PASS, Edit, Job, Kind, host, kind, pair

CARD = "NVIDIA A100 80GB PCIe"
RELEASES = (
    "2.4.8+cuda10.1", "2.5.7+cuda10.2", "2.7.8+cuda10.2", "2.8.4+cuda11.2", "2.10.3+cuda11.4", "2.12.12+cuda11.6",
    "2.14.3+cuda11.7", "2.16.5+cuda11.8", "2.18.3+cuda12.1", "2.20.3+cuda12.3", "2.21.5+cuda12.4", "2.22.3+cuda12.5",
    "2.23.4+cuda12.6", "2.24.3+cuda12.6", "2.26.2+cuda12.8", "2.27.7+cuda12.9", "2.28.9+cuda12.9", "2.29.2+cuda13.0",
    "2.30.4+cuda13.1",
)  # fmt: skip


def every() -> Iterator[Kind]:
    """All kinds."""
    yield from releases()
    yield from launchers()
    yield from levels()
    yield from networks()
    yield from devices()
    yield from paths()
    yield from directness()
    yield from ranks()
    yield from tables()


# -- B.2, B.3 and B.6: releases -----------------------------------------------------------------------------------


def releases() -> Iterator[Kind]:
    """Each NCCL release with GPUDirect, without, on one host over NVLink, and on one host through its memory."""
    for version in RELEASES:
        name = version.partition("+")[0]
        style = Style(env={"NCCL_DEBUG": "INFO"}, graph=True)
        yield kind(f"{name} GPUDirect", "B.3 B.4 B.6", Job(pair(), version, style))
        off = Job(pair(gdr=False), version, style)
        yield kind(f"{name} no GPUDirect", "B.5 B.6 rule 2", off, FAIL, "NoGpuDirect")
        yield kind(f"{name} one host", "B.6 rule 1", Job([host()], version, style))
        # Cards without NVLink between them: the way through the host's memory is the right one.
        cards = host(product=CARD)
        yield kind(f"{name} one host, shared memory", "B.6 SHM", Job([cards], version, style))


# -- B.2: launchers ------------------------------------------------------------------------------------------------

_STAMP = "2026-01-02T03:04:05.678901234Z"
LAUNCHERS: dict[str, str] = {
    "Open MPI 4": "[1,{rank}]<stdout>:{line}",
    "PRRTE": "[prterun-launcher-77@1,{rank}]<stdout>: {line}",
    "Open MPI with time": "Tue Jan  6 03:04:05 2026[1,{rank}]<stdout>:{line}",
    "kubectl --timestamps": f"{_STAMP} {{line}}",
    "kubectl --prefix": "[pod/{host}/node] {line}",
    "kubectl --prefix --timestamps": f"[pod/{{host}}/node] {_STAMP} {{line}}",
    "container runtime": f"{_STAMP} stdout F {{line}}",
    "srun --label": "{rank:>2}: {line}",
    "torchrun --tee": "[default{gpu}]:{line}",
    "terminal colours": "\x1b[32m{line}\x1b[0m",
    "carriage returns": "{line}\r",
    "log service": f"| {_STAMP} | {{line}} |",
    "NCCL's own date": "[2026-01-02 03:04:05] {line}",
}
_RECORD = re.compile(r"[\w.\-]+:\d+:\d+ \[(\d+)\]")


def dressed(text: str, template: str, number: int) -> str:
    """A host's log as a launcher passes it on; ``number`` is that of the host."""
    lines = []
    for line in text.splitlines():
        match = _RECORD.match(line)
        gpu = int(match[1]) if match else 0
        if "own date" in template and not match:
            lines.append(line)
            continue
        lines.append(template.format(line=line, rank=2 * number + gpu, gpu=gpu, host=f"pod-{number}"))
    return "\n".join(lines) + "\n"


def launchers() -> Iterator[Kind]:
    """Each decoration, with the bare version line of older releases and without."""
    for version in ("2.21.5+cuda12.4", "2.27.7+cuda12.9"):
        release = version.partition("+")[0]
        job = Job(pair(), version)
        for name, template in LAUNCHERS.items():
            files = [dressed(text, template, number) for number, text in enumerate(job.rendered.logs.values())]
            yield Kind(f"{release} {name}", "B.2", tuple(text.encode() for text in files), job.truth, PASS)
    job = Job(pair())
    logs = list(job.rendered.logs.values())
    yield kind("doubled lines", "B.2 log service", job, edit=lambda text: _each(text, lambda line: [line, line]))
    split = [_each(text, _in_parts) for text in logs]
    yield Kind("split by the container runtime", "B.2 CRI", tuple(text.encode() for text in split), job.truth, PASS)
    rest = [line for line in logs[0].splitlines(keepends=True) if not _RECORD.match(line)]
    by_process: dict[str, list[str]] = {}
    for line in "".join(logs).splitlines(keepends=True):
        if _RECORD.match(line):
            by_process.setdefault(":".join(line.split(":")[:2]), []).append(line)
    files = ["".join(rest), *("".join(lines) for lines in by_process.values())]
    yield Kind("a file for each rank", "B.1", tuple(text.encode() for text in files), job.truth, PASS)
    yield Kind("all in one file", "B.2", ("".join(logs).encode(),), job.truth, PASS)


def _each(text: str, change: Callable[[str], list[str]]) -> str:
    return "".join(f"{line}\n" for one in text.splitlines() for line in change(one))


def _in_parts(line: str) -> list[str]:
    head = f"{_STAMP} stdout"
    if len(line) < 60:
        return [f"{head} F {line}"]
    return [f"{head} P {line[:30]}", f"{head} P {line[30:50]}", f"{head} F {line[50:]}"]


# -- B.1: what was asked for ---------------------------------------------------------------------------------------


def levels() -> Iterator[Kind]:
    """Logs that lack the records which could prove something."""
    nothing = {"hosts": {"pod-0", "pod-1"}, "ranks": 4, "networks": set(), "net": None, "gdr_channels": None}
    nothing |= {"gdr": "unproven", "intranode": set()}
    job = Job(pair())

    def only(*words: str) -> Edit:
        return lambda text: _each(
            text, lambda line: [line] if "NCCL INFO" not in line or any(word in line for word in words) else []
        )

    yield kind("NCCL_DEBUG=WARN", "B.1", job, OPEN, "NoNetChannel", edit=only(), **nothing | {"versions": []})
    version = {"versions": [job.version]}
    only_version = only("NCCL version")
    yield kind("NCCL_DEBUG=VERSION", "B.1", job, OPEN, "NoNetChannel", edit=only_version, **nothing | version)
    yield kind("no table, no end", "B.6 rule 1", job, OPEN, "NoNetChannel", edit=lambda text: "", **_empty())
    calls = Job(pair())
    call = "pod-0:101:101 NCCL CALL ncclAllReduce(0x7f00,0x7f00,1024,7,0,0x55aa,0x55bb)\n"
    first = calls.rendered.logs["pod-0"].replace("\n", f"\n{call}")
    logs = (first.encode(), calls.rendered.logs["pod-1"].encode())
    yield Kind("NCCL_DEBUG=TRACE with calls", "B.2 CALL", logs, calls.truth, PASS)
    many = Job(pair(nics=tuple(f"mlx5_{number}" for number in range(32)), product=CARD), "2.16.5+cuda11.8")
    yield kind(
        "records cut at 1,024 bytes", "B.2 buffer", many, edit=lambda text: _each(text, lambda one: [one[:1023]])
    )
    only_net = only("Channel", "NET/", "Using network", "Connected")
    yield kind("NCCL_DEBUG_SUBSYS=NET", "B.1", job, OPEN, "Incomplete", edit=only_net, versions=[])


def _empty() -> dict[str, Any]:
    return {
        "versions": [], "hosts": set(), "ranks": None, "networks": set(), "net": None, "gdr_channels": None,
        "gdr": "unproven", "intranode": set(), "busbw": None, "wrong": None,
    }  # fmt: skip


# -- B.3: networks -------------------------------------------------------------------------------------------------


def networks() -> Iterator[Kind]:
    """Each network by the name that NCCL prints; names may hold spaces."""
    for name in ("gIB", "IBext", "IBext_v8", "IBext_v10", "IBP", "UCX", "AWS Libfabric", "Libfabric", "FasTrak"):
        yield kind(f"network {name}", "B.3 B.6", Job(pair(plugin=name)))
    yield kind("network Socket", "B.3 B.6 rule 2", Job(pair(rdma=False)), FAIL, "TcpFallback")
    fast = Job(pair(plugin="FastSocket", gdr=False))
    yield kind("network FastSocket", "B.3 B.6 rule 2", fast, FAIL, "TcpFallback")
    mixed = Job([host(0), host(1), host(2, rdma=False), host(3)])
    yield kind("TCP on one host of four", "B.6 rule 9", mixed, FAIL, "TcpFallback")
    for name in ("FasTrak", "GPUDirectTCPX"):
        # Plug-ins whose way into GPU memory NCCL has no word for: that they say nothing proves nothing.
        mute = Job(pair(plugin=name, gdr=False))
        yield kind(f"network {name} without the word", "B.6 rule 2", mute, OPEN, "PluginSilent", gdr="unproven")
    bare = Job(pair(plugin="AWS Libfabric", gdr=False))
    yield kind("EFA without GPUDirect", "B.3 B.6 rule 2", bare, FAIL, "NoGpuDirect")


# -- B.4: device lists ---------------------------------------------------------------------------------------------


def devices() -> Iterator[Kind]:
    """Forms of the device list."""
    job = Job(pair(), "2.21.5+cuda12.4")
    group = "[0]={[0] mlx5_0:1/IB, [1] mlx5_1:1/IB} [RO]"
    yield kind(
        "grouped NICs", "B.4", job,
        edit=lambda text: text.replace("[0]mlx5_0:1/IB [1]mlx5_1:1/IB [RO]", group).replace("NET/IB/1", "NET/IB/0"),
    )  # fmt: skip
    job = Job(pair(), "2.27.7+cuda12.9")
    made = "NET/IB : Made virtual device [2] name=mlx5_0+mlx5_1 speed=400000 ndevs=2"
    yield kind(
        "merged NICs", "B.4", job,
        edit=lambda text: _each(
            text.replace("NET/IB/0", "NET/IB/2").replace("NET/IB/1", "NET/IB/2"),
            lambda line: [line, re.sub("Using network .*", made, line)] if "Using network" in line else [line],
        ),
    )  # fmt: skip
    yield kind("RoCE", "B.4", Job(pair(link="RoCE")))
    yield kind("SHARP's device list", "B.4", Job(pair(link="IB/SHARP")))
    yield kind("rails and planes", "B.4", Job(pair(), "2.30.4+cuda13.1"))


# -- B.6: paths ----------------------------------------------------------------------------------------------------


def paths() -> Iterator[Kind]:
    """Words of channel records beyond the plain ones."""
    three = [host(number) for number in range(3)]
    for version in ("2.12.12+cuda11.6", "2.20.3+cuda12.3", "2.30.4+cuda13.1"):
        yield kind(f"{version.partition('+')[0]} PXN", "B.6 rule 4", Job(three, version))
    yield kind("2.8.4 shared buffers", "B.6", Job(pair(shared=True), "2.8.4+cuda11.2"))
    tray = {"product": GB200, "pci": True}
    for version in ("2.26.2+cuda12.8", "2.30.4+cuda13.1"):
        yield kind(f"{version.partition('+')[0]} over PCIe beside C2C", "B.6", Job(pair(**tray), version))
    rack = {"product": GB200, "clique": "rack-a.0"}
    for version in ("2.21.5+cuda12.4", "2.27.7+cuda12.9", "2.30.4+cuda13.1"):
        yield kind(f"{version.partition('+')[0]} NVLink domain", "B.6 rule 1", Job(pair(**rack), version))
    racks = [host(0, **rack), host(1, **rack), host(2, product=GB200, clique="rack-b.0")]
    yield kind("two NVLink domains", "B.6 rule 1", Job(racks))
    for old, new in (
        ("P2P/CUMEM", "P2P/direct pointer"),
        ("P2P/CUMEM", "P2P/indirect/1[1]"),
        ("P2P/CUMEM", "P2P/IPC/read"),
    ):
        inside = {"/".join(new.split("/")[:2])}
        yield kind(f"one host, {new}", "B.6", Job([host()]), edit=_put(old, new), intranode=inside)
    walled = Job([host(product=H100, p2p=False)])
    yield kind("one host, shared memory beside NVSwitch", "B.6 SHM", walled, FAIL, "NoPeerAccess")
    job = Job(pair(product=H100))
    nvls = "NVLS comm 0x55aa headRank 0 nHeads 2 buffSize 4194304 nvlsPerRankSize 1 nvlsTotalSize 1"
    more = job.truth["intranode"] | {"NVLS"}
    yield kind("NVLS", "B.6", job, edit=behind("Connected all trees", nvls, "Connected NVLS tree"), intranode=more)
    job = Job(pair())
    sharp = [f"CollNet 00/0 : {{rank}} [{side}] via COLLNET/SHARP/0/GDRDMA" for side in ("send", "receive")]
    net = job.truth["net"] + 8
    yield kind(
        "CollNet", "B.6", job, edit=behind("Connected all trees", *sharp), net=net, gdr_channels=net
    )  # fmt: skip


def _put(old: str, new: str) -> Edit:
    return lambda text: text.replace(old, new)


def behind(words: str, *records: str) -> Edit:
    """Put records of the same rank behind each record with these words."""

    def change(line: str) -> list[str]:
        if words not in line:
            return [line]
        head, _, _ = line.partition("Connected")
        number = int(head.split(":")[0].rpartition("-")[2])
        gpu = int(head.partition("[")[2].partition("]")[0])
        return [line, *(head + record.format(rank=2 * number + gpu) for record in records)]

    return lambda text: _each(text, change)


# -- B.5 and B.6: GPUDirect in part --------------------------------------------------------------------------------


def directness() -> Iterator[Kind]:
    """Hosts, NICs and directions that lack it, and what is said of it beside the channels."""
    lame = Job([host(0), host(1, gdr=False)])
    yield kind("one host without GPUDirect", "B.6 rule 2", lame, FAIL, "NoGpuDirect")
    job = Job(pair())
    sent = job.truth["net"] // 2
    yield kind(
        "sends without GPUDirect", "B.6 rule 2", job, FAIL, "PartlyGpuDirect",
        edit=lambda text: re.sub(r"(\[send\] via NET/IB/\d+)/GDRDMA", r"\1", text), gdr="partial", gdr_channels=sent,
    )  # fmt: skip
    on_one = len(re.findall(r"NET/IB/0/GDRDMA", "".join(job.rendered.logs.values())))
    yield kind(
        "one NIC without GPUDirect", "B.6 rule 2", job, FAIL, "PartlyGpuDirect",
        edit=_put("NET/IB/1/GDRDMA", "NET/IB/1"), gdr="partial", gdr_channels=on_one,
    )  # fmt: skip
    decree = Job(pair(), style=Style(env={"NCCL_NET_GDR_LEVEL": "SYS"}))
    yield kind("by decree", "B.5", decree)
    for version in ("2.10.3+cuda11.4", "2.16.5+cuda11.8", "2.22.3+cuda12.5", "2.28.9+cuda12.9", "2.29.2+cuda13.0"):
        job = Job(pair(), version, Style(graph=True))
        name = version.partition("+")[0]
        said = _put("GPU Direct RDMA Enabled", "GPU Direct RDMA Disabled")
        yield kind(f"{name} called impossible and used", "B.5", job, edit=said)
        off = Job(pair(gdr=False), version, Style(graph=True))
        said = _put("GPU Direct RDMA Disabled", "GPU Direct RDMA Enabled")
        yield kind(f"{name} called possible and not used", "B.5", off, FAIL, "NoGpuDirect", edit=said)


# -- B.6 rules 5 to 8: who is there --------------------------------------------------------------------------------


def ranks() -> Iterator[Kind]:
    """Several communicators, ranks that say nothing, and jobs that never met."""
    job = Job([host(number) for number in range(3)])
    logs = job.rendered.logs
    half = list(logs.values())[:2]
    yield Kind(
        "a host's log is missing", "B.6 rule 7", tuple(text.encode() for text in half),
        {"gdr": "all", "ranks": 6}, OPEN, frozenset({"Incomplete"}),
    )  # fmt: skip
    mute = lambda line: [] if line.startswith("pod-1:102:") else [line]  # noqa: E731
    silent = [_each(text, mute).encode() for text in logs.values()]
    truth = {"gdr": "all", "ranks": 6}
    yield Kind("a silent rank", "B.6 rule 7", tuple(silent), truth, OPEN, frozenset({"Incomplete"}))
    alone = [Job([host(number, gpus=1)]) for number in range(2)]
    apart = b"".join("".join(one.rendered.logs.values()).encode() for one in alone)
    truth = {"gdr": "unproven", "net": None}
    yield Kind("nccl-tests without MPI, two hosts", "B.6 rule 8", (apart,), truth, OPEN, frozenset({"SeparateRuns"}))
    one = "".join(alone[0].rendered.logs.values())
    here = one + one.replace("pod-0:101:", "pod-0:102:").replace("commId 0x", "commId 0x1")
    yield Kind(
        "nccl-tests without MPI, one host", "B.6 rule 8", (here.encode(),), truth, OPEN, frozenset({"SeparateRuns"})
    )  # fmt: skip
    yield kind("one rank", "B.6 rule 1", alone[0], busbw=0.0)
    twice = Job(pair())
    first, second = (list(one.rendered.logs.values()) for one in (twice, replace(twice, hosts=pair(shared=True))))
    both = [
        (text + re.sub(r"commId 0x\w+", "commId 0xfeed", other)).encode()
        for text, other in zip(first, second, strict=True)
    ]
    # The same channels twice over: counted once, the first table is the one.
    yield Kind("two communicators", "B.6 rule 5", tuple(both), twice.truth, PASS)


# -- C.1: tables ---------------------------------------------------------------------------------------------------


def tables() -> Iterator[Kind]:
    """Each form of the table that nccl-tests printed."""
    for release in ((2, 0, 0), (2, 10, 1), (2, 13, 4), (2, 16, 7), (2, 17, 4), (2, 18, 2), (2, 19, 6)):
        form = Form(release)
        yield kind(f"nccl-tests {form.name}", "C.1", Job(pair(), style=Style(form)))
    last = Form((2, 20, 0), extra=" (0a1b2c3)")
    yield kind("nccl-tests 2.20.0", "C.1", Job(pair(), style=Style(last)))
    new = Form((2, 19, 6))
    yield kind("table -I 1", "C.1", Job(pair(), style=Style(replace(new, statistics=True))))
    yield kind("table -c 0", "C.1", Job(pair(), style=Style(replace(new, checked=False))))
    yield kind("table -S", "C.1", Job(pair(), style=Style(replace(new, stamped=True))))
    yield kind("table -I 1 -S", "C.1", Job(pair(), style=Style(replace(new, stamped=True, statistics=True))))
    yield kind("table -C 1", "C.1", Job(pair(), style=Style(replace(new, cpu_time=True))))
    wrong = Job(pair(), style=Style(replace(new, wrong=3)))
    # Two sizes, two halves each, or the foot's own account where that is more.
    yield kind("wrong results", "C.1", wrong, FAIL, "WrongResults")
    for collective, redop in (("all_gather", "none"), ("alltoall", "none"), ("sendrecv", "sum")):
        form = replace(new, collective=collective, redop=redop)
        yield kind(f"{collective} table", "C.1", Job(pair(), style=Style(form)))
    job = Job(pair(), style=Style(new, env={"NCCL_DEBUG": "INFO"}))
    logs = [_each(text, lambda line: [line] if _RECORD.match(line) else []) for text in job.rendered.logs.values()]
    document = job.rendered.document.encode()
    figure = {"busbw": json.loads(document)["results"][-1]["out_of_place"]["bus_bw"]}
    files = (document, *(text.encode() for text in logs))
    yield Kind("-J beside the records", "C.1 JSON", files, {**job.truth, **figure}, PASS)
    alone = {"ranks": 4, **figure, "wrong": 0, "gdr": "unproven", "hosts": {"pod-0", "pod-1"}}
    yield Kind("-J alone", "C.1 JSON", (document,), alone, OPEN, frozenset({"NoNetChannel"}))
    bad = Job(pair(), style=Style(replace(new, wrong=3))).rendered.document.encode()
    yield Kind("-J with wrong results", "C.1 JSON", (bad,), {**alone, "wrong": 3}, FAIL, frozenset({"WrongResults"}))
    two = Job(pair(), style=Style(replace(new, collective="all_gather"))).rendered.logs
    more = [(one + other).encode() for one, other in zip(job.rendered.logs.values(), two.values(), strict=True)]
    yield Kind("two tables", "C.1", tuple(more), job.truth, PASS)
    soak = render(pair(), min_bytes=1 << 30, max_bytes=1 << 30, seed=3, repeats=5, style=Style(new))
    slowest = {**job.truth, "busbw": min(soak.series)}
    yield Kind("a soak of one size", "C.1", tuple(text.encode() for text in soak.logs.values()), slowest, PASS)
