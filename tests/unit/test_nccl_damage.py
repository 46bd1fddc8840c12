"""A damaged log never crashes the reader and never earns a better verdict than the whole log."""

from __future__ import annotations

import io
import os
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from gpuready.validators import nccl

from . import nccl_failures, nccl_kinds
from .nccl_jobs import PASS, Job, host, pair

Damage = Callable[[list[bytes], random.Random], bytes]
# What is left of these after a cut may be one of their runs, and whole.
_SEVERAL_RUNS = "nccl-tests without MPI"
# Larger logs are damaged once in each way, smaller ones twice.
_LARGE = 20_000
_RUNS: Mapping[str, Job] = {
    "good": Job(pair(link="RoCE")),
    "three hosts": Job([host(number) for number in range(3)]),
    "one host": Job([host()]),
    "one host without GPUDirect": Job([host(0), host(1, gdr=False)]),
    "no GPUDirect": Job(pair(gdr=False)),
    "sockets": Job([host(0), host(1, rdma=False)]),
}


def _logs(name: str) -> list[bytes]:
    return [log.encode() for log in _RUNS[name].rendered.logs.values()]


def _lines(name: str) -> list[bytes]:
    return b"".join(_logs(name)).splitlines(keepends=True)


# -- kinds of damage ----------------------------------------------------------------------------------------------


def _cut(lines: list[bytes], rng: random.Random) -> bytes:
    data = b"".join(lines)
    return data[: rng.randrange(len(data))]


def _behead(lines: list[bytes], rng: random.Random) -> bytes:
    data = b"".join(lines)
    return data[rng.randrange(len(data)) :]


def _drop(lines: list[bytes], rng: random.Random) -> bytes:
    share = rng.choice((0.002, 0.02, 0.2))
    return b"".join(line for line in lines if rng.random() > share)


def _drop_one(lines: list[bytes], rng: random.Random) -> bytes:
    place = rng.randrange(len(lines))
    return b"".join(lines[:place] + lines[place + 1 :])


def _tear(lines: list[bytes], rng: random.Random) -> bytes:
    """Pieces of lines are lost, or run into the next line."""
    out = []
    for line in lines:
        if rng.random() < 0.02:
            at = rng.randrange(len(line))
            out += [line[:at], rng.choice((b"", b"\n")), rng.choice((b"", line[at:]))]
        else:
            out.append(line)
    return b"".join(out)


def _merge(lines: list[bytes], rng: random.Random) -> bytes:
    return b"".join(line.rstrip(b"\n") if rng.random() < 0.02 else line for line in lines)


def _shuffle(lines: list[bytes], rng: random.Random) -> bytes:
    mixed = lines[:]
    rng.shuffle(mixed)
    return b"".join(mixed)


_OWNER = re.compile(rb"([\w\-]+:\d+):\d+ \[\d+\] ")


def _interleave(lines: list[bytes], rng: random.Random) -> bytes:
    """Lines of one process keep their order, those of different ones mix, as in a launcher's log."""
    streams: dict[bytes, list[bytes]] = {}
    for line in lines:
        owner = _OWNER.search(line)
        streams.setdefault(owner[1] if owner else b"", []).append(line)
    waiting = [iter(stream) for stream in streams.values()]
    mixed: list[bytes] = []
    while waiting:
        stream = rng.choice(waiting)
        line = next(stream, None)
        if line is None:
            waiting.remove(stream)
        else:
            mixed.append(line)
    return b"".join(mixed)


def _garble(lines: list[bytes], rng: random.Random) -> bytes:
    data = bytearray(b"".join(lines))
    for _ in range(20):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


_WORDS = (
    *(b"NET/", b"Init COMPLETE", b"nNodes", b"Using network", b"Trees", b"NCCL WARN", b"Out of bounds", b"Avg bus"),
    *(b"[send]", b"[receive]", b"Test NCCL", b"comm 0x", b"#", b"Destroy", b"Connected"),
    *(b"Channel", b" -> ", b"via SHM"),
)


def _filter(lines: list[bytes], rng: random.Random) -> bytes:
    """What a grep leaves out, as people do before they send a log."""
    words = rng.sample(_WORDS, 2)
    return b"".join(line for line in lines if not any(word in line for word in words))


_DAMAGES: tuple[Damage, ...] = (
    _cut, _behead, _drop, _drop_one, _tear, _merge, _shuffle, _interleave, _garble, _filter,
)  # fmt: skip


# -- every log ----------------------------------------------------------------------------------------------------


def _whole_logs() -> dict[str, list[bytes]]:
    """Published logs, where they are at hand, and every kind that the generator words."""
    shared = Path(os.environ.get("GPUREADY_SHARED") or Path(__file__).resolve().parents[3] / "shared")
    logs = sorted((shared / "nccl-logs").glob("*.log"))
    found = {path.stem: path.read_bytes().splitlines(keepends=True) for path in logs}
    for kind in (*nccl_kinds.every(), *nccl_failures.every()):
        found[kind.name] = kind.lines
    return {name: lines for name, lines in found.items() if lines}


def _report(data: bytes) -> nccl.NcclReport | None:
    """None where the command would refuse the file."""
    try:
        return nccl.read([io.BytesIO(data)])
    except nccl.LogError:
        return None


def _exit_code(data: bytes) -> int:
    report = _report(data)
    return 2 if report is None else nccl.verdict(report).exit_code


def _copies(lines: list[bytes], damage: Damage) -> Iterator[tuple[int, bytes]]:
    size = sum(map(len, lines))
    for seed in range(1 if size > _LARGE else 2):
        yield seed, damage(lines, random.Random(f"{seed} {size}"))


@pytest.fixture(scope="module")
def whole_logs() -> dict[str, list[bytes]]:
    return _whole_logs()


@pytest.mark.parametrize("damage", _DAMAGES)
def test_damage_never_earns_a_better_verdict(whole_logs: dict[str, list[bytes]], damage: Damage) -> None:
    """Some copies of logs that pass lose that, and some of the others look good in all that is left of them."""
    counts: Counter[str] = Counter()
    for name, lines in whole_logs.items():
        if name.startswith(_SEVERAL_RUNS) and damage in (_cut, _behead):
            continue
        whole = _exit_code(b"".join(lines))
        for seed, data in _copies(lines, damage):
            report = _report(data)
            judged = 2 if report is None else nccl.verdict(report).exit_code
            assert judged != PASS or whole == PASS, f"{name}, {damage.__name__}, seed {seed}"
            counts["lost" if whole == PASS != judged else "other"] += 1
            if report and whole != PASS and report.gdr in ("all", "not_applicable") and not report.errors:
                counts["misleading"] += 1
    assert counts["lost"] > 0 or damage is _interleave
    assert counts["misleading"] > 0


@pytest.mark.parametrize("run", _RUNS)
@pytest.mark.parametrize("damage", _DAMAGES)
def test_damage_of_plain_runs_in_depth(run: str, damage: Damage) -> None:
    lines = _lines(run)
    whole = _exit_code(b"".join(lines))
    assert (whole == PASS) == (run in ("good", "three hosts", "one host"))
    for seed in range(8):
        assert _exit_code(damage(lines, random.Random(seed))) != PASS or whole == PASS, f"seed {seed}"


def _seams(data: bytes) -> set[int]:
    """Places where a cut is most likely to mislead: the ends of lines, and one byte to both sides."""
    ends = [place + 1 for place, byte in enumerate(data) if byte == 10]
    return {max(0, min(len(data) - 1, end + off)) for end in ends for off in (-2, -1, 0, 1)}


@pytest.mark.parametrize("run", ["good", "one host without GPUDirect"])
def test_a_cut_at_any_byte_leaves_it_open_or_as_it_was(run: str) -> None:
    data = b"".join(_logs(run))
    whole = _exit_code(data)
    rng = random.Random(5)
    places = {
        *rng.sample(sorted(_seams(data)), 150),
        *rng.sample(range(len(data)), 100),
        *range(len(data) - 300, len(data), 3),
    }
    seen = Counter(_exit_code(data[:end]) for end in places)
    assert set(seen) <= {2, whole}
    # Up to its last two lines a log lacks its end.
    assert seen[2] > 100


def test_a_single_lost_channel_between_hosts_is_noticed() -> None:
    lines = _lines("good")
    between = [place for place, line in enumerate(lines) if b" via NET/" in line]
    assert len(between) > 50
    for place in between:
        assert _exit_code(b"".join(lines[:place] + lines[place + 1 :])) == 2


def test_a_channel_lost_on_both_sides_is_noticed() -> None:
    """Rings and trees say which channels there must have been."""
    lines = _lines("three hosts")
    paths = {line.partition(b"Channel ")[2].partition(b" [")[0] for line in lines if b" via NET/" in line}
    assert len(paths) > 50
    for path in paths:
        left = [line for line in lines if b" via NET/" not in line or b"Channel " + path + b" [" not in line]
        assert len(left) == len(lines) - 2
        assert _exit_code(b"".join(left)) == 2


@pytest.mark.parametrize("run", _RUNS)
def test_ranks_may_print_in_any_order(run: str) -> None:
    whole = nccl.read(io.BytesIO(log) for log in _logs(run)).to_json()

    assert nccl.read([io.BytesIO(_interleave(_lines(run), random.Random(11)))]).to_json() == whole


@pytest.mark.parametrize("seed", range(20))
def test_noise_is_no_evidence(seed: int) -> None:
    rng = random.Random(seed)
    words = [b"NCCL", b" NCCL INFO ", b"gpu-a:1:2 [0]", b"Channel ", b"via NET/", b"\n", b"\r", b"\x1b[1m", b"# Rank"]
    data = b"".join(rng.choice(words) if rng.random() < 0.7 else rng.randbytes(3) for _ in range(3000))

    assert _exit_code(b"NCCL" + data) != 0
