"""What a log lacks. Only a log that lacks nothing can prove anything: silence is no evidence.

A channel between hosts is printed by both sides, a ring by every rank, a table ends with two lines; where one
is missing, part of the log is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from .channels import RingList, ends, tree_hops
from .communicators import Communicator
from .reader import Reader
from .records import Process
from .tables import Table

_SIDES = (b" [send]", b" [receive]")


def gaps(reader: Reader, processes: list[Process], tables: tuple[Table, ...], strays: int) -> Iterator[str]:
    """Reasons why the log is not complete, with numbers. ``strays`` counts records of nobody known."""
    yield from _ranks(reader)
    yield from _silent(reader, processes)
    yield from _unpaired(reader, processes)
    if strays + reader.lost:
        yield f"{strays + reader.lost} records are torn or have lost the name of their process"
    torn = sum(not _has_twin(process, text, reader) for process, text in reader.torn_records)
    if torn:
        yield f"{torn} channel records are torn"
    yield from _hops(reader, processes)
    if any(not table.finished for table in tables):
        yield "a benchmark table has no end"
    if rows := sum(table.torn_rows for table in tables):
        yield f"{rows} rows of a benchmark table are torn"
    if reader.failed_calls and not len(reader.errors):
        codes = ", ".join(map(str, sorted(reader.failed_calls)))
        yield f"calls inside NCCL returned {codes} and no message says why"


def _ranks(reader: Reader) -> Iterator[str]:
    if not len(reader.communicators):
        yield "the log shows no communicator"
    missing = sum(one.missing() for one in reader.communicators)
    if missing:
        yield f"{missing} ranks were not seen to finish initialising"


def _silent(reader: Reader, processes: list[Process]) -> Iterator[str]:
    """Processes that initialised and show no channel, where there must be some."""
    if (reader.communicators.ranks or 0) < 2:
        return
    if not any(process.channels for process in processes):
        ran = any(table.rows for result in reader.tables for table in result.tables)
        if reader.rings_connected or reader.trees_connected or ran:
            yield "no process shows a channel, though they were connected"
        return
    silent = [one for one in processes if one.in_communicator and not one.channels]
    if silent:
        yield f"{len(silent)} processes show no channel (such as {silent[0].host}:{silent[0].pid})"


def _unpaired(reader: Reader, processes: list[Process]) -> Iterator[str]:
    """Network channels of which one side alone is there."""
    balance: Counter[bytes] = Counter()
    for process in processes:
        for channel, number in process.channels.items():
            via = reader.transports[number]
            if via.network is None or via.kind != "NET":
                continue
            if channel.endswith(_SIDES[0]):
                balance[channel[: -len(_SIDES[0])]] += 1
            elif channel.endswith(_SIDES[1]):
                balance[channel[: -len(_SIDES[1])]] -= 1
    lonely = sum(count != 0 for count in balance.values())
    if lonely:
        yield f"{lonely} channels between hosts are shown by one side only"


def _hops(reader: Reader, processes: list[Process]) -> Iterator[str]:
    """Hops of printed rings and trees without a channel record; told apart only while there is one communicator."""
    several = [one for one in reader.communicators if one.ranks > 1]
    in_rings = bool(reader.ring_lists) and reader.rings_connected
    if len(several) != 1 or not (in_rings or reader.trees_connected):
        return
    there = {
        (number, source, target)
        for process in processes
        for channel in process.channels
        for number, _, source, target in (ends(channel),)
    }
    if in_rings:
        yield from _rings(list(reader.ring_lists.values()), several[0].ranks, there)
    if reader.trees_connected:
        yield from _trees(reader, several[0], there)


def _rings(lists: list[RingList], ranks: int, there: set[tuple[int, int, int]]) -> Iterator[str]:
    total = lists[0].total or len(lists)
    if len(lists) < total or any(len(one.order) != ranks for one in lists):
        yield "the list of rings is not whole"
        return
    missing = sum(
        (one.channel, source, target) not in there
        for one in lists
        for source, target in zip(one.order, one.order[1:] + one.order[:1], strict=True)
    )
    if missing:
        yield f"{missing} hops of the rings have no channel record"


def _trees(reader: Reader, communicator: Communicator, there: set[tuple[int, int, int]]) -> Iterator[str]:
    """Inside a host a path may be reused; between hosts each hop has its record."""
    hosts = {rank: process.host for rank, process in communicator.members.items()}
    hops = {hop for text in reader.trees for hop in tree_hops(text)}
    missing = sum(hop not in there and hosts.get(hop[1]) != hosts.get(hop[2]) for hop in hops)
    if missing:
        yield f"{missing} hops of the trees have no channel record"


def _has_twin(process: Process, text: bytes, reader: Reader) -> bool:
    """Whether a torn record is the beginning of a whole one of the same process."""
    _, space, start = text.partition(b" ")
    if not space or not start:
        return False
    return any(
        (b"%b via %b" % (channel, reader.transports[number].text)).startswith(start)
        for channel, number in process.channels.items()
    )
