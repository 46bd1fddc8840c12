"""Long logs: what is read must not depend on how the text comes in, nor on what was said before."""

from __future__ import annotations

import io
import random
from typing import Any

import pytest
from gpuready.rehearsal.outputs.nccl import Host, render
from gpuready.validators import nccl
from gpuready.validators.nccl import reader


def _run(seed: int = 1) -> list[bytes]:
    hosts = [
        Host(
            name=f"nccl-{number}",
            gpus=2,
            nics=("mlx5_0", "mlx5_1"),
            link="IB",
            nic_gbits_s=200,
            rdma=True,
            gdr=bool(number),
            address=f"10.20.0.{number}",
        )
        for number in range(2)
    ]
    logs = render(hosts, min_bytes=1 << 28, max_bytes=1 << 30, seed=seed).logs.values()
    return [line.encode() for log in logs for line in log.splitlines(keepends=True)]


def _call(number: int) -> bytes:
    """What NCCL_DEBUG_SUBSYS=COLL adds for each collective of each rank."""
    gpu = number % 2
    return b"nccl-0:%d:%d [%d] NCCL INFO AllReduce: opCount %x sendbuff 0x7f00 recvbuff 0x7f10\n" % (
        101 + gpu,
        201 + gpu,
        gpu,
        number,
    )


_TORN = b"nccl-0:101:201 [0] NCCL INFO Channel 00/0 : 0[0] -> 2[0] [sen\n"
_WARN = b"nccl-0:101:201 [0] transport/net_ib.cc:1 NCCL WARN NET/IB : Got completion with error 12, opcode 1\n"
_LATE = b"nccl-1:102:202 [1] NCCL INFO Channel 77/0 : 3[1] -> 1[1] [send] via NET/IB/1\n"


def _long() -> list[bytes]:
    """Two jobs with many collectives, a late channel, and the same trouble said many times."""
    calls = [_call(number) for number in range(4000)]
    return [*_run(), *calls[:2000], _TORN, _WARN, *_run(2), *calls[2000:], _LATE, _TORN, _WARN, *_run(), _WARN]


class _InPieces(io.RawIOBase):
    """A stream that gives as much at once as it likes."""

    def __init__(self, data: bytes, largest: int) -> None:
        self._data = data
        self._largest = largest
        self._rng = random.Random(largest)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        size = self._rng.randint(1, self._largest)
        piece, self._data = self._data[:size], self._data[size:]
        return piece


def _facts(source: Any) -> dict[str, Any]:
    return nccl.read([source]).to_json()


def test_a_long_log_says_what_is_in_it() -> None:
    facts = _facts(io.BytesIO(b"".join(_long())))

    assert facts["lines"] == len(_long())
    assert facts["torn_lines"] == 2
    assert [(one["class"], one["count"]) for one in facts["errors"]] == [("ib_completion_12", 3)]
    assert facts["transport"]["by_nic"]["nccl-1/IB/1"]["gdr"] < facts["transport"]["by_nic"]["nccl-1/IB/1"]["send"] * 2
    assert len(facts["other_benchmarks"]) == 2


@pytest.mark.parametrize("largest", [40, 700, 20_000, 1 << 20])
def test_pieces_of_any_size(largest: int) -> None:
    data = b"".join(_long())

    assert _facts(_InPieces(data, largest)) == _facts(io.BytesIO(data))


def test_small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the lines that are known are forgotten again and again."""
    data = b"".join(_long())
    whole = _facts(io.BytesIO(data))
    monkeypatch.setattr(reader, "_MOST_KNOWN", 5_000)
    monkeypatch.setattr(reader, "_MOST_HEADS", 3)

    assert _facts(_InPieces(data, 5_000)) == whole


@pytest.mark.parametrize("before", [0, 5000])
@pytest.mark.parametrize("line_end", [b"\n", b""])
def test_record_that_ran_into_a_quiet_one(before: int, line_end: bytes) -> None:
    """Among thousands of collectives, and where nothing came before."""
    glued = _call(7).rstrip() + _LATE.rstrip() + line_end
    data = b"".join([*_run(), *map(_call, range(before)), glued, *map(_call, range(before if line_end else 0))])

    report = nccl.read([io.BytesIO(data)])

    late = report.traffic["nccl-1"].nics["IB", 1]
    without = nccl.read([_run()]).traffic["nccl-1"].nics["IB", 1]
    assert late.send == without.send + bool(line_end)


@pytest.mark.parametrize("stamp", [b"2026-01-02T03:04:05.678901234Z ", b"[2026-01-02 03:04:05] ", b"[1,0]<stdout>:"])
def test_stamps_begin_in_the_midst(stamp: bytes) -> None:
    """Two logs of one job in one file, one of which kept its stamps."""
    lines = _long()
    place = len(_run()) + 1000
    data = b"".join([*lines[:place], *(stamp + line for line in lines[place:])])

    assert _facts(io.BytesIO(data)) == _facts(io.BytesIO(b"".join(lines)))
