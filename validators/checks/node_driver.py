"""What a driver finds on a machine: one owner, and nothing in its way."""

from __future__ import annotations

from ..machines import Machine, machine_check
from ..model import Finding
from .node_access import REACHED

NO_GPU = "it has no NVIDIA GPU, and is promised none"


def has_gpus(one: Machine) -> bool:
    """Whether it has GPUs, or should have: then a driver matters."""
    return bool(one.gpus) or (one.group is not None and one.group.gpus > 0)


@machine_check(
    "node.nouveau",
    title="nouveau does not hold the GPUs",
    proves="NVIDIA's driver can take the GPUs.",
    rule="nouveau is not loaded on a machine with NVIDIA GPUs.",
    source="NVIDIA driver installation guide",
    fix="Blacklist it in /etc/modprobe.d, rebuild the initial RAM disk, boot; pyinfra inventory deploys/gpu.py does "
    "so.",
    after=REACHED,
)
def nouveau(one: Machine) -> Finding:
    """nouveau."""
    if not has_gpus(one):
        return one.skip(NO_GPU)
    if one.part("driver")["nouveau"]:
        return one.fail("NouveauLoaded", "nouveau is loaded and holds the GPUs", observed="nouveau")
    return one.good()


@machine_check(
    "node.driver_owner",
    title="the driver has one owner, the one of inventory",
    proves="Operator and host do not install drivers over each other.",
    rule="With `driver_owner` operator the host has no nvidia-smi of its own; with host it has one.",
    source="GPU Operator documentation, pre-installed drivers",
    fix="Remove the driver of one of both, or set `driver_owner` in inventory to who has it.",
    avoid="Do not remove a driver under running GPU pods; drain the node.",
    after=REACHED,
)
def driver_owner(one: Machine) -> Finding:
    """Owners."""
    if one.settings is None or not has_gpus(one):
        return one.skip(NO_GPU if one.settings else "no inventory says who owns the driver")
    owner, on_host = one.cluster.driver_owner, bool(one.part("driver")["on_host"])
    if owner == "operator" and on_host:
        cause = "host has a driver of its own, and the operator installs another"
        return one.fail("TwoOwners", cause, "/usr/bin/nvidia-smi", expected="operator", observed="host")
    if owner == "host" and not on_host:
        cause = "no driver is installed on the host, which owns it"
        return one.fail("NoOwner", cause, expected="host", observed="no nvidia-smi on the host")
    return one.good(owner)


@machine_check(
    "node.secure_boot",
    title="Secure Boot does not keep the driver out",
    proves="A driver that is built in its container loads.",
    rule="Where the operator owns the driver, Secure Boot is off or the driver is loaded all the same (signed).",
    source="GPU Operator documentation, precompiled drivers",
    fix="Use precompiled, signed drivers, or turn Secure Boot off in the firmware.",
    after=REACHED,
)
def secure_boot(one: Machine) -> Finding:
    """Secure Boot."""
    if one.container or not has_gpus(one):
        return one.skip("a container cannot see the firmware" if one.container else NO_GPU)
    if one.part("machine")["secure_boot"] is not True:
        return one.good("off")
    if one.part("driver")["nvidia"]:
        return one.good("on, and the driver is loaded")
    if one.cluster.driver_owner == "host":
        return one.warn("SecureBoot", "Secure Boot is on and no driver is loaded", "the host's must be signed")
    return one.fail("SecureBoot", "Secure Boot keeps the operator's driver from loading", observed="on")
