"""Why GPUDirect RDMA is off, from what the log itself shows, the most likely reason first."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from .channels import is_tcp
from .report import NcclReport

_NO_DEVICE = "Is the RDMA resource in the pod's limits, and does ibv_devices in a pod list the NICs?"
_COHERENT = re.compile(r"\b(?:GH200|GB200|GB300)\b")
_GRACE_BLACKWELL = re.compile(r"\bGB[23]00\b")


@dataclass(frozen=True)
class Explanation:
    """One possible reason: constant ``text``, what in the log points at it, and what to do ``next``."""

    reason: str
    text: str
    evidence: str
    next: str


def why_no_gdr(report: NcclReport) -> list[Explanation]:
    """Reasons, ranked; empty where every channel uses it or no channel could."""
    if report.gdr not in ("none", "partial"):
        return []
    found = [*_tcp(report), *_settings(report), *_capability(report), *_platform(report), *_pattern(report)]
    if not found:
        found.append(
            Explanation(
                "NotShown",
                "the log does not say why",
                f"{report.gdr_channels} of {report.net_channels} channels, no capability line",
                "Run again with NCCL_DEBUG_SUBSYS=INIT,ENV,NET,GRAPH; from NCCL 2.30 on, look at the node itself: "
                "lsmod for nvidia_peermem, DMA-BUF support of driver and kernel, nvidia-smi topo -m.",
            )
        )
    return found


def _tcp(report: NcclReport) -> Iterator[Explanation]:
    """Reasons for a fall-back to sockets."""
    hosts = [host for host, names in report.networks_by_host.items() if any(map(is_tcp, names))]
    if not hosts and not any(is_tcp(network) for one in report.traffic.values() for network, _ in one.nics):
        return
    where = _some(hosts)
    chosen = [value for value in report.devices.value("NCCL_NET") if is_tcp(value)]
    if "1" in report.devices.value("NCCL_IB_DISABLE"):
        yield Explanation("IbDisabled", "InfiniBand and RoCE are switched off", "NCCL_IB_DISABLE=1", "Unset it.")
    if chosen:
        yield Explanation("NetForced", "the environment asks for TCP", f"NCCL_NET={chosen[0]}", "Unset it.")
    without = sorted(report.devices.without_ib & set(hosts or report.hosts))
    if without:
        filters = report.devices.value("NCCL_IB_HCA")
        if filters:
            yield Explanation(
                "HcaFilter",
                "the NIC filter may match no device of these hosts",
                f"NCCL_IB_HCA={filters[0]}, no device found on {_some(without)}",
                "NCCL_IB_HCA matches prefixes: mlx5_1 also means mlx5_10; = asks for exact names.",
            )
        yield Explanation("NoRdmaDevice", "NCCL found no RDMA device", f"on {_some(without)}", _NO_DEVICE)
    elif hosts:
        yield Explanation("TcpNetwork", "NCCL runs over TCP", f"on {where}", _NO_DEVICE)


def _settings(report: NcclReport) -> Iterator[Explanation]:
    level = [value for value in report.devices.value("NCCL_NET_GDR_LEVEL") if value.upper() in ("LOC", "0")]
    if level:
        yield Explanation("GdrLevel", "the environment forbids it", f"NCCL_NET_GDR_LEVEL={level[0]}", "Unset it.")


def _capability(report: NcclReport) -> Iterator[Explanation]:
    capability = report.devices.capability
    modules = sorted(host for host, one in capability.items() if one.no_module)
    if modules:
        yield Explanation(
            "NoModule",
            "the kernel module for GPU memory is not loaded and DMA-BUF is not used",
            f"on {_some(modules)}",
            "Load nvidia_peermem, or use a driver, kernel and NIC firmware with DMA-BUF.",
        )
    support = sorted(host for host, one in capability.items() if one.no_support)
    if support:
        yield Explanation(
            "NicWithoutGpuMemory",
            "NICs cannot reach GPU memory",
            f"on {_some(support)}, such as {min(capability[support[0]].no_support)}",
            "Check nvidia_peermem and DMA-BUF on these nodes; a container may also hide /sys.",
        )
    far = sorted(host for host, one in capability.items() if one.too_far)
    if far:
        yield Explanation(
            "TooFar",
            "GPU and NIC are farther apart than NCCL allows",
            f"on {_some(far)}",
            "Compare nvidia-smi topo -m with the other nodes. In a VM the provider's topology file says what is near; "
            "NCCL_NET_GDR_LEVEL=SYS would allow it without proof that it is faster.",
        )
    plugin = sorted(report.devices.ofi_without_cuda)
    if plugin:
        yield Explanation(
            "PluginDisabledIt",
            "the Libfabric plug-in switched it off",
            f"on {_some(plugin)}",
            "Use a libfabric that can be told not to call CUDA for device memory.",
        )


def _platform(report: NcclReport) -> Iterator[Explanation]:
    products = {device.product for table in report.tables for device in table.devices.values()}
    old = [version for version in report.versions if _release(version) < (2, 27)]
    if old and any(_COHERENT.search(product) for product in products):
        yield Explanation(
            "CoherentPlatform",
            "NCCL before 2.27 keeps it off where CPU and GPU share memory",
            f"NCCL {old[0]}",
            "Use NCCL 2.27 or newer.",
        )
    elif any(_GRACE_BLACKWELL.search(product) for product in products):
        yield Explanation(
            "GraceBlackwell",
            "the GPU driver may refuse NICs behind another root of a Grace Blackwell board",
            _some(sorted(products)),
            "Before driver R595: NVreg_GrdmaPciTopoCheckOverride=1; compare the IOMMU groups of GPU and NIC.",
        )


def _pattern(report: NcclReport) -> Iterator[Explanation]:
    """What the channels themselves tell: which hosts, NICs or directions stand out."""
    rdma = {
        host: [(key, nic) for key, nic in one.nics.items() if not is_tcp(key[0])]
        for host, one in report.traffic.items()
    }
    without = [h for h, nics in rdma.items() if nics and not any(nic.gdr for _, nic in nics)]
    fine = [h for h, nics in rdma.items() if nics and all(nic.gdr == nic.channels for _, nic in nics)]
    if without and fine:
        yield Explanation(
            "SomeHosts",
            "some hosts lack what the others have",
            f"none on {_some(without)}, all on {_some(fine)}",
            "Compare the module list, driver and firmware of these nodes with a good one.",
        )
    send = sum(nic.send - nic.gdr_send for nics in rdma.values() for _, nic in nics)
    receive = sum(nic.receive - nic.gdr_receive for nics in rdma.values() for _, nic in nics)
    if send and not receive:
        yield Explanation(
            "SendOnly",
            "only sending goes through host memory",
            f"{send} send channels",
            "GPUs before Ampere without NVLink do not let the NIC read them (NCCL_NET_GDR_READ).",
        )
    if receive and not send:
        lame = sorted(host for host, nics in rdma.items() if any(nic.gdr_receive < nic.receive for _, nic in nics))
        yield Explanation(
            "ReceiveOnly",
            "only receiving goes through host memory",
            f"{receive} receive channels on {_some(lame)}",
            "Check nvidia_peermem and DMA-BUF on these nodes; the other side decides for itself.",
        )
    rails = sorted(
        f"{host} NIC {key[1]}"
        for host, nics in rdma.items()
        if host not in without
        for key, nic in nics
        if nic.gdr < nic.channels
    )
    if rails and send and receive:
        yield Explanation(
            "SomeNics",
            "some NICs lack it on hosts where others have it",
            _some(rails),
            "Compare their place in nvidia-smi topo -m; a NIC behind another PCIe root is too far.",
        )


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:4])
    return f"{shown} and {len(names) - 4} more" if len(names) > 4 else shown
