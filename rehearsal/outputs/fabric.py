"""A small model of the fabric between nodes: which NIC carries which channel, and how fast it all is.

Figures: 48 GB/s is what NCCL gets out of a 400 Gb/s port; two Hopper nodes exceed the ring's ceiling since
NCCL chooses a tree over NVLink SHARP; TCP moves 3-4 GB/s; RDMA through host memory about half of RDMA
into the GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from .boards import board

_GBYTES_PER_GBIT = 48 / 400
_SOCKET_GBYTES_S = 3.6
_SOCKET_GBYTES_PER_GBIT = 0.06
_HOST_MEMORY_FACTOR = 0.5
_TWO_NODE_TREE_GAIN = 1.2


@dataclass(frozen=True)
class Host:
    """One pod of an NCCL job and the hardware under it.

    ``nics`` are RDMA device names in rail order, ``link`` is IB or RoCE, ``nic_gbits_s`` the rate of one NIC.
    ``slow`` maps a NIC to the share of its rate that it reaches, 0 < share <= 1, and ``nvlink`` is that share of
    the slowest NVLink. ``dying`` are NICs whose port goes down under load. ``clique`` is the NVLink domain whose
    other hosts the pod may reach over NVLink, empty where it may not. ``plugin`` is the network plug-in that NCCL
    loads there, if any. Without ``p2p`` GPUs of the host talk through its memory; with ``pci`` its NICs take the
    way over PCIe although CPU and GPU share memory; with ``shared`` channels share their buffers.
    """

    name: str
    gpus: int
    nics: tuple[str, ...]
    link: str
    nic_gbits_s: float
    rdma: bool
    gdr: bool
    address: str
    slow: Mapping[str, float] = field(default_factory=dict)
    product: str = "NVIDIA H100 80GB HBM3"
    clique: str = ""
    nvlink: float = 1.0
    dying: frozenset[str] = frozenset()
    plugin: str = ""
    p2p: bool = True
    pci: bool = False
    shared: bool = False

    @property
    def network(self) -> str:
        """The network that NCCL chooses on this host."""
        return self.plugin or "IB" if self.rdma and self.nics else "Socket"

    def nic_of(self, gpu: int, channel: int) -> int:
        """The index of the NIC next to a GPU; with several of them the channels take turns."""
        nics = len(self.nics)
        if nics < self.gpus:
            return gpu * nics // self.gpus
        share = nics // self.gpus
        return gpu * share + channel // self.gpus % share

    def owner_of(self, nic: int) -> int:
        """The GPU next to a NIC."""
        return nic * self.gpus // len(self.nics)


def narrowed(host: Host, hca: str) -> Host:
    """The host as NCCL_IB_HCA lets NCCL see it: names by prefix, by ``=`` exactly, and ``^`` turns it round."""
    if not hca:
        return host
    turned = hca.startswith("^")
    exact = hca.lstrip("^").startswith("=")
    wanted = [one.partition(":")[0] for one in hca.lstrip("^=").split(",")]
    kept = (nic for nic in host.nics if turned != any(nic == one if exact else nic.startswith(one) for one in wanted))
    return replace(host, nics=tuple(kept))


def on_rail(host: Host, nic: str) -> Host:
    """What one process on the GPU beside a NIC, and with that NIC alone, has of the host."""
    return replace(narrowed(host, f"={nic}"), gpus=1, clique="", nvlink=1.0)


@dataclass(frozen=True)
class Hop:
    """One direction of a channel between two GPUs. ``source`` and ``target`` are (host index, GPU index)."""

    channel: int
    source: tuple[int, int]
    target: tuple[int, int]


def joined(one: Host, other: Host) -> bool:
    """Whether NVLink leads from one host to the other."""
    return bool(one.clique) and one.clique == other.clique


def channel_count(hosts: Sequence[Host]) -> int:
    """How many channels NCCL opens: two for each NIC, 16 on NVSwitch boards."""
    if all(board(host.product).nvswitch for host in hosts):
        return 16
    return max(2, 2 * max(len(host.nics) for host in hosts))


def ring(hosts: Sequence[Host], channel: int) -> Iterator[tuple[int, int]]:
    """The ring of a channel as (host index, GPU index).

    It leaves even hosts on rail k and odd ones on rail k-1 and enters the next on the same rail, so that
    traffic stays on its rail; only an odd number of hosts forces one crossing.
    """
    for index, host in enumerate(hosts):
        gpus = host.gpus
        step = -1 if index % 2 == 0 else 1
        first = channel - 1 if index % 2 == 0 else channel
        for position in range(gpus):
            yield index, (first + step * position) % gpus


def hops(hosts: Sequence[Host], channel: int) -> Iterator[Hop]:
    """Every connection of a channel: its ring, then its tree over the hosts, each pair once."""
    seen: set[tuple[tuple[int, int], tuple[int, int]]] = set()
    for source, target in (*_ring_pairs(hosts, channel), *_tree_pairs(hosts, channel)):
        if source != target and (source, target) not in seen:
            seen.add((source, target))
            yield Hop(channel, source, target)


def _ring_pairs(hosts: Sequence[Host], channel: int) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    members = list(ring(hosts, channel))
    yield from zip(members, members[1:] + members[:1], strict=True)


def _tree_pairs(hosts: Sequence[Host], channel: int) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    for child, parent in tree(hosts, channel):
        yield child, parent
        yield parent, child


def tree(hosts: Sequence[Host], channel: int) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """The tree of a channel as (child, parent) pairs: binary over the hosts, a chain inside each."""
    for index, host in enumerate(hosts):
        head = channel % host.gpus
        for position in range(1, host.gpus):
            yield (index, (head + position) % host.gpus), (index, (head + position - 1) % host.gpus)
        if index:
            parent = (index - 1) // 2
            yield (index, head), (parent, channel % hosts[parent].gpus)


def bandwidth(hosts: Sequence[Host]) -> float:
    """Bus bandwidth of a large all-reduce in GB/s; the slowest rail of any host holds back all."""
    inside = min(board(host.product).allreduce_gbytes_s * host.nvlink for host in hosts)
    if len(hosts) == 1 or all(joined(hosts[0], host) for host in hosts):
        return inside
    if any(host.network == "Socket" for host in hosts):
        return min(_SOCKET_GBYTES_S, *(_SOCKET_GBYTES_PER_GBIT * host.nic_gbits_s for host in hosts))
    rails = min(len(host.nics) for host in hosts)
    slowest = min(host.nic_gbits_s * _GBYTES_PER_GBIT * host.slow.get(nic, 1.0) for host in hosts for nic in host.nics)
    between = rails * slowest
    if not all(host.gdr for host in hosts):
        between *= _HOST_MEMORY_FACTOR
    if len(hosts) == 2 and all(board(host.product).architecture == "Hopper" and host.gpus > 1 for host in hosts):
        between *= _TWO_NODE_TREE_GAIN
    return min(inside, between)
