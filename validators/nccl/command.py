"""``gpuready nccl LOG...``: reads logs without a cluster and judges what they prove."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from gpuready.charts_values.errors import InputError

from .. import model
from ..report import output
from .gdr import why_no_gdr
from .report import NcclReport, read
from .sources import LogError, Source
from .verdict import Finding, forced_levels, verdict

_GIB = 1 << 30


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's options."""
    text = "read NCCL and nccl-tests output: transport of every channel, GPUDirect RDMA, errors, bandwidth"
    parser = subparsers.add_parser("nccl", help=text, description=f"{text[0].upper()}{text[1:]}. Needs no cluster.")
    parser.add_argument(
        "logs", metavar="LOG", nargs="+", help="logs and -J files of one run, plain, gzip or zstd; - is stdin"
    )
    parser.add_argument("--rails", metavar="N", type=_count, help="fail where a host uses fewer NICs")
    parser.add_argument("--network", metavar="NAME", help='fail on another network (IB, "AWS Libfabric", ...)')
    parser.add_argument("--strict", action="store_true", help="warnings count as failures")
    parser.add_argument("-o", "--output", dest="format", choices=output.FORMATS, default="text")
    parser.add_argument("--output-file", metavar="F", type=Path, help="write the report there, not to stdout")


def run(args: argparse.Namespace) -> int:
    """Read, judge, report; returns the exit code. Raises InputError where a log cannot be read."""
    started, clock = datetime.now(UTC), time.monotonic()
    try:
        report = read(_sources(args.logs))
    except LogError as error:
        raise InputError(str(error)) from error
    if not report.lines:
        raise InputError(f"{', '.join(args.logs)}: empty; a log of NCCL or nccl-tests is expected")
    judged = verdict(report, args.rails, args.network)
    done = model.Run(
        kind="nccl",
        cluster=None,
        started=started.isoformat(timespec="seconds").replace("+00:00", "Z"),
        seconds=time.monotonic() - clock,
        api_calls=0,
        results=tuple(_result(finding, args.logs) for finding in judged.findings),
        strict=args.strict,
        notes=tuple(_facts(report)),
        extra={"nccl": report.to_json()},
    )
    output.write(done, args.format, args.output_file)
    return done.exit_code


def _sources(names: Iterable[str]) -> Iterator[Source]:
    for name in names:
        yield sys.stdin.buffer if name == "-" else Path(name)


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of NICs")
    return int(text)


def _result(finding: Finding, logs: list[str]) -> model.Result:
    return model.Result(
        check=finding.check,
        finding=model.Finding(
            status=model.Status(finding.status),
            subject=model.Subject(finding.kind, finding.name),
            reason=finding.reason,
            cause=finding.cause,
            detail=finding.detail,
            expected=finding.expected,
            observed=finding.observed,
            required=finding.required,
            evidence=tuple(logs[:3]),
        ),
        fix=finding.fix,
        avoid=finding.avoid,
        tier="fabric",
    )


def _facts(report: NcclReport) -> Iterator[str]:
    """What the log shows, in a few lines for people."""
    ranks = "unknown number of" if report.ranks is None else str(report.ranks)
    hosts = f"{len(report.hosts)} hosts" if len(report.hosts) != 1 else "1 host"
    yield (
        f"{ranks} ranks, {hosts} in the log, NCCL {', '.join(report.versions) or 'version not shown'}, "
        f"network {', '.join(report.networks) or 'not shown'}, {report.lines} lines, {report.torn} torn"
    )
    if report.net_channels:
        rails = sorted({len(report.rails(host)) for host, one in report.traffic.items() if one.net})
        used = str(rails[0]) if len(rails) == 1 else f"{rails[0]} to {rails[-1]}"
        yield (
            f"between hosts: {report.gdr_channels} of {report.net_channels} channels use GPUDirect RDMA; "
            f"{used} NICs used by each host"
        )
        levels = forced_levels(report)
        if report.gdr_channels and levels:
            yield f"GPUDirect RDMA by decree: NCCL_NET_GDR_LEVEL={levels[0]} allows it whatever the distance"
    kinds: dict[str, int] = {}
    for one in report.traffic.values():
        for kind, count in one.intranode.items():
            kinds[kind] = kinds.get(kind, 0) + count
    if kinds:
        yield "inside hosts: " + ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
    if report.suspect and len(report.timeouts) > 2:
        counts = ", ".join(
            f"{node} {count}" for node, count in sorted(report.timeouts.items(), key=lambda one: -one[1])
        )
        yield f"RDMA timeouts name {report.suspect} most, as reporter or as peer: {counts}"
    table = report.benchmark
    largest = table.largest if table else None
    if table and largest and largest.busbw is not None:
        average = "" if table.average is None else f", average {table.average:g}"
        size = f"{largest.bytes / _GIB:g} GiB" if largest.bytes >= _GIB else f"{largest.bytes} bytes"
        yield f"{table.collective or 'benchmark'}: {largest.busbw:g} GB/s bus bandwidth at {size}{average}"
    for place, reason in enumerate(why_no_gdr(report), 1):
        yield f"why no GPUDirect, {place}: {reason.text} ({reason.evidence}). {reason.next}"
