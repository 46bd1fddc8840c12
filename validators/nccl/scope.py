"""How far a run reaches: on how many nodes it ran, and whether it is one run at all."""

from __future__ import annotations

from .channels import ends
from .reader import Reader
from .records import Process
from .tables import Table


def separate(reader: Reader, processes: list[Process], tables: tuple[Table, ...]) -> bool:
    """Whether no communicator joins what the log shows: N runs of one process or host each."""
    known = list(reader.communicators)
    if not known:
        return _each_alone(tables)
    if len(processes) < 2:
        return False
    if all(one.ranks == 1 for one in known):
        return True
    hosts = {host for one in known for host in one.hosts}
    alone = all(len(one.hosts) == 1 and (reader.communicators.nodes_of(one.ranks) or 1) == 1 for one in known)
    return alone and len(hosts) > 1


def _each_alone(tables: tuple[Table, ...]) -> bool:
    """Whether several processes call themselves rank 0 and no other takes part."""
    devices = [device for table in tables for device in table.devices.values()]
    first = {(one.host, one.pid) for one in devices if one.rank == 0}
    return len(first) > 1 and first == {(one.host, one.pid) for one in devices}


def nodes_of(reader: Reader, processes: list[Process], ranks: int | None) -> int | None:
    """nNodes as NCCL prints it; else the hosts, where all ranks are known to be on them."""
    printed = reader.communicators.nodes_of(ranks)
    if printed is not None or ranks is None:
        return printed
    largest = [one for one in reader.communicators if one.ranks == ranks]
    if any(len(one.members) == ranks for one in largest):
        return max(len(one.hosts) for one in largest)
    between = any(reader.transports[n].crosses_hosts for one in processes for n in one.channels.values())
    hosts = {process.host for process in processes}
    if between or len(hosts) != 1:
        return None
    # Paths inside a host prove that the ranks at their other end are on it.
    local = {rank for one in processes for channel in one.channels for rank in ends(channel)[2:]}
    return 1 if len(local) == ranks else None
