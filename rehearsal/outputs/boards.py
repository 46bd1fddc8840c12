"""What nvidia-smi says about a GPU product beyond its name: limits, links, clocks."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Board:
    """Constants of a product. Power in W, clocks in MHz, temperatures in degrees Celsius.

    ``nvlinks`` counts the links of a GPU, ``nvls`` says whether its switches reduce (NVLink SHARP).
    ``allreduce_gbytes_s`` is the bus bandwidth that GPUs reach within one NVLink domain, or one node without it.
    """

    architecture: str
    brand: str
    device_id: str
    vbios: str
    compute_capability: str
    power_limit: int
    idle_power: int
    sm_clock: int
    memory_clock: int
    pcie_gen: int
    slowdown_temperature: int
    nvlinks: int
    mig: bool
    nvswitch: bool
    row_remap: bool
    allreduce_gbytes_s: float
    nvls: bool = False


_HOPPER_SXM = Board(
    architecture="Hopper",
    brand="NVIDIA",
    device_id="0x233010DE",
    vbios="96.00.A5.00.01",
    compute_capability="9.0",
    power_limit=700,
    idle_power=70,
    sm_clock=1980,
    memory_clock=2619,
    pcie_gen=5,
    slowdown_temperature=89,
    nvlinks=18,
    mig=True,
    nvswitch=True,
    row_remap=True,
    allreduce_gbytes_s=475.0,
    nvls=True,
)
# The bandwidth is the one measured over two trays of four GPUs. Where this project's sources give no figure,
# clocks and temperatures are those of Hopper.
_GRACE_BLACKWELL = replace(
    _HOPPER_SXM,
    architecture="Blackwell",
    device_id="0x294110DE",
    vbios="97.00.82.00.01",
    compute_capability="10.0",
    power_limit=1200,
    idle_power=150,
    allreduce_gbytes_s=811.0,
)
_AMPERE_SXM = Board(
    architecture="Ampere",
    brand="NVIDIA",
    device_id="0x20B210DE",
    vbios="92.00.95.00.01",
    compute_capability="8.0",
    power_limit=400,
    idle_power=52,
    sm_clock=1410,
    memory_clock=1593,
    pcie_gen=4,
    slowdown_temperature=89,
    nvlinks=12,
    mig=True,
    nvswitch=True,
    row_remap=True,
    allreduce_gbytes_s=235.0,
)
_AMPERE_PCIE = Board(
    architecture="Ampere",
    brand="NVIDIA",
    device_id="0x20B510DE",
    vbios="92.00.90.00.04",
    compute_capability="8.0",
    power_limit=300,
    idle_power=43,
    sm_clock=1410,
    memory_clock=1512,
    pcie_gen=4,
    slowdown_temperature=89,
    nvlinks=0,
    mig=True,
    nvswitch=False,
    row_remap=True,
    allreduce_gbytes_s=20.0,
)
_ADA = Board(
    architecture="Ada Lovelace",
    brand="NVIDIA",
    device_id="0x26B910DE",
    vbios="95.02.66.00.02",
    compute_capability="8.9",
    power_limit=350,
    idle_power=34,
    sm_clock=2520,
    memory_clock=9001,
    pcie_gen=4,
    slowdown_temperature=92,
    nvlinks=0,
    mig=False,
    nvswitch=False,
    row_remap=True,
    allreduce_gbytes_s=18.0,
)
_TURING = Board(
    architecture="Turing",
    brand="Tesla",
    device_id="0x1EB810DE",
    vbios="90.04.96.00.02",
    compute_capability="7.5",
    power_limit=70,
    idle_power=9,
    sm_clock=1590,
    memory_clock=5001,
    pcie_gen=3,
    slowdown_temperature=93,
    nvlinks=0,
    mig=False,
    nvswitch=False,
    row_remap=False,
    allreduce_gbytes_s=8.0,
)

_BOARDS = {
    "NVIDIA H100 80GB HBM3": _HOPPER_SXM,
    "NVIDIA H200": replace(_HOPPER_SXM, device_id="0x233510DE", vbios="96.00.BC.00.01", memory_clock=3201),
    "NVIDIA GB200": _GRACE_BLACKWELL,
    "NVIDIA A100-SXM4-80GB": _AMPERE_SXM,
    "NVIDIA A100-SXM4-40GB": replace(_AMPERE_SXM, device_id="0x20B010DE", memory_clock=1215),
    "NVIDIA A100 80GB PCIe": _AMPERE_PCIE,
    "NVIDIA A100-PCIE-40GB": replace(_AMPERE_PCIE, power_limit=250, device_id="0x20F110DE", memory_clock=1215),
    "NVIDIA L40S": _ADA,
    "NVIDIA L4": replace(_ADA, power_limit=72, idle_power=11, device_id="0x27B810DE", memory_clock=6251),
    "Tesla T4": _TURING,
}


def board(product: str) -> Board:
    """The constants of a product; an unknown one answers like a PCIe card without NVLink."""
    return _BOARDS.get(product, _ADA)
