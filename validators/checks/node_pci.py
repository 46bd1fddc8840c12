"""The PCI devices of a machine: all there, near their memory, at full width, with a direct way to each other."""

from __future__ import annotations

from collections.abc import Mapping

from gpuready.charts_values.pci import Link

from ..machines import Machine, machine_check
from ..model import Finding
from .node_access import REACHED
from .subjects import labels_of

# Source validation and the redirects of requests, completions and upstream forwarding send peer traffic to the root.
_REDIRECTS = 0x01 | 0x04 | 0x08 | 0x10
_BRIDGE = "0x0604"
_HARDWARE = "Power the machine off, reseat the board or its riser, look at the slot's setting in the firmware."


@machine_check(
    "node.gpus_on_pci",
    title="every promised GPU is on the PCI bus",
    proves="The machine itself sees its GPUs: what lacks now is software.",
    rule="The PCI bus shows as many NVIDIA GPUs (class 0300 or 0302) as a node of its group offers as nvidia.com/gpu, "
    "divided by the replicas of time-slicing.",
    source="PCI code and ID assignment",
    fix=f"lspci -d 10de: and dmesg | grep -i -e pcie -e xid on the node. {_HARDWARE}",
    after=REACHED,
)
def gpus_on_pci(one: Machine) -> Finding:
    """GPUs of the bus."""
    if one.group is None or not one.group.gpus:
        return one.skip("inventory promises no number of GPUs here")
    labels = labels_of(one.node) if one.node else {}
    replicas = labels.get("nvidia.com/gpu.replicas", "1")
    wanted = one.group.gpus // max(1, int(replicas) if replicas.isdigit() else 1)
    if len(one.gpus) < wanted:
        text = f"{len(one.gpus)} of {wanted}"
        cause = "fewer GPUs on the PCI bus than promised"
        return one.fail("GpusLacking", cause, text, expected=str(wanted), observed=str(len(one.gpus)))
    return one.good(f"{len(one.gpus)} GPUs")


@machine_check(
    "node.numa",
    title="GPUs and NICs know their NUMA node",
    proves="Topology Manager has hints to go by.",
    rule="On a machine with several NUMA nodes the numa_node of each GPU and NIC is 0 or more; it fails where "
    "inventory promises a policy of Topology Manager, and is a warning elsewhere.",
    source="Linux kernel documentation, sysfs-bus-pci",
    fix="In the firmware's settings turn NUMA (and on AMD NPS, ACPI SRAT) on; in a virtual machine the host must give "
    "it.",
    after=REACHED,
)
def numa(one: Machine) -> Finding:
    """NUMA nodes of devices."""
    devices = [*one.gpus, *one.nics]
    if not devices:
        return one.skip("it has no GPU and no NIC for RDMA")
    # Memory without CPUs is that of GPUs.
    places = [place for place in one.part("numa") if place["cpus"]]
    lost = [device["address"] for device in devices if device["numa_node"] is None or device["numa_node"] < 0]
    if not lost or len(places) < 2:
        return one.good(f"{len(places)} NUMA nodes")
    cause = "devices do not know their NUMA node"
    text = f"{len(lost)} of {len(devices)}, first {lost[0]}"
    promised = one.settings is not None and one.settings.topology_manager.policy != "none"
    return (one.fail if promised else one.warn)("NoNuma", cause, text)


@machine_check(
    "node.pcie_link",
    title="GPUs and NICs run at the full width and speed of their slots",
    proves="No board has fallen back to fewer lanes or an older generation.",
    rule="Link width of each GPU and NIC is the most that it and, on bare metal, the port above it can do; so is the "
    "speed of NICs. An idle GPU lowers its speed to save power, which says nothing.",
    source="Linux kernel documentation, sysfs-bus-pci current_link_width",
    fix=_HARDWARE,
    after=(*REACHED, "node.gpus_on_pci"),
)
def pcie_link(one: Machine) -> Finding:
    """Links."""
    devices = [*one.gpus, *one.nics]
    if not devices:
        return one.skip("it has no GPU and no NIC for RDMA")
    ports = {device["address"]: device for device in one.part("pci")}
    gpus = {device["address"] for device in one.gpus}
    wrong, judged = [], 0
    for device in devices:
        above = ports.get(device["bridges"][-1], {}) if one.bare_metal and device["bridges"] else {}
        link = Link.of(device, above)
        judged += link.shown
        if lacks := link.shortfall(idles=device["address"] in gpus):
            wrong.append(f"{device['address']}: {lacks}")
    if wrong:
        return one.fail("LinkDegraded", "PCIe link runs below what its slot can do", "; ".join(wrong))
    if not judged:
        return one.unproven("LinksNotShown", "the PCI bus shows no link of these devices", required=False)
    return one.good(f"{judged} devices")


@machine_check(
    "node.acs",
    title="PCIe switches let GPUs and NICs reach each other directly",
    proves="GPUDirect RDMA and peer traffic do not take the way through the root complex.",
    rule="On bare metal no bridge redirects peer traffic (ACS source validation, request and completion redirect, "
    "upstream forwarding): with `acs` off of inventory it fails on any bridge; else switch ports above GPUs and NICs "
    "are a warning where the group has RDMA. Virtual machines need ACS.",
    source="NCCL documentation, troubleshooting, PCI ACS; PCI Express ACS",
    fix="Set `acs` to off in inventory (bare metal without passed-through devices), then: "
    "pyinfra inventory deploys/gpu.py",
    avoid="Do not turn ACS off on a host of virtual machines: it keeps them apart.",
    after=REACHED,
)
def acs(one: Machine) -> Finding:
    """ACS."""
    if not one.bare_metal:
        return one.skip("a virtual machine or container leaves ACS to its host")
    asked = one.settings is not None and one.settings.acs == "off"
    bridges = {device["address"]: device for device in one.part("pci") if device["class"].startswith(_BRIDGE)}
    on = [name for name, bridge in bridges.items() if ((bridge.get("acs") or {}).get("control") or 0) & _REDIRECTS]
    cause = "PCIe ACS sends traffic between devices to the root complex"
    if asked and on:
        return one.fail("AcsOn", cause, f"on {len(on)} bridges, first {on[0]}", expected="off", observed="on")
    if bridges and one.probe.get("root") is not True:
        return one.unproven("AcsNotShown", "ACS can be read as root alone", required=asked)
    # Below a root port there is a switch, in which devices could meet.
    switches = {name for device in (*one.gpus, *one.nics) for name in device["bridges"][1:]}
    if one.group is not None and one.group.rdma != "none" and (met := sorted(switches & set(on))):
        return one.warn("AcsOn", cause, f"on {len(met)} switch ports, first {met[0]}")
    return one.good(f"{len(bridges)} bridges")


@machine_check(
    "node.iommu",
    title="the IOMMU does not translate the GPUs' DMA",
    proves="GPUDirect RDMA has its full rate.",
    rule="On bare metal with GPUs and RDMA no IOMMU group of a GPU is of a translating type (DMA, DMA-FQ): identity, "
    "or no IOMMU.",
    source="Linux kernel documentation, iommu_groups type",
    fix="Add iommu=pt to `kernel_arguments` of inventory; the change takes one boot under `maintenance`.",
    avoid="Do not turn the IOMMU off on a host of virtual machines.",
    after=REACHED,
)
def iommu(one: Machine) -> Finding:
    """IOMMU."""
    if not one.bare_metal or not one.gpus or one.group is None or one.group.rdma == "none":
        return one.skip("it is no bare metal with GPUs and RDMA")
    kinds: Mapping[str, str] = {gpu["address"]: str(gpu["iommu_type"]) for gpu in one.gpus}
    on = [address for address, kind in kinds.items() if kind.startswith("DMA")]
    if on:
        text = f"{len(on)} GPUs, first {on[0]}: {kinds[on[0]]}"
        cause = "IOMMU translates the DMA of GPUs"
        return one.warn("IommuTranslates", cause, text, expected="identity", observed=kinds[on[0]])
    return one.good()
