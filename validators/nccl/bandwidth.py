"""How fast a large all-reduce should be, by class of fabric, and where each figure comes from.

A class that is not in the table has no floor: a guess would fail good nodes or pass bad ones. The best baseline
is the cluster's own, recorded when it was accepted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

FAIL_RATIO = 0.80
WARN_RATIO = 0.92
# Smaller messages are bound by latency and never reach the baseline.
LARGE_BYTES = 1 << 30


@dataclass(frozen=True)
class Floor:
    """The all-reduce bus bandwidth that a class of fabric reaches, in GB/s, and the source of that figure."""

    gbytes_s: float
    source: str

    @property
    def fail_gbytes_s(self) -> float:
        """Below this it is broken."""
        return round(self.gbytes_s * FAIL_RATIO, 1)

    @property
    def warn_gbytes_s(self) -> float:
        """Below this it deserves a look."""
        return round(self.gbytes_s * WARN_RATIO, 1)


@dataclass(frozen=True)
class _Baseline:
    """``gpu`` is searched in the product name; ``nics`` are (count, Gb/s) of the nodes it was measured on."""

    gpu: re.Pattern[str]
    nodes: tuple[int, int]
    nics: tuple[tuple[int, int], ...]
    gbytes_s: float
    source: str


_MANY = 1 << 30
_H100 = re.compile(r"\bH100\b(?=.*(?:HBM3|SXM))")
_H200 = re.compile(r"\bH200\b(?!.*NVL)")
_A100 = re.compile(r"\bA100\b(?=.*SXM)")
_B200 = re.compile(r"(?<!G)\bB200\b")
_8X400 = ((8, 400),)
_8X200 = ((8, 200),)
_4X100 = ((4, 100),)
_CEILING = "computed: 48 GB/s per 400 Gb/s NIC in a ring (NCCL maintainers, NVIDIA/nccl-tests#119)"

_BASELINES = (
    _Baseline(_H100, (1, 1), (), 460, "460-480 measured on HGX H100; the floor of Azure's node health checks"),
    _Baseline(_H100, (2, 2), _8X400, 440, "440-470 measured (NVIDIA/nccl-tests#309); the floor of Oracle's checks"),
    _Baseline(_H100, (2, 2), ((32, 100),), 437, "437 at 1 GiB, 487 at 16 GiB measured on AWS p5 (AWS, EFA)"),
    _Baseline(_H100, (3, _MANY), _8X400, 366, "366 measured on 4 HGX H100 (NVIDIA/nccl-tests#309); ring ceiling 384"),
    _Baseline(_H100, (2, 2), _8X200, 334, "334-338 measured on a3-mega (NVIDIA/aicr#1565)"),
    _Baseline(_H200, (1, 1), (), 431, "431-480 in Azure's node health checks for ND H200 v5"),
    _Baseline(_H200, (2, 2), _8X400, 440, "the floor of Oracle's checks for BM.GPU.H200"),
    _Baseline(_H200, (3, _MANY), _8X400, 384, _CEILING),
    _Baseline(_B200, (2, 2), _8X400, 440, "the floor of Oracle's checks for BM.GPU.B200"),
    _Baseline(_B200, (3, _MANY), _8X400, 384, _CEILING),
    _Baseline(_A100, (1, 1), (), 228, "228-250 measured on HGX A100; the floor of Azure's node health checks"),
    _Baseline(_A100, (2, 2), _8X200, 185, "the floor of Oracle's checks for A100 with 8 NICs of 200 Gb/s"),
    _Baseline(_A100, (3, _MANY), _8X200, 192, _CEILING),
    _Baseline(_A100, (2, 2), _4X100, 57, "measured on p4d in 2021 (NVIDIA/nccl#527), so rather low"),
    _Baseline(_A100, (3, _MANY), _4X100, 30, "measured on p4d in 2021 (NVIDIA/nccl#527), so rather low"),
)


def expected_floor(gpu_product: str, nics: int, nic_gbits_s: float, nodes: int, rdma: bool) -> Floor | None:
    """The floor of an all-reduce over eight-GPU nodes, at sizes of 1 GiB and more; None for an unknown class.

    ``nic_gbits_s`` is the line rate of one NIC in Gb/s. Two nodes may exceed line rate, since NCCL then takes a
    tree. Without RDMA there is a figure for one node only.
    """
    product = re.sub(r"[-_]+", " ", gpu_product)
    for one in _BASELINES:
        fits = not one.nics or (rdma and (nics, round(nic_gbits_s)) in one.nics)
        if one.gpu.search(product) and one.nodes[0] <= nodes <= one.nodes[1] and fits:
            return Floor(one.gbytes_s, one.source)
    return None
