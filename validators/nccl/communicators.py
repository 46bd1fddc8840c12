"""Communicators: how many ranks each has, and which of them were seen to start and to finish initialising."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from .records import Process

_INIT = re.compile(
    rb"comm \S+ rank (\d{1,9}) nranks (\d{1,9}) cudaDev (-?\d{1,9})(?: nvmlDev -?\d{1,9})?(?: busId [0-9a-f]+)?"
    rb"(?: commId (\S+))?.*- ?Init (START|COMPLETE)"
)
_SHAPE = re.compile(
    rb"comm \S+ rank (\d{1,9}) nRanks (\d{1,9}) nNodes (\d{1,9}) localRanks (\d{1,9}) localRank \d{1,9} MNNVL (\d)"
)
_CLIQUE = re.compile(rb"MNNVL 1 cliqueId \S+ cliqueSize (\d{1,9})")
# A torn number must not ask for a bit mask of astronomical size.
_MOST_RANKS = 1 << 20


@dataclass
class Communicator:
    """One communicator of ``ranks`` ranks: the processes behind those seen, a bit for each initialised one."""

    ranks: int
    complete: int = 0
    members: dict[int, Process] = field(default_factory=dict)

    @property
    def hosts(self) -> set[str]:
        """The hosts of its members."""
        return {process.host for process in self.members.values()}

    def missing(self) -> int:
        """How many ranks were not seen to finish initialising."""
        return self.ranks - self.complete.bit_count()


class Communicators:
    """All communicators of a log, by id; without an id (before NCCL 2.16), by size."""

    def __init__(self) -> None:
        self._known: dict[tuple[bytes, int], Communicator] = {}
        self._nodes: dict[int, int] = {}
        self._cliques: set[int] = set()
        self._mnnvl: set[int] = set()

    def __iter__(self) -> Iterator[Communicator]:
        return iter(self._known.values())

    def __len__(self) -> int:
        return len(self._known)

    def initialised(self, text: bytes, process: Process) -> bool:
        """Read an Init START or Init COMPLETE record; False where it is none."""
        match = _INIT.search(text)
        if match is None:
            return False
        rank, ranks = int(match[1]), int(match[2])
        if rank >= ranks or ranks > _MOST_RANKS:
            return False
        one = self._known.setdefault((match[4] or b"", ranks), Communicator(ranks))
        one.members[rank] = process
        if match[5] == b"COMPLETE":
            one.complete |= 1 << rank
        return True

    def shape(self, text: bytes) -> bool:
        """Read the record with nNodes and MNNVL (NCCL 2.20 on); False where it is none."""
        match = _SHAPE.match(text)
        if match is None:
            return False
        ranks, nodes = int(match[2]), int(match[3])
        self._nodes[ranks] = max(nodes, self._nodes.get(ranks, 0))
        if match[5] != b"0":
            self._mnnvl.add(ranks)
        return True

    def clique(self, text: bytes) -> None:
        """Read the size of an NVLink domain that spans hosts."""
        match = _CLIQUE.match(text)
        if match:
            self._cliques.add(int(match[1]))

    def process_of(self, rank: int) -> Process | None:
        """The process of a rank, as far as one communicator alone can have it."""
        if len(self._known) != 1:
            return None
        return next(iter(self)).members.get(rank)

    @property
    def ranks(self) -> int | None:
        """Ranks of the largest communicator, None where the log shows none."""
        return max((one.ranks for one in self), default=max(self._nodes, default=None))

    def nodes_of(self, ranks: int | None) -> int | None:
        """nNodes of the communicators of that size, None where this NCCL does not print it."""
        return self._nodes.get(ranks or 0)

    @property
    def one_nvlink_domain(self) -> bool:
        """Whether NVLink joins all ranks of the largest communicator, across hosts."""
        return self.ranks in self._mnnvl and self.ranks in self._cliques
