"""What ``all_reduce_perf`` prints with NCCL_DEBUG=INFO: the records of each pod's ranks, and the table.

Each NCCL release words it in its own way. From 2.22 on channels connect during the first collective, so that their
records stand between the head of the table and its first row.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from gpuready.charts_values.errors import InputError

from . import fabric
from .boards import board
from .dialect import DEFAULT, Dialect, End
from .fabric import Hop, Host, narrowed
from .tables import Form, Place, Row, sizes

__all__ = ["Dialect", "Form", "Host", "Rendered", "Style", "narrowed", "render", "render_rails"]

# PCI buses of an eight-GPU board, in GPU order.
_BUSES = ("1b", "43", "52", "61", "9d", "c3", "d1", "df")
_NOISE = 0.01
_LATENCY_US = 28.0
_HALF_BYTES = 12 << 20


@dataclass(frozen=True)
class Style:
    """What a job logs beside its fabric: the ``form`` of the benchmark's output, NCCL settings that it echoes, and
    with ``graph`` what the subsystems NET and GRAPH add."""

    form: Form = field(default_factory=Form)
    env: Mapping[str, str] = field(default_factory=dict)
    graph: bool = False


@dataclass(frozen=True)
class Rendered:
    """Logs by host name; the bus bandwidths in GB/s of the table's largest size, each time it was measured; how
    many ranks ran. ``rails`` has those bandwidths by NIC where each was measured by itself. ``document`` is the
    table as the JSON file of nccl-tests. ``whole`` is False where a port went down in the middle."""

    logs: dict[str, str]
    series: tuple[float, ...]
    ranks: int
    rails: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    document: str = ""
    whole: bool = True

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

    @property
    def end(self) -> End:
        return End(self.number, self.gpu, self.bus)

    def info(self, thread: int, text: str) -> str:
        """A record of this rank; ``thread`` 0 is the main one, 1 sets up, 2 connects."""
        tid = self.pid if thread == 0 else self.pid + 100 * thread
        return f"{self.host.name}:{self.pid}:{tid} [{self.gpu}] NCCL INFO {text}"

    def warning(self, dialect: Dialect, text: str) -> str:
        """A warning of this rank's RDMA transport, and the error that it returns."""
        place = "transport/net_ib.cc"
        before, after = dialect.warning(f"{place}:1295", "ncclIbTest", text)
        where = f"{self.host.name}:{self.pid}:{self.pid + 300} [{self.gpu}]"
        return f"{before}{where} {after}\n{where} NCCL INFO {place}:1200 -> 6"


def render(
    hosts: Sequence[Host],
    *,
    version: str = DEFAULT,
    min_bytes: int,
    max_bytes: int,
    seed: int,
    repeats: int = 1,
    style: Style = Style(),
) -> Rendered:
    """The logs of one all-reduce benchmark over all GPUs of the hosts, sizes doubling from min to max bytes.

    Each size is measured ``repeats`` times. The same seed gives the same text. A NIC that dies ends the run halfway.
    Raises InputError where there is nothing to run.
    """
    if not hosts or any(host.gpus < 1 for host in hosts):
        raise InputError("an NCCL run needs hosts with at least one GPU each")
    if not 0 < min_bytes <= max_bytes or repeats < 1:
        raise InputError(f"an NCCL run from {min_bytes} to {max_bytes} bytes measures nothing")
    noise = random.Random(seed)
    dialect, form = Dialect(version), style.form
    ranks = _ranks(hosts, noise)
    comm_id = f"0x{noise.getrandbits(64):x}"
    start = _starts(hosts, ranks, dialect, style, comm_id)
    connections = _connections(hosts, ranks, dialect)
    rows = _rows(hosts, len(ranks), sizes(min_bytes, max_bytes, repeats), noise)
    errors = _link_errors(hosts, ranks, dialect)
    if errors:
        rows = rows[: (len(rows) + 1) // 2]
    places = [Place(rank.number, rank.pid, rank.host.name, rank.gpu, rank.bus, rank.host.product) for rank in ranks]
    logs = {}
    for node, host in enumerate(hosts):
        mine = [rank for rank in ranks if rank.node == node]
        first = node == 0
        lines = form.head(places, min_bytes, max_bytes) if first else []
        if first and not dialect.since(2, 22):
            lines.append(dialect.banner())
        for rank in mine:
            before, after = start[rank.number]
            lines += before + (after if dialect.lazy else connections[rank.number] + after)
        lines += form.heading() if first else []
        for rank in mine:
            lines += connections[rank.number] if dialect.lazy else []
        lines += [form.row(row) for row in rows] if first else []
        if errors:
            lines += [rank.warning(dialect, text) for rank in mine for text in errors.get(rank.number, ())]
        else:
            lines += [rank.info(0, _ended(rank, len(ranks))) for rank in mine]
            lines += form.foot(rows) if first else []
        logs[host.name] = "\n".join(lines) + "\n"
    figures = [round(row.halves[0][2], 2) for row in rows]
    document = form.document(places, rows, [f"{name}={value}" for name, value in style.env.items()])
    return Rendered(logs, tuple(figures[-repeats:]), len(ranks), document=document, whole=not errors)


def render_rails(
    hosts: Sequence[Host],
    rails: Sequence[str],
    *,
    min_bytes: int,
    max_bytes: int,
    seed: int,
    repeats: int = 1,
    style: Style = Style(),
) -> Rendered:
    """The same of each rail by itself: one process on each host, with that NIC alone."""
    parts = {
        nic: render(
            [fabric.on_rail(host, nic) for host in hosts],
            min_bytes=min_bytes,
            max_bytes=max_bytes,
            seed=seed + number,
            repeats=repeats,
            style=style,
        )
        for number, nic in enumerate(rails)
    }
    logs = {host.name: "".join(part.logs[host.name] for part in parts.values()) for host in hosts}
    by_rail = {nic: part.series for nic, part in parts.items()}
    last = next(reversed(by_rail.values()), ())
    whole = all(part.whole for part in parts.values())
    return Rendered(logs, last, len(hosts) * len(rails), by_rail, whole=whole)


def _ranks(hosts: Sequence[Host], noise: random.Random) -> list[_Rank]:
    ranks: list[_Rank] = []
    for node, host in enumerate(hosts):
        for gpu in range(host.gpus):
            comm = f"0x{0x550000000000 + noise.getrandbits(36) * 16:x}"
            ranks.append(_Rank(len(ranks), host, node, gpu, comm))
    return ranks


def _starts(
    hosts: Sequence[Host], ranks: Sequence[_Rank], dialect: Dialect, style: Style, comm_id: str
) -> dict[int, tuple[list[str], list[str]]]:
    """The records of each rank up to its tree, and those after it, which end with Init COMPLETE."""
    rings = _ring_lists(hosts, ranks, dialect) if len(ranks) > 1 else []
    trees = _trees(hosts, ranks, dialect) if len(ranks) > 1 else [""] * len(ranks)
    found = {}
    for rank, tree in zip(ranks, trees, strict=True):
        before = list(_before(rank, hosts, len(ranks), dialect, style, comm_id))
        before += rings if rank.number == 0 else []
        before += [tree] if tree else []
        found[rank.number] = before, list(_after(rank, hosts, len(ranks), dialect, comm_id))
    return found


def _before(
    rank: _Rank, hosts: Sequence[Host], ranks: int, dialect: Dialect, style: Style, comm_id: str
) -> Iterator[str]:
    """The records of a rank from its first one to the shape of the communicator."""
    host = rank.host
    card = board(host.product)
    address = f"eth0:{host.address}<0>"
    for text in dialect.greeting(address):
        yield rank.info(0, text)
    for name, value in style.env.items():
        yield rank.info(1, f"{name} set by environment to {value}")
    for text in dialect.network(host.network, host.nics, host.link, address):
        yield rank.info(1, text)
    if style.graph and host.network == "IB":
        for index, nic in enumerate(host.nics):
            for text in dialect.capability(nic, index, rank.end, enabled=host.gdr):
                yield rank.info(1, text)
    if card.nvswitch and dialect.since(2, 13, 4):
        yield rank.info(1, f"DMA-BUF is available on GPU device {rank.gpu}")
    if dialect.since(2, 18):
        yield rank.info(1, f"{dialect.initialised(rank.comm, rank.end, ranks, comm_id)} Init START")
    if host.clique and dialect.since(2, 21):
        members = [index for index, one in enumerate(hosts) if fabric.joined(host, one)]
        before = sum(hosts[index].gpus for index in members if index < rank.node)
        size = sum(hosts[index].gpus for index in members)
        number = int(host.clique.rpartition(".")[2] or 0)
        yield rank.info(1, dialect.clique(number, size, before + rank.gpu))
    if card.nvls and dialect.since(2, 17):
        yield rank.info(1, f"NVLS multicast support is available on dev {rank.gpu} (NVLS_NCHANNELS 16)")
    shape = dialect.shape(rank.comm, rank.end, ranks, len(hosts), host.gpus, mnnvl=bool(host.clique))
    if shape is not None:
        yield rank.info(1, shape)


def _after(rank: _Rank, hosts: Sequence[Host], ranks: int, dialect: Dialect, comm_id: str) -> Iterator[str]:
    """The records of a rank from its tree to the end of its start."""
    yield rank.info(1, "P2P Chunksize set to 524288")
    yield rank.info(1, dialect.counts(fabric.channel_count(hosts)))
    yield rank.info(1, f"{dialect.initialised(rank.comm, rank.end, ranks, comm_id)} Init COMPLETE")
    if dialect.since(2, 22):
        yield rank.info(
            1,
            f"Init timings - ncclCommInitRank: rank {rank.number} nranks {ranks} total 3.41 (kernels 0.24, "
            "alloc 0.61, bootstrap 1.83, allgathers 0.02, topo 0.52, graphs 0.02, connections 0.15, rest 0.02)",
        )


def _ended(rank: _Rank, ranks: int) -> str:
    return (
        f"comm {rank.comm} rank {rank.number} nranks {ranks} cudaDev {rank.gpu} busId {rank.bus}000 - Destroy COMPLETE"
    )


def _ring_lists(hosts: Sequence[Host], ranks: Sequence[_Rank], dialect: Dialect) -> list[str]:
    """The ring of every channel, which rank 0 alone prints."""
    numbers = {(rank.node, rank.gpu): rank.number for rank in ranks}
    channels = fabric.channel_count(hosts)
    lines = []
    for channel in range(channels):
        order = [numbers[member] for member in fabric.ring(hosts, channel)]
        place = order.index(0)
        lines.append(ranks[0].info(1, dialect.ring(channel, channels, order[place:] + order[:place])))
    return lines


def _trees(hosts: Sequence[Host], ranks: Sequence[_Rank], dialect: Dialect) -> list[str]:
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
            texts[number].append(dialect.tree(channel, below, number, parents.get(number, -1)))
    return [rank.info(1, f"Trees {' '.join(texts[rank.number])}") for rank in ranks]


def _connections(hosts: Sequence[Host], ranks: Sequence[_Rank], dialect: Dialect) -> dict[int, list[str]]:
    """The channel records of every rank, in the order in which it connects."""
    places = {(rank.node, rank.gpu): rank for rank in ranks}
    lines: dict[int, list[str]] = {rank.number: [] for rank in ranks}
    for channel in range(fabric.channel_count(hosts)) if len(ranks) > 1 else ():
        for hop in fabric.hops(hosts, channel):
            source, target = places[hop.source], places[hop.target]
            path = dialect.path(channel, source.end, target.end, between=source.node != target.node)
            if source.node == target.node:
                nvlink = bool(board(source.host.product).nvlinks) and source.host.p2p
                lines[source.number].append(source.info(2, f"{path} via {dialect.inside(nvlink=nvlink)}"))
            elif fabric.joined(source.host, target.host):
                lines[source.number].append(source.info(2, f"{path} via P2P/MNNVL"))
            else:
                send, receive = _net(hop, source, target, dialect)
                lines[target.number].append(target.info(2, f"{path} [receive] via {receive}"))
                lines[source.number].append(source.info(2, f"{path} [send] via {send}"))
    multi = len(hosts) > 1
    for rank in ranks:
        if len(ranks) > 1:
            gdr = not multi or (rank.host.gdr and rank.host.network != "Socket")
            lines[rank.number] += [rank.info(2, text) for text in dialect.connected(gdr=gdr)]
    return lines


def _net(hop: Hop, source: _Rank, target: _Rank, dialect: Dialect) -> tuple[str, str]:
    """The transports that sender and receiver print for one connection between hosts."""
    if "Socket" in (source.host.network, target.host.network):
        return "NET/Socket/0", "NET/Socket/0"
    nic, rail = _nics(hop, source, target, dialect)
    proxy = None
    if nic != source.host.nic_of(source.gpu, hop.channel):
        # PXN: the GPU beside the right NIC forwards, so that traffic stays on its rail.
        proxy = source.number - source.gpu + source.host.owner_of(nic)

    def via(rank: _Rank, nic: int, proxy: int | None) -> str:
        host = rank.host
        return dialect.between(host.network, nic, proxy=proxy, gdr=host.gdr, pci=host.pci, shared=host.shared)

    return via(source, nic, proxy), via(target, rail, None)


def _nics(hop: Hop, source: _Rank, target: _Rank, dialect: Dialect) -> tuple[int, int]:
    """The NICs at both ends of a connection between hosts: by PXN the sender takes the receiver's rail."""
    rail, own = (rank.host.nic_of(rank.gpu, hop.channel) for rank in (target, source))
    return (rail if rail < len(source.host.nics) and dialect.since(2, 12) else own), rail


def _link_errors(hosts: Sequence[Host], ranks: Sequence[_Rank], dialect: Dialect) -> dict[int, list[str]]:
    """What ranks say of NICs that die: the one beside it of the port, both ends of a connection of each other."""
    said: dict[int, list[str]] = {}
    places = {(rank.node, rank.gpu): rank for rank in ranks}
    dying = any(host.dying for host in hosts)
    for channel in range(fabric.channel_count(hosts)) if dying else ():
        for hop in fabric.hops(hosts, channel):
            source, target = places[hop.source], places[hop.target]
            if not _by_nic(source, target) or "Socket" in (source.host.network, target.host.network):
                continue
            near, far = _nics(hop, source, target, dialect)
            for rank, nic, peer, other in ((source, near, target, far), (target, far, source, near)):
                if (name := rank.host.nics[nic]) in rank.host.dying:
                    beside = places[rank.node, rank.host.owner_of(nic)]
                    said.setdefault(beside.number, []).append(dialect.port_error(name))
                    said.setdefault(rank.number, []).append(dialect.timeout(peer.host.address, name))
                    theirs = dialect.timeout(rank.host.address, peer.host.nics[other])
                    said.setdefault(peer.number, []).append(theirs)
    return {number: list(dict.fromkeys(texts)) for number, texts in said.items()}


def _by_nic(source: _Rank, target: _Rank) -> bool:
    """Whether NICs carry what two ranks send each other, and not the host or NVLink between hosts."""
    return source.node != target.node and not fabric.joined(source.host, target.host)


def _rows(hosts: Sequence[Host], ranks: int, wanted: Iterable[int], noise: random.Random) -> list[Row]:
    """Each size measured, out of place and in place."""
    peak = fabric.bandwidth(hosts) if ranks > 1 else 0.0
    factor = 2 * (ranks - 1) / ranks
    return [Row(size, (_measure(size, peak, factor, noise), _measure(size, peak, factor, noise))) for size in wanted]


def _measure(size: int, peak: float, factor: float, noise: random.Random) -> tuple[float, float, float]:
    """Time in microseconds, algorithm and bus bandwidth in GB/s of one size."""
    if not factor:
        time_us = _LATENCY_US / 4 + size / 1.3e6
        return time_us, size / time_us / 1e3, 0.0
    reached = peak * size / (size + _HALF_BYTES) * (1 + noise.uniform(-_NOISE, _NOISE))
    time_us = max(size * factor / reached / 1e3, _LATENCY_US * (1 + noise.uniform(-_NOISE, _NOISE)))
    algbw = size / time_us / 1e3
    return time_us, algbw, algbw * factor
