"""Channel records: the only sound evidence of which path data takes (NCCL source 2.4 to 2.30).

A record names a channel, its two ranks, for network channels the side that printed it, and the transport:
``Channel 00/0 : 0[0] -> 8[0] [send] via NET/IB/0/GDRDMA``. NCCL 2.4-2.7 call a channel ``Ring``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_RANK = rb"\d{1,9}(?:\[[0-9a-f]+\])?"
_PATH = rb"(\d{1,9}(?:/\d{1,9})? : %b -> %b(?: \[(?:send|receive)\])?) via ([^\n]+)" % (_RANK, _RANK)
CHANNEL_PATTERN = rb"(?:Channel|Ring) " + _PATH
CHANNEL = re.compile(CHANNEL_PATTERN)
COLLNET = re.compile(rb"CollNet (\d{1,9}(?:/\d{1,9})? : \d{1,9} \[(?:send|receive)\]) via ([^\n]+)")
_RING_LIST = re.compile(rb"Channel (\d{1,9})(?:/(\d{1,9}))? :((?: +\d{1,9})+) *$")
_TOPOLOGY = re.compile(rb"Ring \d{1,9} : -?\d{1,9} -> -?\d{1,9} -> -?\d{1,9} *$")
_OLD_RING = re.compile(rb"Ring \d{1,9} : +\d{1,9}(?: +\d{1,9})* *$")

_TRANSPORT = re.compile(
    rb"(?:NET/(?P<net>.+?)/(?P<nic>\d{1,9})(?:\((?P<pxn>\d{1,9})\))?(?P<gdr>/GDRDMA)?(?P<pci>\(PCI\))?(?P<shared>/Shared)?"
    rb"|COLLNET/(?P<collnet>[^/]+)/(?P<cnic>\d{1,9})(?P<cgdr>/GDRDMA)?"
    rb"|P2P/(?P<p2p>IPC|CUMEM|MNNVL|direct pointer|indirect)(?:/\d{1,9}\[[0-9a-f]+\])?(?:/\w+)*"
    rb"|(?P<shm>SHM/\w+(?:/\w+)*|direct shared memory))"
)
_TREE = re.compile(rb"\[(\d{1,9})\] (-?\d{1,9}(?:/-?\d{1,9})*)->(\d{1,9})->(-?\d{1,9}(?:/-?\d{1,9})*)(?=[ |]|$)")
_LONGEST_RECORD = 900
_ENDS = re.compile(rb"(\d{1,9})(?:/(\d{1,9}))? : (\d{1,9})(?:\[[0-9a-f]+\])? -> (\d{1,9})")
_TCP = ("socket", "fastsocket")
# Plug-ins over TCP that reach GPU memory in their own way and need not say so.
_OWN_WAY = ("gpudirecttcpx", "fastrak")


@dataclass(frozen=True)
class Transport:
    """One way a channel can take.

    ``network`` is the network's name for channels between hosts, else None; ``kind`` then names the path
    inside the host, such as P2P/CUMEM or SHM. ``pxn`` is the rank that owns the NIC where it is another's.
    """

    text: bytes
    kind: str
    network: str | None = None
    nic: int = -1
    gdr: bool = False
    pxn: bool = False
    pci: bool = False
    shared: bool = False

    @property
    def crosses_hosts(self) -> bool:
        """Whether it leaves the host: a network, or NVLink between hosts."""
        return self.network is not None or self.kind == "P2P/MNNVL"


def is_tcp(network: str) -> bool:
    """Whether a network is TCP, which has no GPUDirect to offer."""
    return network.lower().startswith(_TCP)


def may_be_silent(network: str) -> bool:
    """Whether channels over this network may use GPU memory without saying so: the word proves, silence does not."""
    return network.lower().startswith(_OWN_WAY)


def transport(text: bytes) -> Transport | None:
    """Read what follows ``via``; None where it is torn or unknown."""
    match = _TRANSPORT.fullmatch(text)
    if match is None:
        return None
    if match["net"]:
        return Transport(
            text=text,
            kind="NET",
            network=match["net"].decode("utf-8", "replace"),
            nic=int(match["nic"]),
            gdr=match["gdr"] is not None,
            pxn=match["pxn"] is not None,
            pci=match["pci"] is not None,
            shared=match["shared"] is not None,
        )
    if match["collnet"]:
        name = match["collnet"].decode("utf-8", "replace")
        return Transport(text, "COLLNET", name, int(match["cnic"]), match["cgdr"] is not None)
    if match["p2p"]:
        return Transport(text, f"P2P/{match['p2p'].decode()}")
    return Transport(text, "SHM")


@dataclass(frozen=True)
class RingList:
    """The order of ranks in the ring of one channel, of ``total`` channels; rank 0 alone prints it."""

    channel: int
    total: int | None
    order: tuple[int, ...]


def ring_list(text: bytes) -> RingList | None:
    """Read ``Channel 00/16 : 0 1 2 3``; None where it is something else."""
    match = _RING_LIST.match(text)
    if match is None:
        return None
    channel, total = int(match[1]), int(match[2]) if match[2] else None
    if total is not None and total <= channel:
        return None
    return RingList(channel, total, tuple(map(int, match[3].split())))


def tree_hops(text: bytes) -> Iterator[tuple[int, int, int]]:
    """The hops of ``Trees [0] 1/8/-1->0->-1 ...`` as (channel, source, target), both ways."""
    places = list(_TREE.finditer(text))
    if len(text) >= _LONGEST_RECORD:
        # NCCL cuts long records, maybe in the middle of a number.
        places = places[:-1]
    for place in places:
        channel, me = int(place[1]), int(place[3])
        for other in (*place[2].split(b"/"), *place[4].split(b"/")):
            if int(other) >= 0:
                yield channel, me, int(other)
                yield channel, int(other), me


def is_torn(text: bytes) -> bool:
    """Whether a record that is neither a whole channel nor a ring list was to become one."""
    if text.startswith(b"Channel"):
        return True
    if text.startswith(b"Ring "):
        return b" : " in text and _TOPOLOGY.match(text) is None and _OLD_RING.match(text) is None
    # NCCL prints no such short word of its own; what is left of a cut record does.
    return text.startswith(b"Ch") and b"Channel".startswith(text)


def ends(channel: bytes) -> tuple[int, int, int, int]:
    """Channel, connection (0 where the version prints none), source and target rank of a channel's text."""
    match = _ENDS.match(channel)
    if match is None:
        return (-1, -1, -1, -1)
    number, connection, source, target = match.groups()
    return int(number), int(connection or 0), int(source), int(target)
