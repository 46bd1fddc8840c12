"""How fast gpuready reads an NCCL log of 1,024 ranks, against `grep -c NCCL` on the same file in the same run.

    python bench/nccl_reader.py              # 200 MB of each kind
    python bench/nccl_reader.py --mb 1000    # 1 GB

Two kinds of log, both made from the records of a simulated run of 128 nodes with 8 GPUs each:
starts   job after job in one log; every line says something about ranks, networks or channels
calls    one job, followed by what NCCL_DEBUG_SUBSYS=COLL adds: a line per rank and collective

The reader has a process of its own, whose peak memory is what it needs. Ratios are of CPU seconds, which say more
than the clock where other work runs beside.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from gpuready.rehearsal.outputs.nccl import Host, render
from gpuready.validators import nccl

GPUS = 8
MB = 1_000_000


def job(nodes: int, seed: int) -> str:
    """The log of one all-reduce benchmark, pod after pod."""
    hosts = [
        Host(
            name=f"nccl-{number}",
            gpus=GPUS,
            nics=tuple(f"mlx5_{nic}" for nic in range(GPUS)),
            link="IB",
            nic_gbits_s=400,
            rdma=True,
            gdr=True,
            address=f"10.20.{number // 250}.{number % 250}",
        )
        for number in range(nodes)
    ]
    return "".join(render(hosts, min_bytes=1 << 20, max_bytes=1 << 33, seed=seed).logs.values())


def starts(nodes: int) -> Iterator[str]:
    """Whole jobs. Eight different ones take turns: to make each anew would take longer than to read it."""
    jobs = [job(nodes, seed) for seed in range(8)]
    yield from itertools.cycle(jobs)


def calls(nodes: int) -> Iterator[str]:
    """One job, then collectives without end."""
    yield job(nodes, 0)
    for count in itertools.count():
        yield "".join(
            f"nccl-{node}:{101 + gpu}:{101 + gpu} [{gpu}] NCCL INFO AllReduce: opCount {count:x} sendbuff "
            f"0x7f{node:02x}{gpu}4000000 recvbuff 0x7f{node:02x}{gpu}8000000 count 268435456 datatype 7 op 0 root 0 "
            f"comm 0x55{node:02x}{gpu}0d5c0 [nranks={nodes * GPUS}] stream 0x55{node:02x}{gpu}09a40\n"
            for node in range(nodes)
            for gpu in range(GPUS)
        )


KINDS: dict[str, Callable[[int], Iterator[str]]] = {"starts": starts, "calls": calls}


def write(path: Path, parts: Iterator[str], size: int) -> int:
    """Write whole parts until ``size`` bytes are reached; returns the bytes."""
    written = 0
    with path.open("w", encoding="ascii") as file:
        while written < size:
            written += file.write(next(parts))
    return written


def read(path: Path) -> None:
    """The measured process: read one log and print what it took."""
    began, clock = time.process_time(), time.perf_counter()
    report = nccl.read([path])
    seconds, wall = time.process_time() - began, time.perf_counter() - clock
    # Not ru_maxrss: over exec that keeps the peak of the process which started this one.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    done = {"seconds": seconds, "wall": wall, "peak_mib": peak / 1024, "ranks": report.ranks, "lines": report.lines}
    print(json.dumps(done))


def grep(path: Path) -> tuple[float, int]:
    """CPU seconds and the count of `grep -c NCCL`, the fastest of five: the file is in memory by then."""
    times = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(["grep", "-c", "NCCL", str(path)], check=True, capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times), int(done.stdout)


def main() -> None:
    """Print a line for each kind of log."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=200, help="size of the log in MB (10^6 bytes)")
    parser.add_argument("--nodes", type=int, default=128, help=f"nodes of {GPUS} ranks")
    parser.add_argument("--kind", choices=KINDS, action="append")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        read(options.read)
        return
    locale = os.environ.get("LC_ALL") or os.environ.get("LC_CTYPE") or os.environ.get("LANG") or "C"
    print(f"{options.nodes * GPUS} ranks; grep in locale {locale}")
    widths = (
        ("MB", 7),
        ("lines", 11),
        ("wall s", 8),
        ("CPU s", 8),
        ("peak MiB", 10),
        ("grep CPU s", 12),
        ("x grep", 8),
    )
    print(f"{'kind':<8}" + "".join(name.rjust(width) for name, width in widths))
    for kind in options.kind or KINDS:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"{kind}.log")
            size = write(path, KINDS[kind](options.nodes), options.mb * MB) / MB
            other, _ = grep(path)
            done = subprocess.run(
                [sys.executable, "-P", __file__, "--read", str(path)], check=True, capture_output=True, text=True
            )
            ours = json.loads(done.stdout)
        if ours["ranks"] != options.nodes * GPUS:
            sys.exit(f"the reader found {ours['ranks']} ranks in the {kind} log")
        seconds = ours["seconds"]
        print(
            f"{kind:<8}{size:>7.0f}{ours['lines']:>11}{ours['wall']:>8.2f}{seconds:>8.2f}{ours['peak_mib']:>10.1f}"
            f"{other:>12.2f}{seconds / other:>8.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
