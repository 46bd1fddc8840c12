"""How NCCL releases word what they log, 2.4 to 2.30: every difference that a reader has to know, and nothing else.

A record is ``host:pid:tid [device] NCCL INFO text``. What changed over the years is the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

DEFAULT = "2.27.7+cuda12.9"
# In the order of their strength; the distance of a NIC beyond the host bridge has another number in each.
_FARTHEST = (((2, 27), 9, 5), ((2, 26), 8, 5), ((2, 0), 7, 4))


@dataclass(frozen=True)
class End:
    """One end of a channel: the rank, its GPU's number on the host, and that GPU's PCI bus."""

    rank: int
    gpu: int
    bus: str


@dataclass(frozen=True)
class Dialect:
    """What one NCCL version prints; ``version`` is ``2.27.7+cuda12.9``."""

    version: str = DEFAULT

    @cached_property
    def release(self) -> tuple[int, ...]:
        """The version as numbers."""
        return tuple(int(part) for part in re.findall(r"\d+", self.version.partition("+")[0]))

    def since(self, *release: int) -> bool:
        """Whether this version is that one or newer."""
        return self.release >= release

    @property
    def lazy(self) -> bool:
        """Whether channels connect in the first collective that needs them, and not while ranks initialise."""
        return self.since(2, 22)

    # -- records of a rank's start ----------------------------------------------------------------------------

    def banner(self) -> str:
        """The version; a record of every rank from 2.22 on, before that a bare line of rank 0."""
        return f"NCCL version {self.version}"

    def greeting(self, address: str) -> Iterator[str]:
        """The first records of a rank, whose interface is ``address``."""
        colon = "Bootstrap:" if self.since(2, 24) else "Bootstrap :"
        yield f"{colon} Using {'' if self.since(2, 8) else '[0]'}{address}"
        if self.since(2, 13):
            major, _, minor = self.version.partition("+cuda")[2].partition(".")
            yield f"cudaDriverVersion {int(major or 12) * 1000 + int(minor or 0) * 10}"
        if self.since(2, 22):
            yield self.banner()
        if self.since(2, 29, 2):
            yield "NCCL git version stable 0a1b2c3"

    def network(self, network: str, nics: Sequence[str], link: str, address: str) -> Iterator[str]:
        """How a rank finds its network: a plug-in by name, ``IB`` with its devices, or ``Socket``."""
        plugin = network not in ("IB", "Socket")
        if not plugin:
            yield (
                "NET/Plugin: Could not find: libnccl-net.so. Using internal network plugin."
                if self.since(2, 21)
                else "NET/Plugin : No plugin found (libnccl-net.so), using internal implementation"
            )
        elif network.endswith("Libfabric"):
            yield f"NET/OFI Selected Provider is efa (found {len(nics)} nics)"
            yield "NET/OFI Support for DMA-BUF registrations: false"
        else:
            yield f"NET/Plugin: Loaded net plugin {network} (v8)"
        if network == "IB":
            yield f"NET/IB : Using {self.devices(nics, link)}; OOB {address}"
        elif network == "Socket":
            yield "NET/IB : No device found."
            yield f"NET/Socket : Using [0]{address}"
        if self.since(2, 27, 3):
            yield f"Initialized NET plugin {network}"
            yield f"Assigned NET plugin {network} to comm"
        # Before 2.6 only the device list tells.
        if self.since(2, 6):
            yield f"Using network {network}"

    def devices(self, nics: Sequence[str], link: str) -> str:
        """The list of RDMA devices, up to the semicolon: from 2.12 on with relaxed ordering, from 2.30 with rails."""
        place = ":{0}:0" if self.since(2, 30) else ""
        listed = " ".join(f"[{index}]{nic}:1{place.format(index)}/{link}" for index, nic in enumerate(nics))
        return f"{listed} [RO]" if self.since(2, 12) else f"{listed} "

    def initialised(self, comm: str, end: End, ranks: int, comm_id: str) -> str:
        """The record that ``Init START`` or ``Init COMPLETE`` ends."""
        name = "ncclCommInitRank " if self.since(2, 21) else ""
        first = f"[Rank {end.rank}] " if self.since(2, 29) else ""
        device = f" nvmlDev {end.gpu}" if self.since(2, 18) or not self.since(2, 5) else ""
        bus = f" busId {end.bus}000" if self.since(2, 5) else ""
        key = f" commId {comm_id}" if self.since(2, 16) else ""
        return f"{first}{name}comm {comm} rank {end.rank} nranks {ranks} cudaDev {end.gpu}{device}{bus}{key} -"

    def shape(self, comm: str, end: End, ranks: int, nodes: int, local: int, *, mnnvl: bool) -> str | None:
        """Nodes and ranks of the communicator; nothing before 2.20.3."""
        if not self.since(2, 20, 3):
            return None
        text = f"comm {comm} rank {end.rank} nRanks {ranks} nNodes {nodes} localRanks {local} localRank {end.gpu}"
        return f"{text} MNNVL {int(mnnvl)}"

    def clique(self, number: int, size: int, rank: int) -> str:
        """The NVLink domain that a rank belongs to."""
        domain = f" nvlDomainSize {size}" if self.since(2, 30) else ""
        return f"MNNVL 1 cliqueId {number:x} cliqueSize {size} cliqueRank {rank}{domain}"

    def counts(self, channels: int) -> str:
        """How many channels there are."""
        more = f" {channels} collnet channels, 0 nvls channels," if self.since(2, 18) else ""
        return f"{channels} coll channels,{more} {channels} p2p channels, 2 p2p channels per peer"

    def ring(self, channel: int, channels: int, order: Sequence[int]) -> str:
        """The ring of a channel, which rank 0 alone prints."""
        total = f"/{channels:02d}" if self.since(2, 5) else ""
        return f"Channel {channel:02d}{total} : {' '.join(f'{rank:>3}' for rank in order)}"

    def tree(self, channel: int, children: Sequence[int], rank: int, parent: int) -> str:
        """A rank's place in the tree of a channel; before 2.8 once for each direction."""
        three = "/".join(str(child) for child in (*children, -1, -1, -1)[:3])
        up = "" if self.since(2, 8) else f"|{parent}->{rank}->{three}"
        return f"[{channel}] {three}->{rank}->{parent}{up}"

    # -- GPUDirect capability: said, and no proof -------------------------------------------------------------

    def capability(self, nic: str, index: int, end: End, *, enabled: bool) -> Iterator[str]:
        """What a rank says of a NIC and its GPU where the subsystems NET and GRAPH are on; silent from 2.30 on."""
        word = "Enabled" if enabled else "Disabled"
        if self.since(2, 13, 4):
            yield f"NET/IB : GPU Direct RDMA {word} for HCA {index} '{nic}'"
        elif not enabled:
            yield f"NET/IB : GPU Direct RDMA Disabled for HCA {index} '{nic}' (no module)"
        farthest, most = next((far, near) for release, far, near in _FARTHEST if self.since(*release))
        distance = f"distance {most} <= {most}" if enabled else f"distance {farthest} > {most}"
        gpu = f"{end.rank}" if self.since(2, 24) else f"{end.bus}000"
        hca = f"{index:x}" if self.since(2, 21) else f"{index}"
        if self.since(2, 30):
            return
        if self.since(2, 29):
            yield f"GPU Direct RDMA {word} for GPU/0-{end.bus}000 (rank {end.rank}) - NET/{index} ({distance})"
        else:
            mode = " mode Default" if self.since(2, 26) else ""
            read = f", read 0{mode}" if enabled else ""
            yield f"GPU Direct RDMA {word} for GPU {gpu} / HCA {hca} ({distance}){read}"

    # -- channels ---------------------------------------------------------------------------------------------

    def path(self, channel: int, source: End, target: End, *, between: bool) -> str:
        """The channel and its ends, ``Channel 00/0 : 0[0] -> 8[0]``; ``between`` hosts NCCL 2.4 has no brackets."""
        word = "Channel" if self.since(2, 8) else "Ring"
        connection = "/0" if self.since(2, 12) else ""
        ends = (f"{one.rank}{self._bracket(one, between=between)}" for one in (source, target))
        return f"{word} {channel:02d}{connection} : {' -> '.join(ends)}"

    def _bracket(self, end: End, *, between: bool) -> str:
        """The GPU's PCI bus from 2.5 to 2.17, else its number."""
        if self.since(2, 5) and not self.since(2, 18):
            return f"[{end.bus}000]"
        return "" if between and not self.since(2, 5) else f"[{end.gpu}]"

    def inside(self, *, nvlink: bool) -> str:
        """The path between two GPUs of a host."""
        if nvlink:
            return "P2P/CUMEM" if self.since(2, 18) else "P2P/IPC"
        if not self.since(2, 14):
            return "direct shared memory"
        return "SHM/direct" if self.since(2, 30) else "SHM/direct/direct"

    def between(self, network: str, nic: int, *, proxy: int | None, gdr: bool, pci: bool, shared: bool) -> str:
        """The path between two hosts. ``proxy`` is the rank whose NIC is taken (PXN), ``pci`` says that the
        NIC reaches the GPU over PCIe where C2C is there, too."""
        pxn = "" if proxy is None or not self.since(2, 12) else f"({proxy})"
        way = "(PCI)" if gdr and pci and self.since(2, 26) else ""
        return f"NET/{network}/{nic}{pxn}{'/GDRDMA' if gdr else ''}{way}{'/Shared' if shared else ''}"

    def connected(self, *, gdr: bool) -> Iterator[str]:
        """What a rank says once its channels stand; nothing before 2.8."""
        if self.since(2, 8):
            yield f"Connected all rings{f', use ring PXN 0 GDR {int(gdr)}' if self.since(2, 24) else ''}"
            yield "Connected all trees"

    # -- a link that goes down --------------------------------------------------------------------------------

    def port_error(self, nic: str) -> str:
        """What the NIC's own host says when a port goes down."""
        if self.since(2, 28):
            return f"NET/IB : {nic}:1 Got non-fatal async event: port error(10)"
        event = "async error event:" if self.since(2, 23) else "async event :"
        return f"NET/IB : {nic}:1 Got {event} port error" if self.since(2, 20) else f"NET/IB : Got {event} port error"

    def timeout(self, peer: str, nic: str) -> str:
        """What a rank says whose peer at an address did not answer, from 2.22 on with its own NIC."""
        status = "IBV_WC_RETRY_EXC_ERR(12)" if self.since(2, 28) else "12"
        with_status = f"status={status} opcode=0 len=0" if self.since(2, 20) else "error 12, opcode 0, len 0,"
        colon = "NET/IB:" if self.since(2, 22) else "NET/IB :"
        own = f" (Send) hca {nic}" if self.since(2, 22) else ""
        return f"{colon} Got completion from peer {peer}<40921> with {with_status} vendor err 129{own}"

    # -- warnings ---------------------------------------------------------------------------------------------

    def warning(self, place: str, function: str, text: str) -> tuple[str, str]:
        """What stands before the host's name and between the device and the end of a warning.

        NCCL breaks the line before a warning; from 2.26 on it has a date, from 2.30 on the function's name.
        """
        date = "[2026-01-02 03:04:05] " if self.since(2, 26) else ""
        source = f"{place} ({function})" if self.since(2, 30) else place
        return f"\n{date}", f"{source} NCCL WARN {text}"
