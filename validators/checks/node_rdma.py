"""The RDMA devices of a machine: ports up at their rate, addresses of RoCE v2, firmware like their neighbours'."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from gpuready.charts_values import quantities

from ..evidence import Evidence
from ..expected import Expected
from ..machines import Machine, all_of, each, machine_check
from ..model import Finding
from ..registry import check
from .node_access import REACHED

_LAYERS = {"ib": "InfiniBand", "roce": "Ethernet"}
_NONE = "inventory promises no RDMA here"


@machine_check(
    "node.rdma_ports",
    title="RDMA ports are up at their rate",
    proves="Cables, switches and subnet manager serve every promised NIC.",
    rule="At least `nics` ports of the group's kind (InfiniBand, Ethernet for RoCE) are ACTIVE with LinkUp at "
    "`nic_gbits_s` or more; those of `management_nics` do not count.",
    source="Linux kernel documentation, sysfs-class-infiniband",
    fix="Look at the port that is down: cable, switch port, for InfiniBand the subnet manager: ibstat; mlxlink -d DEV",
    after=(*REACHED, "node.modules"),
)
def rdma_ports(one: Machine) -> Finding:
    """Ports."""
    if one.group is None or one.group.rdma == "none":
        return one.skip(_NONE)
    wanted, rate = max(1, one.group.nics), one.group.nic_gbits_s
    ports = list(_of_kind(one))
    good, bad = [], []
    for name, port in ports:
        has = quantities.leading(port["rate"])
        state = _word(port["state"]), _word(port["phys_state"])
        if state == ("ACTIVE", "LinkUp") and has >= rate:
            good.append(name)
        elif state == ("ACTIVE", "LinkUp"):
            bad.append(f"{name}: {has:g} of {rate:g} Gb/s")
        else:
            bad.append(f"{name}: {' '.join(state)}")
    if len(good) >= wanted:
        return one.good(f"{len(good)} ports at {rate:g} Gb/s")
    layer = _LAYERS[one.group.rdma]
    text = f"{len(good)} of {wanted}; " + ("; ".join(bad) or f"{len(ports)} {layer} ports in all")
    cause = "fewer RDMA ports are up at their rate than promised"
    return one.fail("PortsDown", cause, text, expected=str(wanted), observed=str(len(good)))


@machine_check(
    "node.rdma_gid",
    title="RoCE ports have GIDs of RoCE v2",
    proves="RDMA packets can be routed, and NCCL finds its GID index.",
    rule="Each active Ethernet port has a GID of type RoCE v2; where pods use the node's network (`host_network`) one "
    "of an IP address, not only of the link.",
    source="Linux kernel documentation, gid_attrs/types",
    fix="Give the rail's interface an IP address, and bring it up; then: ls /sys/class/infiniband/*/ports/1/gid_attrs",
    after=(*REACHED, "node.rdma_ports"),
)
def rdma_gid(one: Machine) -> Finding:
    """GIDs."""
    if one.group is None or one.group.rdma != "roce":
        return one.skip("inventory promises no RoCE here")
    active = [(name, port) for name, port in _of_kind(one) if _word(port["state"]) == "ACTIVE"]
    if not active:
        return one.unproven("NoActivePort", "no Ethernet port is active, whose GIDs could be judged")
    wrong = []
    for name, port in active:
        second = [gid["gid"] for gid in port["gids"] if gid["type"] == "RoCE v2"]
        if not second:
            wrong.append(f"{name}: no RoCE v2")
        elif one.group.host_network and all(gid.startswith("fe80:") for gid in second):
            wrong.append(f"{name}: link-local only")
    if wrong:
        return one.fail("NoRoceV2", "RoCE port has no GID that can be routed", "; ".join(wrong))
    return one.good(f"{len(active)} ports")


@check(
    "node.rdma_firmware",
    title="NICs of one board have one firmware across the group",
    proves="No single node's NICs behave differently from the others'.",
    rule="Among the machines of a group the firmware of each board (board_id) is the same; the minority is named.",
    source="Linux kernel documentation, sysfs-class-infiniband: fw_ver and board_id",
    fix="Bring the firmware together: mlxfwmanager, or the NIC Configuration Operator; it takes a reset of the NIC.",
    avoid="Do not update firmware on a node that runs jobs.",
    after=REACHED,
    tier="node",
)
def rdma_firmware(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """Firmware across a group."""
    usual: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for machine in all_of(expected, evidence).values():
        for device in machine.probe.get("rdma") or ():
            if machine.group is not None and device.get("board_id") and device.get("fw_ver"):
                usual[machine.group.name, device["board_id"]][device["fw_ver"]] += 1

    def judge(one: Machine) -> Finding:
        if one.group is None or one.group.rdma == "none":
            return one.skip(_NONE)
        wrong = []
        for device in one.part("rdma"):
            counts = usual.get((one.group.name, device.get("board_id") or ""))
            if counts and device["fw_ver"] != (most := counts.most_common(1)[0][0]):
                wrong.append(f"{device['device']}: {device['fw_ver']}, most have {most}")
        if wrong:
            cause = "NIC firmware differs from that of the same boards in the group"
            return one.warn("FirmwareDiffers", cause, "; ".join(wrong))
        return one.good(", ".join(sorted({str(device.get("fw_ver")) for device in one.part("rdma")})))

    return each(expected, evidence, judge)


# -- inside -------------------------------------------------------------------------------------------------------


def _of_kind(one: Machine) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The ports of the group's kind, with a name each; raises NotShown."""
    layer = _LAYERS[one.group.rdma] if one.group else ""
    for device in one.part("rdma"):
        if device.get("netdev") in one.cluster.management_nics:
            continue
        for port in device["ports"]:
            if port["link_layer"] == layer:
                yield f"{device['device']}/{port['port']}", port


def _word(text: str | None) -> str:
    """The name of a state such as `4: ACTIVE`."""
    return (text or "").rpartition(":")[2].strip()
