"""Judges a report: what is proven, what is wrong, what stays open."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from typing import NamedTuple

from .channels import is_tcp
from .errors import ErrorRecord
from .gdr import why_no_gdr
from .report import NcclReport

_ORDER = ("pass", "skip", "warn", "unproven", "error", "fail")
_LOG = "log"


@dataclass(frozen=True)
class Finding:
    """One judgement. ``status`` is pass, skip, warn, unproven or fail; ``kind`` and ``name`` say about what.

    ``cause`` is constant text, ``detail`` holds the numbers, ``reason`` is for machines.
    """

    check: str
    status: str
    kind: str
    name: str
    reason: str
    cause: str
    detail: str = ""
    expected: str | None = None
    observed: str | None = None
    fix: str = ""
    avoid: str = ""
    required: bool = True


class Verdict(NamedTuple):
    """The whole judgement: ``status`` is pass, fail or incomplete, ``exit_code`` 0, 1 or 2, worst findings first."""

    status: str
    exit_code: int
    findings: tuple[Finding, ...]


def verdict(report: NcclReport, rails: int | None = None, network: str | None = None) -> Verdict:
    """Judge a report.

    Fail: errors, wrong results, channels without GPUDirect RDMA, GPUs behind NVSwitch that exchange data by way of
    host memory, fewer than ``rails`` NICs used on a host, a network other than ``network``. Incomplete: nothing fails,
    but the transport is not proven or the log is not whole. GPUDirect does not apply inside one node or one NVLink
    domain.
    """
    found = [
        *_errors(report),
        *_transport(report),
        *_inside(report),
        *_network(report, network),
        *_rails(report, rails),
        *_results(report),
        *_complete(report),
        *_versions(report),
        *_warnings(report),
    ]
    ranked = tuple(sorted(found, key=lambda one: -_ORDER.index(one.status)))
    if any(one.status == "fail" for one in ranked):
        return Verdict("fail", 1, ranked)
    if any(one.status == "unproven" for one in ranked):
        return Verdict("incomplete", 2, ranked)
    return Verdict("pass", 0, ranked)


# Levels at which GPUDirect RDMA is used whatever the distance of GPU and NIC.
DECREES = ("SYS", "4", "5")


def forced_levels(report: NcclReport) -> list[str]:
    """The settings by which GPUDirect RDMA is used whatever the distance of GPU and NIC: it then proves little."""
    return [level for level in report.devices.value("NCCL_NET_GDR_LEVEL") if level.upper() in DECREES]


class Accusation(NamedTuple):
    """Errors of one class that speak of one host, or of none (None)."""

    host: str | None
    errors: tuple[ErrorRecord, ...]

    @property
    def first(self) -> ErrorRecord:
        """The error that stands for all."""
        return self.errors[0]

    @property
    def reason(self) -> str:
        """The class, as a reason for machines."""
        return "".join(part.capitalize() for part in self.first.name.split("_"))

    def detail(self, name: Callable[[str], str] = str) -> str:
        """How often, where, and the first one's text. ``name`` says what a host is called."""
        by, peers = ({name(host) for one in self.errors if (host := getattr(one, what))} for what in ("host", "peer"))
        nics = {one.hca for one in self.errors if one.hca}
        places = [
            f"{word}{', '.join(sorted(found)[:8])}"
            for word, found in (("on ", by), ("peer ", peers), ("", nics))
            if found
        ]
        total = sum(one.count for one in self.errors)
        return " ".join((f"{self.first.name} x{total}", *places)) + f": {self.first.text}"


def accusations(report: NcclReport) -> list[Accusation]:
    """The errors of a log by class and by the host that they speak of, root causes first."""
    groups: dict[tuple[str, str | None], list[ErrorRecord]] = {}
    failed = {one.host for one in report.errors if one.local and one.host}
    for one in report.errors:
        groups.setdefault((one.name, _accused(one, report, failed)), []).append(one)
    return [Accusation(host, tuple(errors)) for (_, host), errors in groups.items()]


def _errors(report: NcclReport) -> Iterator[Finding]:
    if not report.errors:
        yield Finding("nccl.errors", "pass", "object", _LOG, "NoErrors", "NCCL logged no error")
    times: Counter[str] = Counter()
    for one in accusations(report):
        known, name = one.first.error_class, one.host or _LOG
        times[name] += 1
        yield Finding(
            "nccl.errors",
            "fail",
            "node" if one.host else "object",
            f"{name} #{times[name]}" if times[name] > 1 else name,
            one.reason,
            known.meaning,
            one.detail(),
            fix=known.fix,
        )


def _accused(error: ErrorRecord, report: NcclReport, failed: Set[str]) -> str | None:
    """The host that an error speaks of: the peer where it names one, else the one that reports it.

    Both sides of a dead link accuse each other. There it is the one that reports an error of its own (``failed``),
    else the one that most of them name.
    """
    if error.name == "ib_completion_12":
        guilty = {error.host, error.peer} & failed
        if len(guilty) == 1:
            return guilty.pop()
        if report.suspect in (error.host, error.peer):
            return report.suspect
    return error.peer if error.peer in report.hosts else error.host


def _transport(report: NcclReport) -> Iterator[Finding]:
    check = "nccl.transport"
    if report.gdr == "not_applicable":
        domain = "one node" if report.nodes == 1 else "one NVLink domain; to test the NICs, set NCCL_MNNVL_ENABLE=0"
        yield Finding(check, "pass", "object", _LOG, "NotApplicable", "no traffic between nodes to judge", domain)
        return
    if report.gdr == "unproven" and not report.net_channels:
        yield _unproven(report)
        return
    reasons = why_no_gdr(report)
    why = ""
    if reasons:
        said = "" if reasons[0].reason == "NotShown" else f"Likely: {reasons[0].text} ({reasons[0].evidence}). "
        why = said + reasons[0].next
    failed = False
    for host, one in report.traffic.items():
        if not one.net:
            continue
        finding = _host(report, host, why)
        failed = failed or finding.status == "fail"
        yield finding
    if not failed and report.gdr in ("none", "partial"):
        detail = f"{report.gdr_channels} of {report.net_channels} channels"
        cause = "channels run without GPUDirect RDMA"
        yield Finding(check, "fail", "object", _LOG, "NotDirect", cause, detail, fix=why)


def _unproven(report: NcclReport) -> Finding:
    if report.separate:
        cause = "the log holds separate runs of single nodes or processes"
        fix = "Use nccl-tests built with MPI=1, so that one communicator spans all ranks."
        return Finding("nccl.transport", "unproven", "object", _LOG, "SeparateRuns", cause, fix=fix)
    return Finding(
        "nccl.transport",
        "unproven",
        "object",
        _LOG,
        "NoNetChannel",
        "the log shows no channel between nodes",
        f"{report.lines} lines, {len(report.hosts)} hosts",
        fix="Run with NCCL_DEBUG=INFO and keep the output of every rank; warnings alone prove nothing.",
    )


def _host(report: NcclReport, host: str, why: str) -> Finding:
    """One host's channels. Those that a peer's fall-back to TCP drags along are the peer's."""
    traffic = report.traffic[host]
    named = report.networks_by_host.get(host) or tuple(sorted({network for network, _ in traffic.nics}))
    own = {key: nic for key, nic in traffic.nics.items() if not is_tcp(key[0]) or all(map(is_tcp, named))}
    channels, direct = sum(nic.channels for nic in own.values()), sum(nic.gdr for nic in own.values())
    detail = f"{direct} of {channels} channels over {', '.join(named)}"
    if any(map(is_tcp, named)):
        status, reason, cause = "fail", "TcpFallback", "NCCL fell back to TCP sockets"
        detail += _which(report, host)
    elif not channels:
        status, reason, cause = "unproven", "OnlyPeersTcp", "all channels follow a peer's fall-back to TCP"
    elif not direct and traffic.silent:
        status, reason = "unproven", "PluginSilent"
        cause = "the network's plug-in does not say whether it uses GPU memory"
    elif not direct:
        status, reason, cause = "fail", "NoGpuDirect", "RDMA runs without GPUDirect"
    elif direct < channels:
        status, reason, cause = "fail", "PartlyGpuDirect", "some channels run without GPUDirect RDMA"
    else:
        status, reason, cause = "pass", "GpuDirect", "every channel uses GPUDirect RDMA"
        if forced := forced_levels(report):
            detail += f"; by decree, since NCCL_NET_GDR_LEVEL={forced[0]} is set"
    return Finding(
        "nccl.transport",
        status,
        "node",
        host,
        reason,
        cause,
        detail,
        expected=str(channels),
        observed=str(direct),
        fix=why if status == "fail" else "",
        avoid="Do not set NCCL_NET_GDR_LEVEL=SYS to make the word appear." if status == "fail" else "",
    )


def _which(report: NcclReport, host: str) -> str:
    """Which processes of a host are on TCP, where others are not."""
    own = {name: nets for name, nets in report.networks_by_process.items() if name.rpartition(":")[0] == host}
    lame = [name.rpartition(":")[2] for name, nets in own.items() if any(map(is_tcp, nets))]
    return f"; processes {', '.join(lame[:8])}" if lame and len(lame) < len(own) else ""


def _inside(report: NcclReport) -> Iterator[Finding]:
    """Where NVSwitch joins all GPUs of a host, none needs host memory or a third GPU in between."""
    for host, one in report.traffic.items():
        around = {kind: one.intranode[kind] for kind in ("SHM", "P2P/indirect") if kind in one.intranode}
        if one.nvswitch and around:
            yield Finding(
                "nccl.inside",
                "fail",
                "node",
                host,
                "NoPeerAccess",
                "GPUs behind NVSwitch do not exchange data directly",
                ", ".join(f"{count} channels over {kind}" for kind, count in around.items()),
                fix="Look at NCCL_P2P_DISABLE, PCIe ACS, MIG, and whether the ranks share IPC and PID namespaces.",
            )


def _network(report: NcclReport, network: str | None) -> Iterator[Finding]:
    if network is None:
        return
    seen = {host: names for host, names in report.networks_by_host.items() if names}
    for host, traffic in report.traffic.items():
        if host not in seen and traffic.nics:
            seen[host] = tuple(sorted({name for name, _ in traffic.nics}))
    if not seen:
        cause = "the log names no network"
        yield Finding("nccl.network", "unproven", "object", _LOG, "NoNetwork", cause, expected=network)
    for host, names in seen.items():
        right = all(name == network or name.startswith(f"{network}_") for name in names)
        yield Finding(
            "nccl.network",
            "pass" if right else "fail",
            "node",
            host,
            "AsAsked" if right else "OtherNetwork",
            "NCCL uses the network asked for" if right else "NCCL uses another network than asked for",
            expected=network,
            observed=", ".join(names),
            fix="" if right else "Check that the plug-in is in the image and the devices are in the pod.",
        )


def _rails(report: NcclReport, rails: int | None) -> Iterator[Finding]:
    for host in sorted(report.devices.rails_mismatched):
        yield Finding(
            "nccl.rails",
            "warn",
            "node",
            f"{host} (order)",
            "RailsMismatched",
            "NIC order or cabling differs from the peers'",
            fix="Compare the order of the NICs on these nodes, and the cables.",
        )
    yield from _lists(report)
    if rails is None:
        yield from _lopsided(report)
        return
    hosts = [host for host, one in report.traffic.items() if one.net]
    if not hosts:
        cause = "no channel between nodes shows a NIC"
        yield Finding("nccl.rails", "unproven", "object", _LOG, "NoRails", cause, expected=str(rails))
    for host in hosts:
        used = report.rails(host)
        idle = report.idle_rails(host)
        short = len(used) < rails
        # What a torn log does not show may have been there.
        status = ("fail" if report.complete else "unproven") if short else "pass"
        yield Finding(
            "nccl.rails",
            status,
            "node",
            host,
            "FewerRails" if short else "AllRails",
            "channels use fewer NICs than expected" if short else "channels use every NIC",
            f"used {list(used)}" + (f", idle {list(idle)}" if idle else ""),
            expected=str(rails),
            observed=str(len(used)),
            fix="Check the missing NIC's port, NCCL_IB_HCA, and the list after NET/IB : Using." if short else "",
        )


def _lists(report: NcclReport) -> Iterator[Finding]:
    """Hosts whose list of NICs is not that of most others, in number or kind of link."""
    kinds = {host: (len(nics), *sorted({nic.link for nic in nics})) for host, nics in report.devices.nics.items()}
    usual = Counter(kinds.values()).most_common(1)
    for host in sorted(host for host, kind in kinds.items() if kind != usual[0][0]):
        yield Finding(
            "nccl.rails",
            "warn",
            "node",
            f"{host} (list)",
            "ListsDiffer",
            "a host lists other NICs than its peers",
            ", ".join(f"{nic.name} {nic.link}" for nic in report.devices.nics[host]) or "none",
            fix="Compare the NICs of these nodes; keep those for storage or management out with NCCL_IB_HCA.",
        )


def _lopsided(report: NcclReport) -> Iterator[Finding]:
    """Hosts that use fewer NICs than others and leave some idle."""
    used = {host: report.rails(host) for host, one in report.traffic.items() if one.net}
    most = max(map(len, used.values()), default=0)
    for host, rails in used.items():
        # What a torn log does not show may have been there.
        idle = report.idle_rails(host) if report.complete and len(rails) < most else None
        if idle:
            yield Finding(
                "nccl.rails",
                "warn",
                "node",
                host,
                "IdleRails",
                "a host leaves NICs idle and uses fewer than others",
                f"idle {list(idle)}, used {list(rails)}; others use {most}",
                fix="Look at the idle NIC's port and at NCCL_IB_HCA; --rails N makes it a failure.",
            )


def _results(report: NcclReport) -> Iterator[Finding]:
    check = "nccl.correct"
    wrong = sum(one.wrong for one in report.tables)
    if wrong:
        yield Finding(
            check,
            "fail",
            "object",
            _LOG,
            "WrongResults",
            "the collective returned wrong results",
            f"{wrong} elements",
            expected="0",
            observed=str(wrong),
            fix="Take the nodes out and run dcgmi diag -r 3 on each.",
            avoid="Do not train on these nodes.",
        )
    elif any(one.validated for one in report.tables):
        yield Finding(check, "pass", "object", _LOG, "Correct", "no wrong element")
    else:
        yield Finding(check, "skip", "object", _LOG, "NoTable", "the log holds no validated table", required=False)


def _complete(report: NcclReport) -> Iterator[Finding]:
    if report.complete:
        yield Finding("nccl.complete", "pass", "object", _LOG, "Complete", "the log shows every rank and channel")
        return
    yield Finding(
        "nccl.complete",
        "unproven",
        "object",
        _LOG,
        "Incomplete",
        "the log is not complete",
        "; ".join(report.incomplete),
        fix="Give the logs of all ranks together; with NCCL_DEBUG_FILE=nccl.%h.%p each process writes its own.",
    )


def _versions(report: NcclReport) -> Iterator[Finding]:
    if len(report.versions) > 1:
        cause = "ranks run different NCCL versions"
        detail = "; ".join(_with_hosts(report, version) for version in report.versions)
        yield Finding("nccl.versions", "warn", "object", _LOG, "MixedVersions", cause, detail, fix="Use one image.")


def _with_hosts(report: NcclReport, version: str) -> str:
    hosts = [host for host, versions in report.versions_by_host.items() if version in versions]
    return f"{version} on {', '.join(hosts[:4])}" + (" and more" if len(hosts) > 4 else "") if hosts else version


def _warnings(report: NcclReport) -> Iterator[Finding]:
    if report.warnings:
        first = report.warnings[0]
        count = sum(one.count for one in report.warnings)
        detail = f"{count}, such as: {first.text}"
        cause = "NCCL or the job logged warnings"
        yield Finding("nccl.warnings", "warn", "object", _LOG, "Warnings", cause, detail, fix="Read them.")
