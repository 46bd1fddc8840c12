"""What a log shows, as facts: the object of ``gpuready nccl -o json``. A fact that is not shown is None."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from . import completeness, scope
from .channels import Transport, ends, is_tcp, may_be_silent
from .devices import Devices
from .errors import ErrorRecord, WarningRecord
from .reader import Reader, read_all
from .records import Process
from .sources import Source
from .tables import Table


@dataclass
class NicTraffic:
    """Channels over one NIC, and how many of them use GPUDirect RDMA."""

    send: int = 0
    receive: int = 0
    gdr_send: int = 0
    gdr_receive: int = 0

    @property
    def channels(self) -> int:
        """Channels in both directions."""
        return self.send + self.receive

    @property
    def gdr(self) -> int:
        """Those that use GPUDirect RDMA."""
        return self.gdr_send + self.gdr_receive


@dataclass
class HostTraffic:
    """Channels of one host. ``nics`` is by (network, NIC index), ``intranode`` by path inside the host.

    ``pxn`` channels take another GPU's NIC, ``pci`` ones reach the NIC over PCIe where C2C exists, ``shared`` ones
    share buffers. ``nvswitch`` says that NVSwitch joins its GPUs.
    """

    nics: dict[tuple[str, int], NicTraffic] = field(default_factory=dict)
    intranode: dict[str, int] = field(default_factory=dict)
    pxn: int = 0
    pci: int = 0
    shared: int = 0
    nvswitch: bool = False

    @property
    def net(self) -> int:
        """Channel records to other hosts."""
        return sum(nic.channels for nic in self.nics.values())

    @property
    def gdr(self) -> int:
        """Those that use GPUDirect RDMA."""
        return sum(nic.gdr for nic in self.nics.values())

    @property
    def silent(self) -> list[NicTraffic]:
        """NICs whose plug-in says of no channel whether it uses GPU memory, and need not say so."""
        return [nic for (network, _), nic in self.nics.items() if may_be_silent(network) and not nic.gdr]


@dataclass(frozen=True)
class NcclReport:
    """Everything that was read. ``gdr`` is all, partial, none, not_applicable or unproven, of what is legible.

    ``incomplete`` says why the log is no whole one; empty means complete. ``separate`` says that it holds
    several independent runs, as nccl-tests without MPI makes them. ``timeouts`` counts by node how many RDMA
    timeouts name it, on either side; ``suspect`` is the node that most of them name, None where there is no such.
    """

    versions: tuple[str, ...]
    versions_by_host: dict[str, tuple[str, ...]]
    ranks: int | None
    nodes: int | None
    hosts: tuple[str, ...]
    networks: tuple[str, ...]
    networks_by_host: dict[str, tuple[str, ...]]
    networks_by_process: dict[str, tuple[str, ...]]
    traffic: dict[str, HostTraffic]
    gdr: str
    separate: bool
    incomplete: tuple[str, ...]
    devices: Devices
    tables: tuple[Table, ...]
    errors: tuple[ErrorRecord, ...]
    warnings: tuple[WarningRecord, ...]
    timeouts: dict[str, int]
    suspect: str | None
    torn: int
    lines: int

    @property
    def complete(self) -> bool:
        """Whether every rank was seen to initialise and nothing that counts is torn or missing."""
        return not self.incomplete

    @property
    def net_channels(self) -> int:
        """Channel records between hosts."""
        return sum(one.net for one in self.traffic.values())

    @property
    def gdr_channels(self) -> int:
        """Those of them that use GPUDirect RDMA."""
        return sum(one.gdr for one in self.traffic.values())

    @property
    def benchmark(self) -> Table | None:
        """The first table that holds a result."""
        return next((one for one in self.tables if one.rows or one.average is not None), None)

    def rails(self, host: str) -> tuple[int, ...]:
        """The NICs that a host's channels use, sockets aside."""
        return tuple(sorted({nic for network, nic in self.traffic[host].nics if not is_tcp(network)}))

    def idle_rails(self, host: str) -> tuple[int, ...] | None:
        """NICs that a host lists and does not use; None where the list is unknown or NICs were merged."""
        nics = self.devices.nics.get(host)
        if nics is None or host in self.devices.merged:
            return None
        used = self.rails(host)
        return tuple(nic.index for nic in nics if nic.index not in used)

    def to_json(self) -> dict[str, Any]:
        """The ``nccl`` object of the JSON report."""
        between = self.net_channels
        intranode: dict[str, int] = {}
        for one in self.traffic.values():
            for kind, count in one.intranode.items():
                intranode[kind] = intranode.get(kind, 0) + count
        return {
            "versions": list(self.versions),
            "versions_by_host": {host: list(names) for host, names in self.versions_by_host.items()},
            "complete": self.complete,
            "incomplete_because": list(self.incomplete),
            "ranks": self.ranks,
            "nodes": self.nodes,
            "hosts": list(self.hosts),
            "networks": list(self.networks),
            "networks_by_host": {host: list(names) for host, names in self.networks_by_host.items()},
            "networks_by_process": {name: list(names) for name, names in self.networks_by_process.items()},
            "transport": {
                "net_channels": between or None,
                "gdr_channels": self.gdr_channels if between else None,
                "gdr": self.gdr,
                "gdr_level": self.devices.value("NCCL_NET_GDR_LEVEL"),
                "pxn_channels": sum(one.pxn for one in self.traffic.values()) if between else None,
                "pci_channels": sum(one.pci for one in self.traffic.values()) if between else None,
                "shared_channels": sum(one.shared for one in self.traffic.values()) if between else None,
                "by_host": {h: {"net": one.net, "gdr": one.gdr} for h, one in self.traffic.items() if one.net},
                "by_nic": {
                    f"{host}/{network}/{nic}": {
                        "send": count.send,
                        "receive": count.receive,
                        "gdr": count.gdr,
                        "gdr_send": count.gdr_send,
                        "gdr_receive": count.gdr_receive,
                    }
                    for host, one in self.traffic.items()
                    for (network, nic), count in sorted(one.nics.items())
                },
                "intranode": dict(sorted(intranode.items())),
            },
            "nics": {
                host: [{"index": nic.index, "name": nic.name, "link": nic.link} for nic in nics]
                for host, nics in sorted(self.devices.nics.items())
            },
            "rails": {
                host: {"used": list(self.rails(host)), "idle": _list(self.idle_rails(host))}
                for host, one in self.traffic.items()
                if one.net
            },
            "benchmark": _benchmark(self.benchmark) if self.benchmark else None,
            "other_benchmarks": [
                _benchmark(one)
                for one in self.tables
                if one is not self.benchmark and (one.rows or one.average is not None)
            ],
            "errors": [
                {"class": e.name, "count": e.count, "host": e.host, "peer": e.peer, "hca": e.hca, "text": e.text}
                for e in self.errors
            ],
            "timeouts": {"by_node": self.timeouts, "suspect": self.suspect} if self.timeouts else None,
            "warnings": [{"count": one.count, "host": one.host, "text": one.text} for one in self.warnings],
            "environment": {name: self.devices.value(name) for name in sorted(self.devices.environment)},
            "torn_lines": self.torn,
            "lines": self.lines,
        }


def read(sources: Iterable[Source]) -> NcclReport:
    """Read the logs of one run: files, streams, or lists of lines; together they are one log.

    Raises LogError where a source cannot be read. Memory grows with ranks and channels only.
    """
    return build(read_all(sources))


def build(reader: Reader) -> NcclReport:
    """Put together what a reader saw."""
    strays = len(reader.processes.repair()) + _rejoin(reader)
    processes = sorted(reader.processes, key=lambda one: (one.host, one.pid))
    tables = _tables([table for part in reader.tables for table in part.tables], reader.documents)
    hosts = _hosts(processes, tables)
    traffic = {host: HostTraffic() for host in hosts}
    for process in processes:
        _count(process, reader.transports, traffic[process.host])
    networks_by_host: dict[str, set[str]] = {}
    for process in processes:
        if process.networks:
            networks_by_host.setdefault(process.host, set()).update(process.networks)
    by_process = {f"{one.host}:{one.pid}": tuple(sorted(one.networks)) for one in processes if one.networks}
    ranks = reader.communicators.ranks or _table_ranks(tables)
    separate = scope.separate(reader, processes, tables)
    nodes = scope.nodes_of(reader, processes, ranks)
    errors = tuple(reader.errors.ranked(reader.devices.host_of))
    timeouts, suspect = reader.errors.timeouts(errors, hosts)
    return NcclReport(
        versions=_versions(reader),
        versions_by_host=_versions_by_host(reader),
        ranks=ranks,
        nodes=nodes,
        hosts=hosts,
        networks=tuple(sorted({name for names in networks_by_host.values() for name in names})),
        networks_by_host={host: tuple(sorted(names)) for host, names in networks_by_host.items()},
        networks_by_process=by_process,
        traffic=traffic,
        gdr=_gdr(traffic, nodes, separate, reader),
        separate=separate,
        incomplete=tuple(completeness.gaps(reader, processes, tables, strays)),
        devices=reader.devices,
        tables=tables,
        errors=errors,
        warnings=tuple(reader.errors.warnings()),
        timeouts=timeouts,
        suspect=suspect,
        torn=reader.torn,
        lines=reader.lines,
    )


def _rejoin(reader: Reader) -> int:
    """Give channels without a head to the processes of their ranks; returns how many found none."""
    lost = 0
    for channel, number in reader.headless:
        _, _, source, target = ends(channel)
        process = reader.communicators.process_of(target if channel.endswith(b"[receive]") else source)
        if process is None:
            lost += 1
        else:
            reader.connect(process, channel, number)
    return lost


def _count(process: Process, transports: list[Transport], into: HostTraffic) -> None:
    for channel, number in process.channels.items():
        via = transports[number]
        if via.network is None:
            into.intranode[via.kind] = into.intranode.get(via.kind, 0) + 1
            continue
        into.pxn += via.pxn
        into.pci += via.pci
        into.shared += via.shared
        nic = into.nics.setdefault((via.network, via.nic), NicTraffic())
        if channel.endswith(b"[receive]"):
            nic.receive += 1
            nic.gdr_receive += via.gdr
        else:
            nic.send += 1
            nic.gdr_send += via.gdr
    for number in process.more_transports:
        via = transports[number]
        if via.network is not None:
            into.nics.setdefault((via.network, via.nic), NicTraffic())
    into.nvswitch |= process.nvswitch
    if process.nvls:
        into.intranode["NVLS"] = into.intranode.get("NVLS", 0) + 1


def _hosts(processes: list[Process], tables: tuple[Table, ...]) -> tuple[str, ...]:
    named = {device.host for table in tables for device in table.devices.values()}
    return tuple(sorted(named | {process.host for process in processes}))


def _table_ranks(tables: tuple[Table, ...]) -> int | None:
    return next((table.ranks for table in tables if table.ranks), None)


def _versions(reader: Reader) -> tuple[str, ...]:
    """What NCCL prints of itself, which is longer; what nccl-tests says of it where that is something else."""
    printed = set(reader.versions)
    other = {v for v in reader.library_versions if not any(p == v or p.startswith(f"{v}+") for p in printed)}
    return tuple(sorted(printed | other))


def _versions_by_host(reader: Reader) -> dict[str, tuple[str, ...]]:
    """As far as each process says it, which is so from NCCL 2.22 on."""
    hosts = sorted({host for named in reader.versions.values() for host in named})
    return {
        host: tuple(sorted(version for version, named in reader.versions.items() if host in named)) for host in hosts
    }


def _tables(printed: list[Table], documents: list[Table]) -> tuple[Table, ...]:
    """All tables; one that nccl-tests both printed and wrote as JSON once, in the order of printing."""
    rest = list(documents)
    tables = []
    for table in printed:
        twin = next((one for one in rest if _same_run(table, one)), None)
        if twin is not None:
            rest.remove(twin)
        if twin is None or not twin.finished:
            tables.append(table)
            continue
        worse = max(table.out_of_bounds or 0, twin.out_of_bounds or 0)
        name = table.collective or twin.collective
        tables.append(replace(twin, collective=name, devices=table.devices, gpus_each=1, out_of_bounds=worse))
    return (*tables, *rest)


def _same_run(printed: Table, document: Table) -> bool:
    """Whether the processes are the same, which run one benchmark each."""
    return bool(document.devices) and document.devices.keys() <= printed.devices.keys()


def _gdr(traffic: dict[str, HostTraffic], nodes: int | None, separate: bool, reader: Reader) -> str:
    net = sum(one.net for one in traffic.values())
    gdr = sum(one.gdr for one in traffic.values())
    if net:
        silent = sum(nic.channels for one in traffic.values() for nic in one.silent)
        return "all" if gdr == net else "unproven" if gdr + silent == net else "partial" if gdr else "none"
    if not separate and (nodes == 1 or reader.communicators.one_nvlink_domain):
        return "not_applicable"
    return "unproven"


def _benchmark(table: Table) -> dict[str, Any]:
    largest = table.largest
    return {
        "collective": table.collective,
        "rows": [
            {
                "bytes": row.bytes,
                "time_us": row.time_us,
                "algbw_gbytes_s": row.algbw,
                "busbw_gbytes_s": row.busbw,
                "wrong": row.wrong,
            }
            for _, row in sorted(table.rows.items())
        ],
        "max_size_busbw_gbytes_s": largest.busbw if largest else None,
        "average_busbw_gbytes_s": table.average,
        "out_of_bounds": table.out_of_bounds,
    }


def _list(numbers: tuple[int, ...] | None) -> list[int] | None:
    return None if numbers is None else list(numbers)
