"""What ``all_reduce_perf`` prints with NCCL_DEBUG=INFO: the records of each pod's ranks, and the table.

The grammar is that of NCCL 2.27: channels connect during the first collective, so their records stand between
the head of the table and its first row.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from gpuready.charts_values.errors import InputError

from . import fabric
from .boards import board
from .fabric import Hop, Host, narrowed

__all__ = ["Host", "Rendered", "narrowed", "render", "render_rails"]

# PCI buses of an eight-GPU board, in GPU order.
_BUSES = ("1b", "43", "52", "61", "9d", "c3", "d1", "df")
# Records of a rank's start that come after the one with nNodes: rings and trees stand between.
_AFTER_SHAPE = 4
_NOISE = 0.01
_LATENCY_US = 28.0
_HALF_BYTES = 12 << 20


@dataclass(frozen=True)
class Rendered:
    """Logs by host name; the bus bandwidths in GB/s of the table's largest size, each time it was measured; how
    many ranks ran. ``rails`` has those bandwidths by NIC where each was measured by itself."""

    logs: dict[str, str]
    series: tuple[float, ...]
    ranks: int
    rails: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def busbw_gbytes_s(self) -> float:
        """What was measured last."""
        return self.series[-1]


@dataclass(frozen=True)
class _Rank:
    number: int
    host: Host
    node: int
    gpu: int
    comm: str

    @property
    def pid(self) -> int:
        return 101 + self.gpu

    @property
    def bus(self) -> str:
        return _BUSES[self.gpu % len(_BUSES)]

    def info(self, thread: int, text: str) -> str:
        """A record of this rank; ``thread`` 0 is the main one, 1 sets up, 2 connects."""
        tid = self.pid if thread == 0 else self.pid + 100 * thread
        return f"{self.host.name}:{self.pid}:{tid} [{self.gpu}] NCCL INFO {text}"


def render(
    hosts: Sequence[Host],
    *,
    version: str = "2.27.7+cuda12.9",
    min_bytes: int,
    max_bytes: int,
    seed: int,
    repeats: int = 1,
) -> Rendered:
    """The logs of one all-reduce benchmark over all GPUs of the hosts, sizes doubling from min to max bytes.

    Each size is measured ``repeats`` times. The same seed gives the same text. Raises InputError where there is
    nothing to run.
    """
    if not hosts or any(host.gpus < 1 for host in hosts):
        raise InputError("an NCCL run needs hosts with at least one GPU each")
    if not 0 < min_bytes <= max_bytes or repeats < 1:
        raise InputError(f"an NCCL run from {min_bytes} to {max_bytes} bytes measures nothing")
    noise = random.Random(seed)
    ranks = _ranks(hosts, noise)
    comm_id = f"0x{noise.getrandbits(64):x}"
    start = {rank.number: list(_start(rank, hosts, len(ranks), version, comm_id)) for rank in ranks}
    if len(ranks) > 1:
        for rank, line in zip(ranks, _trees(hosts, ranks), strict=True):
            start[rank.number].insert(-_AFTER_SHAPE, line)
        start[0][-_AFTER_SHAPE - 1 : -_AFTER_SHAPE - 1] = _ring_lists(hosts, ranks)
    connections = _connections(hosts, ranks)
    rows, series = _rows(hosts, len(ranks), _sizes(min_bytes, max_bytes, repeats), noise)
    head = _head(ranks, min_bytes, max_bytes)
    logs = {}
    for node, host in enumerate(hosts):
        mine = [rank for rank in ranks if rank.node == node]
        lines = list(head) if node == 0 else []
        for rank in mine:
            lines += start[rank.number]
        if node == 0:
            lines += _COLUMNS
        for rank in mine:
            lines += connections[rank.number]
        if node == 0:
            lines += rows
        lines += [
            rank.info(
                0,
                f"comm {rank.comm} rank {rank.number} nranks {len(ranks)} cudaDev {rank.gpu} "
                f"busId {rank.bus}000 - Destroy COMPLETE",
            )
            for rank in mine
        ]
        if node == 0:
            lines += _foot(rows)
        logs[host.name] = "\n".join(lines) + "\n"
    return Rendered(logs, tuple(series[-repeats:]), len(ranks))


def render_rails(
    hosts: Sequence[Host], rails: Sequence[str], *, min_bytes: int, max_bytes: int, seed: int, repeats: int = 1
) -> Rendered:
    """The same of each rail by itself: one process on each host, with that NIC alone."""
    parts = {
        nic: render(
            [fabric.on_rail(host, nic) for host in hosts],
            min_bytes=min_bytes,
            max_bytes=max_bytes,
            seed=seed + number,
            repeats=repeats,
        )
        for number, nic in enumerate(rails)
    }
    logs = {host.name: "".join(part.logs[host.name] for part in parts.values()) for host in hosts}
    by_rail = {nic: part.series for nic, part in parts.items()}
    last = next(reversed(by_rail.values()), ())
    return Rendered(logs, last, len(hosts) * len(rails), by_rail)


def _ranks(hosts: Sequence[Host], noise: random.Random) -> list[_Rank]:
    ranks: list[_Rank] = []
    for node, host in enumerate(hosts):
        for gpu in range(host.gpus):
            comm = f"0x{0x550000000000 + noise.getrandbits(36) * 16:x}"
            ranks.append(_Rank(len(ranks), host, node, gpu, comm))
    return ranks


def _start(rank: _Rank, hosts: Sequence[Host], ranks: int, version: str, comm_id: str) -> Iterator[str]:
    """The records of a rank from its first one to Init COMPLETE."""
    host = rank.host
    card = board(host.product)
    channels = fabric.channel_count(hosts)
    out_of_band = f"eth0:{host.address}<0>"
    yield rank.info(0, f"Bootstrap: Using {out_of_band}")
    yield rank.info(0, f"cudaDriverVersion {_cuda_version(version)}")
    yield rank.info(0, f"NCCL version {version}")
    yield rank.info(1, "NET/Plugin: Could not find: libnccl-net.so. Using internal network plugin.")
    if host.network == "IB":
        devices = " ".join(f"[{index}]{nic}:1/{host.link}" for index, nic in enumerate(host.nics))
        yield rank.info(1, f"NET/IB : Using {devices} [RO]; OOB {out_of_band}")
    else:
        yield rank.info(1, "NET/IB : No device found.")
        yield rank.info(1, f"NET/Socket : Using [0]{out_of_band}")
    yield rank.info(1, f"Initialized NET plugin {host.network}")
    yield rank.info(1, f"Assigned NET plugin {host.network} to comm")
    yield rank.info(1, f"Using network {host.network}")
    if card.nvswitch:
        yield rank.info(1, f"DMA-BUF is available on GPU device {rank.gpu}")
    init = (
        f"ncclCommInitRank comm {rank.comm} rank {rank.number} nranks {ranks} cudaDev {rank.gpu} "
        f"nvmlDev {rank.gpu} busId {rank.bus}000 commId {comm_id}"
    )
    yield rank.info(1, f"{init} - Init START")
    if host.clique:
        members = [index for index, one in enumerate(hosts) if fabric.joined(host, one)]
        before = sum(hosts[index].gpus for index in members if index < rank.node)
        size = sum(hosts[index].gpus for index in members)
        number = int(host.clique.rpartition(".")[2] or 0)
        yield rank.info(1, f"MNNVL 1 cliqueId {number:x} cliqueSize {size} cliqueRank {before + rank.gpu}")
    if card.nvls:
        yield rank.info(1, f"NVLS multicast support is available on dev {rank.gpu} (NVLS_NCHANNELS 16)")
    yield rank.info(
        1,
        f"comm {rank.comm} rank {rank.number} nRanks {ranks} nNodes {len(hosts)} localRanks {host.gpus} "
        f"localRank {rank.gpu} MNNVL {int(bool(host.clique))}",
    )
    yield rank.info(1, "P2P Chunksize set to 524288")
    yield rank.info(
        1,
        f"{channels} coll channels, {channels} collnet channels, 0 nvls channels, {channels} p2p channels, "
        "2 p2p channels per peer",
    )
    yield rank.info(1, f"{init} - Init COMPLETE")
    yield rank.info(
        1,
        f"Init timings - ncclCommInitRank: rank {rank.number} nranks {ranks} total 3.41 (kernels 0.24, "
        "alloc 0.61, bootstrap 1.83, allgathers 0.02, topo 0.52, graphs 0.02, connections 0.15, rest 0.02)",
    )


def _ring_lists(hosts: Sequence[Host], ranks: Sequence[_Rank]) -> list[str]:
    """The ring of every channel, which rank 0 alone prints."""
    numbers = {(rank.node, rank.gpu): rank.number for rank in ranks}
    channels = fabric.channel_count(hosts)
    lines = []
    for channel in range(channels):
        order = [numbers[member] for member in fabric.ring(hosts, channel)]
        place = order.index(0)
        text = " ".join(str(number) for number in order[place:] + order[:place])
        lines.append(ranks[0].info(1, f"Channel {channel:02d}/{channels:02d} : {text}"))
    return lines


def _trees(hosts: Sequence[Host], ranks: Sequence[_Rank]) -> list[str]:
    """Each rank's place in the tree of every channel: children, itself, parent."""
    numbers = {(rank.node, rank.gpu): rank.number for rank in ranks}
    texts: list[list[str]] = [[] for _ in ranks]
    for channel in range(fabric.channel_count(hosts)):
        parents: dict[int, int] = {}
        children: dict[int, list[int]] = {rank.number: [] for rank in ranks}
        for child, parent in fabric.tree(hosts, channel):
            parents[numbers[child]] = numbers[parent]
            children[numbers[parent]].append(numbers[child])
        for number, below in children.items():
            three = "/".join(str(child) for child in (*below, -1, -1, -1)[:3])
            texts[number].append(f"[{channel}] {three}->{number}->{parents.get(number, -1)}")
    return [rank.info(1, f"Trees {' '.join(texts[rank.number])}") for rank in ranks]


def _connections(hosts: Sequence[Host], ranks: Sequence[_Rank]) -> dict[int, list[str]]:
    """The channel records of every rank, in the order in which it connects."""
    places = {(rank.node, rank.gpu): rank for rank in ranks}
    lines: dict[int, list[str]] = {rank.number: [] for rank in ranks}
    for channel in range(fabric.channel_count(hosts)) if len(ranks) > 1 else ():
        for hop in fabric.hops(hosts, channel):
            source, target = places[hop.source], places[hop.target]
            path = f"Channel {channel:02d}/0 : {source.number}[{source.gpu}] -> {target.number}[{target.gpu}]"
            if source.node == target.node:
                via = "P2P/CUMEM" if board(source.host.product).nvlinks else "SHM/direct/direct"
                lines[source.number].append(source.info(2, f"{path} via {via}"))
            elif fabric.joined(source.host, target.host):
                lines[source.number].append(source.info(2, f"{path} via P2P/MNNVL"))
            else:
                send, receive = _net(hop, source, target, ranks)
                lines[target.number].append(target.info(2, f"{path} [receive] via NET/{receive}"))
                lines[source.number].append(source.info(2, f"{path} [send] via NET/{send}"))
    multi = len(hosts) > 1
    for rank in ranks:
        if len(ranks) > 1:
            gdr = not multi or (rank.host.gdr and rank.host.network == "IB")
            flags = f", use ring PXN 0 GDR {int(gdr)}"
            lines[rank.number] += [
                rank.info(2, f"Connected all rings{flags}"),
                rank.info(2, "Connected all trees"),
            ]
    return lines


def _net(hop: Hop, source: _Rank, target: _Rank, ranks: Sequence[_Rank]) -> tuple[str, str]:
    """The transports that sender and receiver print for one connection between hosts."""
    if "Socket" in (source.host.network, target.host.network):
        return "Socket/0", "Socket/0"
    rail = target.host.nic_of(target.gpu, hop.channel)
    own = source.host.nic_of(source.gpu, hop.channel)
    via = str(own)
    if rail != own and rail < len(source.host.nics):
        # PXN: the GPU beside the right NIC forwards, so that traffic stays on its rail.
        proxy = source.number - source.gpu + source.host.owner_of(rail)
        via = f"{rail}({proxy})"
    return (
        f"IB/{via}{'/GDRDMA' if source.host.gdr else ''}",
        f"IB/{rail}{'/GDRDMA' if target.host.gdr else ''}",
    )


_HALF = "     time   algbw   busbw  #wrong"
_UNITS = "     (us)  (GB/s)  (GB/s)        "
_COLUMNS = [
    "#",
    f"#{'out-of-place':>74}{'in-place':>31}          ",
    f"#       size         count      type   redop    root{_HALF}{_HALF} ",
    f"#        (B)    (elements)                          {_UNITS}{_UNITS} ",
]


def _head(ranks: Sequence[_Rank], min_bytes: int, max_bytes: int) -> list[str]:
    return [
        "# nccl-tests version 2.17.6 nccl-headers=22707 nccl-library=22707",
        "# Collective test starting: all_reduce_perf",
        f"# nThread 1 nGpus 1 minBytes {min_bytes} maxBytes {max_bytes} step: 2(factor) warmup iters: 5 "
        "iters: 20 agg iters: 1 validation: 1 graph: 0",
        "#",
        "# Using devices",
        *(
            f"#  Rank {rank.number:>2} Group  0 Pid {rank.pid:>6} on {rank.host.name:>10} "
            f"device {rank.gpu:>2} [0000:{rank.bus}:00] {rank.host.product}"
            for rank in ranks
        ),
    ]


def _sizes(min_bytes: int, max_bytes: int, repeats: int) -> Iterator[int]:
    size = min_bytes
    while size <= max_bytes:
        yield from [size] * repeats
        size *= 2


def _rows(
    hosts: Sequence[Host], ranks: int, sizes: Iterable[int], noise: random.Random
) -> tuple[list[str], list[float]]:
    """The rows of the table and their out-of-place bus bandwidths."""
    peak = fabric.bandwidth(hosts) if ranks > 1 else 0.0
    factor = 2 * (ranks - 1) / ranks
    rows: list[str] = []
    series: list[float] = []
    for size in sizes:
        halves = []
        for place in range(2):
            time_us, algbw, busbw = _measure(size, peak, factor, noise)
            halves.append(f"  {_time(time_us):>7}  {algbw:>6.2f}  {busbw:>6.2f}  {0:>6}")
            if place == 0:
                series.append(round(busbw, 2))
        rows.append(f"{size:>12}  {size // 4:>12}  {'float':>8}  {'sum':>6}  {-1:>6}{halves[0]}{halves[1]}")
    return rows, series


def _measure(size: int, peak: float, factor: float, noise: random.Random) -> tuple[float, float, float]:
    """Time in microseconds, algorithm and bus bandwidth in GB/s of one size."""
    if not factor:
        time_us = _LATENCY_US / 4 + size / 1.3e6
        return time_us, size / time_us / 1e3, 0.0
    reached = peak * size / (size + _HALF_BYTES) * (1 + noise.uniform(-_NOISE, _NOISE))
    time_us = max(size * factor / reached / 1e3, _LATENCY_US * (1 + noise.uniform(-_NOISE, _NOISE)))
    algbw = size / time_us / 1e3
    return time_us, algbw, algbw * factor


def _time(time_us: float) -> str:
    """Microseconds in seven columns, as nccl-tests fits them."""
    decimals = 2 if time_us < 9999.995 else 1 if time_us < 99999.95 else 0
    return f"{time_us:.{decimals}f}"


def _foot(rows: Sequence[str]) -> list[str]:
    figures = [float(row.split()[column]) for row in rows for column in (7, 11)]
    return [
        "# Out of bounds values : 0 OK",
        f"# Avg bus bandwidth    : {math.fsum(figures) / len(figures):.6g} ",
        "#",
        "# Collective test concluded: all_reduce_perf",
    ]


def _cuda_version(version: str) -> int:
    """The driver's number for the CUDA release that NCCL was built with: 12.9 is 12090."""
    major, _, minor = version.partition("+cuda")[2].partition(".")
    return int(major or 12) * 1000 + int(minor or 0) * 10
