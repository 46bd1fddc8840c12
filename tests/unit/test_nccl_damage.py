"""A damaged log never crashes the reader and never earns a pass that the whole log does not."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from typing import Any

import pytest
from gpuready.rehearsal.outputs.nccl import Host, render
from gpuready.validators import nccl

_ROUNDS = 40
Damage = Callable[[list[bytes], random.Random], bytes]


def _logs(*changes: dict[str, Any]) -> list[bytes]:
    """The logs of hosts with two GPUs and two NICs each; ``changes`` are per host."""
    hosts = []
    for number, change in enumerate(changes):
        promised: dict[str, Any] = {
            "name": f"nccl-{number}",
            "gpus": 2,
            "nics": ("mlx5_0", "mlx5_1"),
            "link": "RoCE",
            "nic_gbits_s": 200,
            "rdma": True,
            "gdr": True,
            "address": f"10.20.0.{number}",
        }
        hosts.append(Host(**{**promised, **change}))
    rendered = render(hosts, min_bytes=1 << 20, max_bytes=1 << 26, seed=7)
    return [log.encode() for log in rendered.logs.values()]


_RUNS = {
    "good": _logs({}, {}),
    "three hosts": _logs({}, {}, {}),
    "one host": _logs({}),
    "one host without GPUDirect": _logs({}, {"gdr": False}),
    "no GPUDirect": _logs({"gdr": False}, {"gdr": False}),
    "sockets": _logs({}, {"rdma": False}),
    "wrong results": [log.replace(b"values : 0 OK", b"values : 3 FAILED") for log in _logs({}, {})],
}


def _cut(lines: list[bytes], rng: random.Random) -> bytes:
    data = b"".join(lines)
    return data[: rng.randrange(len(data))]


def _drop(lines: list[bytes], rng: random.Random) -> bytes:
    share = rng.choice((0.002, 0.02, 0.2))
    return b"".join(line for line in lines if rng.random() > share)


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


def _garble(lines: list[bytes], rng: random.Random) -> bytes:
    data = bytearray(b"".join(lines))
    for _ in range(20):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


def _exit_code(data: bytes) -> int:
    return nccl.verdict(nccl.read([io.BytesIO(data)])).exit_code


@pytest.mark.parametrize("damage", [_cut, _drop, _tear, _merge, _shuffle, _garble])
@pytest.mark.parametrize("run", _RUNS)
def test_damage_never_earns_a_pass(run: str, damage: Damage) -> None:
    lines = b"".join(_RUNS[run]).splitlines(keepends=True)
    whole = _exit_code(b"".join(lines))
    for seed in range(_ROUNDS):
        left = _exit_code(damage(lines, random.Random(seed)))

        assert left != 0 or whole == 0, f"seed {seed}"


@pytest.mark.parametrize("run", ["good", "one host without GPUDirect"])
def test_cut_at_every_byte_of_the_end(run: str) -> None:
    data = b"".join(_RUNS[run])
    whole = _exit_code(data)
    for end in range(len(data) - 600, len(data), 7):
        assert _exit_code(data[:end]) in (2, whole)


def test_a_single_lost_channel_between_hosts_is_noticed() -> None:
    lines = b"".join(_RUNS["good"]).splitlines(keepends=True)
    between = [place for place, line in enumerate(lines) if b" via NET/" in line]
    for place in between:
        assert _exit_code(b"".join(lines[:place] + lines[place + 1 :])) == 2


def test_a_channel_lost_on_both_sides_is_noticed() -> None:
    """Rings and trees say which channels there must have been."""
    lines = b"".join(_RUNS["three hosts"]).splitlines(keepends=True)
    paths = {line.partition(b"Channel ")[2].partition(b" [")[0] for line in lines if b" via NET/" in line}
    for path in paths:
        left = [line for line in lines if b" via NET/" not in line or b"Channel " + path + b" [" not in line]
        assert len(left) == len(lines) - 2
        assert _exit_code(b"".join(left)) == 2


@pytest.mark.parametrize("run", _RUNS)
def test_ranks_may_print_in_any_order(run: str) -> None:
    """Lines of one process keep their order; those of different ones mix, as in a launcher's log."""
    whole = nccl.read(io.BytesIO(log) for log in _RUNS[run]).to_json()
    streams: dict[bytes, list[bytes]] = {}
    for line in b"".join(_RUNS[run]).splitlines(keepends=True):
        owner = line.split(b" ")[0].rpartition(b":")[0] if b" NCCL " in line else b"table"
        streams.setdefault(owner, []).append(line)
    rng = random.Random(11)
    waiting = [iter(lines) for lines in streams.values()]
    mixed: list[bytes] = []
    while waiting:
        stream = rng.choice(waiting)
        line = next(stream, None)
        if line is None:
            waiting.remove(stream)
        else:
            mixed.append(line)

    assert nccl.read([io.BytesIO(b"".join(mixed))]).to_json() == whole


@pytest.mark.parametrize("seed", range(20))
def test_noise_is_no_evidence(seed: int) -> None:
    rng = random.Random(seed)
    words = [b"NCCL", b" NCCL INFO ", b"gpu-a:1:2 [0]", b"Channel ", b"via NET/", b"\n", b"\r", b"\x1b[1m", b"# Rank"]
    data = b"".join(rng.choice(words) if rng.random() < 0.7 else rng.randbytes(3) for _ in range(3000))

    assert _exit_code(b"NCCL" + data) != 0
