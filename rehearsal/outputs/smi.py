"""nvidia-smi as a healthy, idle node prints it: table, XML, CSV and list, in the layout of driver 580."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from xml.sax.saxutils import escape

from gpuready.charts_values.errors import InputError

from .boards import Board, board


@dataclass(frozen=True)
class Gpu:
    """One GPU. ``product`` is the marketing name, ``bus_id`` reads ``00000000:1B:00.0``.

    ``clique`` is its NVLink domain across nodes, ``<cluster uuid>.<clique id>``, empty where it ends in the node.
    """

    index: int
    uuid: str
    product: str
    bus_id: str
    memory_mib: int
    serial: str
    clique: str = ""


NO_DEVICES = "No devices were found\n"

_RULE = "+-----------------------------------------+------------------------+----------------------+"
_WIDE = "+-----------------------------------------------------------------------------------------+"
_HEAD = """\
| GPU  Name                 Persistence-M | Bus-Id          Disp.A | Volatile Uncorr. ECC |
| Fan  Temp   Perf          Pwr:Usage/Cap |           Memory-Usage | GPU-Util  Compute M. |
|                                         |                        |               MIG M. |
|=========================================+========================+======================|"""
_PROCESSES = """\
| Processes:                                                                              |
|  GPU   GI   CI              PID   Type   Process name                        GPU Memory |
|        ID   ID                                                               Usage      |
|=========================================================================================|
|  No running processes found                                                             |"""


def text(gpus: Sequence[Gpu], driver_version: str, cuda_version: str, *, at: datetime | None = None) -> str:
    """Plain ``nvidia-smi``; ``at`` is the time in its first line, now unless given."""
    if not gpus:
        return NO_DEVICES
    lines = [
        f"{_stamp(at)}       ",
        _WIDE,
        f"| NVIDIA-SMI {driver_version:<23}Driver Version: {driver_version:<15}CUDA Version: {cuda_version:<9}|",
        _RULE,
        _HEAD,
    ]
    for gpu in gpus:
        card = board(gpu.product)
        name = gpu.product if len(gpu.product) <= 27 else f"{gpu.product[:23]} ..."
        mig = "Disabled" if card.mig else "N/A"
        lines += [
            f"|{gpu.index:>4}  {name:<27}    On  |   {gpu.bus_id} Off |{0:>21} |",
            f"| N/A   {_temperature(gpu)}C    P0 {_power(gpu, card):>14.0f}W / {card.power_limit:>4}W "
            f"|{0:>8}MiB / {gpu.memory_mib:>6}MiB |{0:>7}% {'Default':>12} |",
            f"|{'':41}|{'':24}|{mig:>21} |",
            _RULE,
        ]
    return "\n".join([*lines, "", _WIDE, _PROCESSES, _WIDE, ""])


def listing(gpus: Sequence[Gpu]) -> str:
    """``nvidia-smi -L``: a line for each GPU."""
    if not gpus:
        return NO_DEVICES
    return "".join(f"GPU {gpu.index}: {gpu.product} (UUID: {gpu.uuid})\n" for gpu in gpus)


def query(
    gpus: Sequence[Gpu],
    driver_version: str,
    fields: Sequence[str],
    units: bool = True,
    header: bool = True,
) -> str:
    """``nvidia-smi --query-gpu=FIELDS --format=csv[,noheader][,nounits]``.

    Raises InputError on a field that nvidia-smi does not know, in its own words.
    """
    columns = [_field(name) for name in fields]
    if not gpus:
        return NO_DEVICES
    rows = []
    if header:
        rows.append([f"{name} [{unit}]" if unit else name for name, (unit, _) in zip(fields, columns, strict=True)])
    for gpu in gpus:
        scene = _Scene(gpu, board(gpu.product), driver_version, len(gpus))
        values = [(unit, read(scene)) for unit, read in columns]
        rows.append([f"{value} {unit}" if unit and units else value for unit, value in values])
    return "".join(", ".join(row) + "\n" for row in rows)


@dataclass(frozen=True)
class _Scene:
    gpu: Gpu
    card: Board
    driver: str
    count: int


_Column = tuple[str, Callable[[_Scene], str]]


def _fixed(value: str) -> _Column:
    return "", lambda _: value


# Field -> (unit, value). Aliases are those of nvidia-smi.
_FIELDS: dict[str, _Column] = {
    "index": ("", lambda s: str(s.gpu.index)),
    "count": ("", lambda s: str(s.count)),
    "name": ("", lambda s: s.gpu.product),
    "uuid": ("", lambda s: s.gpu.uuid),
    "serial": ("", lambda s: s.gpu.serial),
    "pci.bus_id": ("", lambda s: s.gpu.bus_id),
    "driver_version": ("", lambda s: s.driver),
    "vbios_version": ("", lambda s: s.card.vbios),
    "compute_cap": ("", lambda s: s.card.compute_capability),
    "compute_mode": _fixed("Default"),
    "persistence_mode": _fixed("Enabled"),
    "pstate": _fixed("P0"),
    "mig.mode.current": ("", lambda s: "Disabled" if s.card.mig else "[N/A]"),
    "mig.mode.pending": ("", lambda s: "Disabled" if s.card.mig else "[N/A]"),
    "memory.total": ("MiB", lambda s: str(s.gpu.memory_mib)),
    "memory.used": ("MiB", lambda _: "0"),
    "memory.free": ("MiB", lambda s: str(s.gpu.memory_mib)),
    "utilization.gpu": ("%", lambda _: "0"),
    "utilization.memory": ("%", lambda _: "0"),
    "temperature.gpu": ("", lambda s: str(_temperature(s.gpu))),
    "temperature.memory": ("", lambda s: str(_temperature(s.gpu) + 9) if s.card.nvswitch else "N/A"),
    "power.draw": ("W", lambda s: f"{_power(s.gpu, s.card):.2f}"),
    "power.limit": ("W", lambda s: f"{s.card.power_limit:.2f}"),
    "power.default_limit": ("W", lambda s: f"{s.card.power_limit:.2f}"),
    "power.max_limit": ("W", lambda s: f"{s.card.power_limit:.2f}"),
    "enforced.power.limit": ("W", lambda s: f"{s.card.power_limit:.2f}"),
    "clocks.sm": ("MHz", lambda s: str(s.card.sm_clock)),
    "clocks.mem": ("MHz", lambda s: str(s.card.memory_clock)),
    "clocks.max.sm": ("MHz", lambda s: str(s.card.sm_clock)),
    "clocks.max.mem": ("MHz", lambda s: str(s.card.memory_clock)),
    "clocks_event_reasons.active": _fixed("0x0000000000000000"),
    "pcie.link.gen.current": ("", lambda s: str(s.card.pcie_gen)),
    "pcie.link.gen.max": ("", lambda s: str(s.card.pcie_gen)),
    "pcie.link.width.current": _fixed("16"),
    "pcie.link.width.max": _fixed("16"),
    "ecc.mode.current": _fixed("Enabled"),
    "ecc.mode.pending": _fixed("Enabled"),
    "ecc.errors.corrected.volatile.total": _fixed("0"),
    "ecc.errors.uncorrected.volatile.total": _fixed("0"),
    "ecc.errors.corrected.aggregate.total": _fixed("0"),
    "ecc.errors.uncorrected.aggregate.total": _fixed("0"),
    "fabric.state": ("", lambda s: "Completed" if s.card.nvswitch else "N/A"),
    "fabric.status": ("", lambda s: "Success" if s.card.nvswitch else "N/A"),
    "gpu_recovery_action": _fixed("None"),
}
_ALIASES = {
    "gpu_name": "name",
    "gpu_uuid": "uuid",
    "gpu_serial": "serial",
    "gpu_bus_id": "pci.bus_id",
    "clocks.current.sm": "clocks.sm",
    "clocks.current.memory": "clocks.mem",
    "clocks_throttle_reasons.active": "clocks_event_reasons.active",
    "vbios": "vbios_version",
}


def _field(name: str) -> _Column:
    try:
        return _FIELDS[_ALIASES.get(name, name)]
    except KeyError:
        raise InputError(f'Field "{name}" is not a valid field to query.') from None


# An element is (tag, text) or (tag, children).
_Element = tuple[str, "str | list[_Element]"]


def xml(gpus: Sequence[Gpu], driver_version: str, cuda_version: str, *, at: datetime | None = None) -> str:
    """``nvidia-smi -q -x``; ``at`` is its time stamp, now unless given."""
    lines = [
        '<?xml version="1.0" ?>',
        '<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v13.dtd">',
        "<nvidia_smi_log>",
        f"\t<timestamp>{_stamp(at)}</timestamp>",
        f"\t<driver_version>{driver_version}</driver_version>",
        f"\t<cuda_version>{cuda_version}</cuda_version>",
        f"\t<attached_gpus>{len(gpus)}</attached_gpus>",
    ]
    for gpu in gpus:
        lines.append(f'\t<gpu id="{gpu.bus_id}">')
        _write(_gpu_elements(gpu, board(gpu.product), driver_version), 2, lines)
        lines.append("\t</gpu>")
    return "\n".join([*lines, "</nvidia_smi_log>", ""])


def _write(elements: list[_Element], depth: int, lines: list[str]) -> None:
    indent = "\t" * depth
    for tag, content in elements:
        if isinstance(content, str):
            lines.append(f"{indent}<{tag}>{escape(content)}</{tag}>")
        else:
            lines.append(f"{indent}<{tag}>")
            _write(content, depth + 1, lines)
            lines.append(f"{indent}</{tag}>")


def _gpu_elements(gpu: Gpu, card: Board, driver_version: str) -> list[_Element]:
    domain, bus, device = gpu.bus_id.split(":")
    mig = "Disabled" if card.mig else "N/A"
    return [
        ("product_name", gpu.product),
        ("product_brand", card.brand),
        ("product_architecture", card.architecture),
        ("display_mode", "Disabled"),
        ("display_active", "Disabled"),
        ("persistence_mode", "Enabled"),
        ("addressing_mode", "HMM" if card.architecture == "Hopper" else "None"),
        ("mig_mode", [("current_mig", mig), ("pending_mig", mig)]),
        ("mig_devices", "None"),
        ("serial", gpu.serial),
        ("uuid", gpu.uuid),
        ("minor_number", str(gpu.index)),
        ("vbios_version", card.vbios),
        ("multigpu_board", "No"),
        ("board_id", f"0x{int(bus, 16):x}00"),
        ("gpu_module_id", str(gpu.index + 1)),
        ("gsp_firmware_version", driver_version),
        ("gpu_recovery_action", "None"),
        ("pci", _pci(gpu, card, domain, bus, device)),
        ("fan_speed", "N/A"),
        ("performance_state", "P0"),
        ("clocks_event_reasons", _event_reasons()),
        ("fb_memory_usage", _memory(gpu.memory_mib)),
        ("bar1_memory_usage", _memory(131072)),
        ("compute_mode", "Default"),
        ("utilization", [(f"{unit}_util", "0 %") for unit in ("gpu", "memory", "encoder", "decoder")]),
        ("ecc_mode", [("current_ecc", "Enabled"), ("pending_ecc", "Enabled")]),
        ("ecc_errors", [("volatile", _ecc()), ("aggregate", [*_ecc(), ("sram_threshold_exceeded", "No")])]),
        ("retired_pages", _retired_pages(card)),
        ("remapped_rows", _remapped_rows(card)),
        ("temperature", _temperatures(gpu, card)),
        ("gpu_power_readings", _power_readings(gpu, card)),
        ("clocks", _clocks(card)),
        ("max_clocks", _clocks(card)),
        ("fabric", _fabric(gpu, card)),
        ("processes", []),
    ]


def _pci(gpu: Gpu, card: Board, domain: str, bus: str, device: str) -> list[_Element]:
    gen = str(card.pcie_gen)
    return [
        ("pci_bus", bus),
        ("pci_device", device.split(".")[0]),
        ("pci_domain", domain[-4:]),
        ("pci_base_class", "3"),
        ("pci_sub_class", "2"),
        ("pci_device_id", card.device_id),
        ("pci_bus_id", gpu.bus_id),
        (
            "pci_gpu_link_info",
            [
                (
                    "pcie_gen",
                    [
                        ("max_link_gen", gen),
                        ("current_link_gen", gen),
                        ("device_current_link_gen", gen),
                        ("max_device_link_gen", gen),
                        ("max_host_link_gen", gen),
                    ],
                ),
                ("link_widths", [("max_link_width", "16x"), ("current_link_width", "16x")]),
            ],
        ),
        ("replay_counter", "0"),
        ("replay_rollover_counter", "0"),
    ]


def _event_reasons() -> list[_Element]:
    names = (
        *("gpu_idle", "applications_clocks_setting", "sw_power_cap", "hw_slowdown"),
        *("hw_thermal_slowdown", "hw_power_brake_slowdown", "sync_boost", "sw_thermal_slowdown"),
    )
    return [(f"clocks_event_reason_{name}", "Active" if name == "gpu_idle" else "Not Active") for name in names]


def _memory(total_mib: int) -> list[_Element]:
    return [("total", f"{total_mib} MiB"), ("used", "0 MiB"), ("free", f"{total_mib} MiB")]


def _ecc() -> list[_Element]:
    names = ("sram_correctable", "sram_uncorrectable_parity", "sram_uncorrectable_secded")
    return [(name, "0") for name in (*names, "dram_correctable", "dram_uncorrectable")]


def _retired_pages(card: Board) -> list[_Element]:
    count = "N/A" if card.row_remap else "0"
    pending = "N/A" if card.row_remap else "No"
    return [
        ("multiple_single_bit_retirement", [("retired_count", count)]),
        ("double_bit_retirement", [("retired_count", count)]),
        ("pending_blacklist", pending),
        ("pending_retirement", pending),
    ]


def _remapped_rows(card: Board) -> str | list[_Element]:
    if not card.row_remap:
        return "N/A"
    return [
        ("remapped_row_corr", "0"),
        ("remapped_row_unc", "0"),
        ("remapped_row_pending", "No"),
        ("remapped_row_failure", "No"),
        (
            "row_remapper_histogram",
            [
                ("row_remapper_histogram_max", "2560 bank(s)"),
                ("row_remapper_histogram_high", "0 bank(s)"),
                ("row_remapper_histogram_partial", "0 bank(s)"),
                ("row_remapper_histogram_low", "0 bank(s)"),
                ("row_remapper_histogram_none", "0 bank(s)"),
            ],
        ),
    ]


def _temperatures(gpu: Gpu, card: Board) -> list[_Element]:
    now = _temperature(gpu)
    memory = f"{now + 9} C" if card.nvswitch else "N/A"
    return [
        ("gpu_temp", f"{now} C"),
        ("gpu_temp_tlimit", f"{card.slowdown_temperature - 2 - now} C"),
        ("gpu_temp_max_tlimit_threshold", "-8 C"),
        ("gpu_temp_slow_tlimit_threshold", "-2 C"),
        ("gpu_temp_max_gpu_tlimit_threshold", "0 C"),
        ("memory_temp", memory),
        ("gpu_temp_max_mem_tlimit_threshold", "0 C" if card.nvswitch else "N/A"),
    ]


def _power_readings(gpu: Gpu, card: Board) -> list[_Element]:
    draw = f"{_power(gpu, card):.2f} W"
    limit = f"{card.power_limit:.2f} W"
    return [
        ("power_state", "P0"),
        ("average_power_draw", draw),
        ("instant_power_draw", draw),
        ("current_power_limit", limit),
        ("requested_power_limit", limit),
        ("default_power_limit", limit),
        ("min_power_limit", f"{card.power_limit / 3.5:.2f} W"),
        ("max_power_limit", limit),
    ]


def _clocks(card: Board) -> list[_Element]:
    sm, memory = f"{card.sm_clock} MHz", f"{card.memory_clock} MHz"
    return [("graphics_clock", sm), ("sm_clock", sm), ("mem_clock", memory), ("video_clock", sm)]


def _fabric(gpu: Gpu, card: Board) -> list[_Element]:
    if not card.nvswitch:
        return [("state", "N/A"), ("status", "N/A"), ("cliqueId", "N/A")]
    cluster, _, clique = gpu.clique.rpartition(".")
    found: list[_Element] = [("state", "Completed"), ("status", "Success"), ("cliqueId", clique or "0")]
    return [*found, ("clusterUuid", cluster)] if cluster else found


def _stamp(at: datetime | None) -> str:
    return f"{at or datetime.now():%a %b %e %H:%M:%S %Y}"


def _jitter(gpu: Gpu, span: int) -> int:
    """0 .. span-1, always the same for one GPU: cards of a node differ a little."""
    return zlib.crc32(gpu.uuid.encode()) % span


def _temperature(gpu: Gpu) -> int:
    return 28 + _jitter(gpu, 7)


def _power(gpu: Gpu, card: Board) -> float:
    return card.idle_power + _jitter(gpu, 60) / 10
