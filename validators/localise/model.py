"""The words of localisation: nodes, runs, what a run measured, and what follows from all of them.

Units: bandwidth is GB/s (10^9 bytes per second) of bus bandwidth, as nccl-tests prints it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["single", "pair", "rail", "path"]
Cause = Literal["node", "rail", "leaf", "path", "flaky", "healthy", "undecided"]
ACCUSATIONS: tuple[Cause, ...] = ("node", "rail", "leaf", "path", "flaky")


@dataclass(frozen=True)
class Node:
    """A node of the search. ``leaf`` names the switch, rack or pod that it hangs on; None where unknown.

    ``rails`` is how many NICs carry NCCL traffic. With fewer than two of them no run is split by rail.
    """

    name: str
    leaf: str | None = None
    rails: int = 0


@dataclass(frozen=True)
class Vote:
    """A log or a counter names a node: a missing rank, an IB error's peer, no GPUDirect. A hint, never proof."""

    node: str
    reason: str
    rail: int | None = None


@dataclass(frozen=True)
class Run:
    """One all-reduce to run. ``nodes`` of the runs of one ``round`` and ``wave`` are disjoint: run these at once.

    ``kind`` single: all GPUs of one node. pair: all GPUs of two nodes. rail and path: each rail of two nodes
    on its own and all at once, inside a leaf and across leaves; with ``rails`` empty, as pair. Measure
    ``repeats`` times in the same pods.
    """

    id: str
    kind: Kind
    nodes: tuple[str, ...]
    rails: tuple[int, ...]
    round: int
    wave: int
    repeats: int


@dataclass(frozen=True)
class Outcome:
    """What a run measured: one figure for each repetition, by rail where the run is split by rail.

    ``failed`` means that NCCL failed, hung or computed wrong results. ``gdr`` is False where GPUDirect RDMA is
    promised and was not used; such a run counts as failed. An outcome with no figure that has not failed says
    nothing: the run did not take place. ``votes`` are what its own log hints at.
    """

    busbw_gbytes_s: tuple[float, ...] = ()
    per_rail: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    failed: bool = False
    gdr: bool | None = None
    votes: tuple[Vote, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """What is known of a node, a leaf, or the path between two of them, and the ``runs`` (ids) that say so.

    node: the whole node. rail: the NIC, cable or port of ``rails`` on it. flaky: slow now and then. leaf: the
    links or the switch of a leaf, of ``rails`` where they are named. path: between two leaves, or two nodes
    where leaves are unknown. ``confidence``, 0 to 1, ranks verdicts; it is no probability.
    """

    cause: Cause
    nodes: tuple[str, ...]
    confidence: float
    runs: tuple[str, ...]
    reason: str
    rails: tuple[int, ...] = ()
    leaves: tuple[str, ...] = ()

    @property
    def accuses(self) -> bool:
        """Whether something is at fault."""
        return self.cause in ACCUSATIONS

    @property
    def subject(self) -> str:
        """Who, in a few words: ``gpu-7 rail 3``."""
        who = " - ".join(self.leaves or self.nodes)
        if not self.rails:
            return who
        return f"{who} rail{'s' if len(self.rails) > 1 else ''} {','.join(str(rail) for rail in self.rails)}"

    def to_json(self) -> dict[str, Any]:
        """The verdict as it stands in reports."""
        return {
            "cause": self.cause,
            "subject": self.subject,
            "nodes": list(self.nodes),
            "rails": list(self.rails),
            "leaves": list(self.leaves),
            "confidence": self.confidence,
            "runs": list(self.runs),
            "reason": self.reason,
        }
