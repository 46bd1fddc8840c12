"""Where the Linux distributions differ, as data."""

from __future__ import annotations

from dataclasses import dataclass

from gpuready.charts_values.errors import RefusedError

from .facts import NodeFacts


@dataclass(frozen=True)
class System:
    """One family. ``install`` installs ``{package}``; the first of ``time_units`` that is there is used, and where none
    is, package chrony brings ``chrony``.

    ``grub_update`` makes the kernel's arguments take effect: those in ``grub_drop_in`` or, where it is empty, those it
    is given with ``--args`` and ``--remove-args``.
    """

    title: str
    package_manager: str
    install: str
    kubelet_environment: str
    initramfs: str
    time_units: tuple[str, ...]
    chrony: str
    grub_update: str
    grub_drop_in: str = ""


_DEBIAN = System(
    title="Debian",
    package_manager="apt",
    install="apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q {package}",
    kubelet_environment="/etc/default/kubelet",
    initramfs="update-initramfs -u -k all",
    time_units=("systemd-timesyncd", "chrony", "ntpd"),
    chrony="chrony",
    grub_update="update-grub",
    grub_drop_in="/etc/default/grub.d/90-gpuready.cfg",
)
_RHEL = System(
    title="RHEL",
    package_manager="dnf",
    install="dnf install -y -q {package}",
    kubelet_environment="/etc/sysconfig/kubelet",
    initramfs="dracut --force --regenerate-all",
    time_units=("chronyd",),
    chrony="chronyd",
    grub_update="grubby --update-kernel=ALL",
)
# What gpuready is written for; others of the same family are taken as such, and said to be.
_KNOWN = {
    "debian": ("12", "13"),
    "ubuntu": ("22.04", "24.04"),
    "rhel": ("9",),
    "rocky": ("9",),
    "almalinux": ("9",),
    "centos": ("9",),
}


def system_of(facts: NodeFacts) -> tuple[System, str]:
    """The distribution of a node, and a note where its version is none that gpuready is written for.

    Raises RefusedError for a family that it does not know.
    """
    names = (facts.os_id, *facts.os_like)
    if facts.os_id in _KNOWN:
        version = facts.os_version.split(".")[0] if facts.os_id != "ubuntu" else facts.os_version
        known = version in _KNOWN[facts.os_id]
    else:
        known = False
    if any(name in ("debian", "ubuntu") for name in names):
        system = _DEBIAN
    elif any(name in ("rhel", "fedora", "centos", "rocky", "almalinux") for name in names):
        system = _RHEL
    else:
        raise RefusedError(
            f"node {facts.name}: {facts.os_id or 'its system'} is neither of the Debian nor of the RHEL family; "
            "prepare it yourself and leave it out of `ssh_nodes`"
        )
    if known:
        return system, ""
    return system, f"{facts.name}: {facts.os_id} {facts.os_version} is untried; it is treated as {system.title}"
