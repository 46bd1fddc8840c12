"""Faults of machines, one row each: how it is made over SSH and undone, and what `gpuready check` must say of it.

    python -m tests.nodes.faults > docs/reference/node-faults.md

writes the page that shows them. Every check of the group `node` is in FAULTS or in NOT_MADE.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from . import hardware

KEPT = "/root/kept.tar"
# What the faults change, put back by `kept`.
TOUCHED = (
    "etc/fstab",
    "etc/containerd/config.toml",
    "var/lib/kubelet/config.yaml",
    "var/lib/kubelet/kubeadm-flags.env",
)
KEEP = f"tar -C / -cf {KEPT} {' '.join(TOUCHED)}"
_CONFIG = "/var/lib/kubelet/config.yaml"
_LIMIT = "/run/systemd/system/containerd.service.d/99-fault.conf"
_GPU, _NIC = (f"{hardware.HOME}/pci/{one.format('0000:1')}" for one in (hardware.GPU, hardware.NIC))
_PORT = f"{hardware.HOME}/infiniband/mlx5_0/ports/1"


@dataclass(frozen=True)
class Fault:
    """One fault. ``title`` is what is wrong, ``make`` and ``undo`` are root's commands on the machine.

    ``also`` are checks that complain besides: of what the fault brings with it. ``status`` is two where it depends on
    what inventory promises. ``played`` ones need the hardware of hardware.py. ``kubelet`` says that it stands still or
    was started again, so that its answer must be awaited.
    """

    check: str
    title: str
    reason: str
    make: str
    undo: str
    status: str = "fail"
    also: tuple[str, ...] = ()
    played: bool = False
    kubelet: str = ""


def kept(path: str) -> str:
    """The command that puts a file back."""
    return f"tar -C / -xf {KEPT} {path.lstrip('/')}"


def _file(path: str, text: str) -> str:
    return f"mkdir -p {path.rpartition('/')[0]} && printf '%s\\n' {text!r} > {path}"


def _played(check: str, title: str, reason: str, make: str, undo: str, status: str = "fail", *also: str) -> Fault:
    return Fault(check, title, reason, make, undo, status, also, played=True)


def _write(path: str, fault: str, healthy: str) -> tuple[str, str]:
    """How a file of the played hardware is spoilt and mended, in place, as it is mounted."""
    return f"echo '{fault}' > {path}", f"echo '{healthy}' > {path}"


MADE = (
    Fault(
        "node.reachable",
        "its user may not use sudo without a password",
        "SshRefused",
        "mv /etc/sudoers.d/ops /root/ops.sudoers",
        "mv /root/ops.sudoers /etc/sudoers.d/ops",
        "unproven",
        also=("node.*",),
    ),
    Fault(
        "node.joined_once",
        "traces of k3s beside those of kubeadm",
        "JoinedTwice",
        "mkdir -p /etc/rancher/node && touch /etc/rancher/node/password",
        "rm -r /etc/rancher",
    ),
    Fault(
        "node.disk",
        "the kubelet's file system is full, and the kubelet down",
        "DiskFull",
        "systemctl stop kubelet && mkdir /run/full && mount -t tmpfs -o size=16m tmpfs /run/full && "
        "cp -a /var/lib/kubelet/. /run/full/ && mount --bind /run/full /var/lib/kubelet && "
        "{ head -c 32M /dev/zero > /var/lib/kubelet/fill 2> /dev/null || true; }",
        "umount /var/lib/kubelet /run/full; rmdir /run/full; systemctl start kubelet",
        also=("node.kubelet_restart",),
        kubelet="stopped",
    ),
    Fault(
        "node.modules",
        "a promised module is not in gpuready's file for the boot",
        "ModuleForgotten",
        "cp /etc/modules-load.d/90-gpuready.conf /root/modules 2> /dev/null; "
        "echo loop > /etc/modules-load.d/90-gpuready.conf",
        "mv /root/modules /etc/modules-load.d/90-gpuready.conf 2> /dev/null || rm /etc/modules-load.d/90-gpuready.conf",
        "warn",
    ),
    Fault(
        "node.sysctl",
        "the kernel forwards no packets",
        "SysctlDiffers",
        "sysctl -q -w net.ipv4.ip_forward=0",
        "sysctl -q -w net.ipv4.ip_forward=1",
    ),
    Fault(
        "node.limits",
        "a drop-in gives containerd little lockable memory",
        "LimitDiffers",
        f"{_file(_LIMIT, '[Service]')} && echo LimitMEMLOCK=64K >> {_LIMIT} && systemctl daemon-reload",
        f"rm {_LIMIT} && systemctl daemon-reload",
    ),
    Fault(
        "node.swap",
        "fstab turns swap on at the next boot",
        "SwapAtBoot",
        "echo '/swapfile none swap sw 0 0' >> /etc/fstab",
        kept("/etc/fstab"),
        "warn",
    ),
    Fault(
        "node.containerd_version",
        "a drop-in of containerd is of another version than its file",
        "VersionsDiffer",
        _file("/etc/containerd/conf.d/99-nvidia.toml", "version = 3"),
        "rm -r /etc/containerd/conf.d",
    ),
    Fault(
        "node.containerd_version",
        "containerd's file is no TOML any more",
        "ConfigUnreadable",
        "echo '[plugins' >> /etc/containerd/config.toml",
        kept("/etc/containerd/config.toml"),
        also=("node.cgroup_driver",),
    ),
    Fault(
        "node.cgroup_driver",
        "containerd uses systemd's control groups, the kubelet does not",
        "DriverDiffers",
        "sed -i 's/SystemdCgroup = false/SystemdCgroup = true/' /etc/containerd/config.toml",
        kept("/etc/containerd/config.toml"),
    ),
    Fault(
        "node.kubelet_restart",
        "the kubelet's file was edited, the kubelet not restarted",
        "NotRestarted",
        f"echo 'maxPods: 111' >> {_CONFIG}",
        kept(_CONFIG),
    ),
    Fault(
        "node.kubelet_restart",
        "another policy of CPU Manager beside the old state file, and a kubelet that does not start",
        "StateDiffers",
        f"printf 'cpuManagerPolicy: static\\nreservedSystemCPUs: \"0\"\\n' >> {_CONFIG} && "
        "systemctl restart kubelet && sleep 0.5",
        f"{kept(_CONFIG)} && systemctl restart kubelet",
        kubelet="stopped",
    ),
    Fault(
        "node.kubelet_policy",
        "a flag gives the kubelet another policy of Topology Manager",
        "PolicyDiffers",
        "sed -i 's/\"$/ --topology-manager-policy=single-numa-node\"/' /var/lib/kubelet/kubeadm-flags.env && "
        "systemctl restart kubelet",
        f"{kept('/var/lib/kubelet/kubeadm-flags.env')} && systemctl restart kubelet",
        kubelet="restarted",
    ),
    Fault(
        "node.cpu_manager",
        "CPU Manager static without a reservation, in the kubelet's file",
        "NoReservation",
        f"sed -i '/^cpuManagerPolicy:/d' {_CONFIG} && echo 'cpuManagerPolicy: static' >> {_CONFIG}",
        kept(_CONFIG),
        also=("node.kubelet_restart",),
    ),
    Fault(
        "node.memory_manager",
        "reserved memory that does not add up, in the kubelet's file",
        "MemorySum",
        f"printf 'memoryManagerPolicy: Static\\nreservedMemory: [{{numaNode: 0, limits: {{memory: 1Gi}}}}]\\n' "
        f">> {_CONFIG}",
        kept(_CONFIG),
        also=("node.kubelet_restart",),
    ),
    Fault(
        "node.fabric_manager",
        "the fabric manager was stopped",
        "NotRunning",
        f"systemctl stop {hardware.FABRIC_MANAGER}",
        f"systemctl start {hardware.FABRIC_MANAGER}",
        played=True,
    ),
    Fault(
        "node.driver_owner",
        "the host owns the driver, and has none installed",
        "NoOwner",
        "mv /usr/bin/nvidia-smi /root/",
        "mv /root/nvidia-smi /usr/bin/",
        played=True,
    ),
)
PLAYED = (
    _played(
        "node.containerd_cdi", "CDI is off in containerd", "CdiOff", *_write(f"{hardware.HOME}/cdi", "false", "true")
    ),
    _played(
        "node.hugepages",
        "half of the promised hugepages",
        "HugepagesDiffer",
        *_write(f"{hardware.HOME}/nr_hugepages", "8", "16"),
    ),
    _played(
        "node.gpus_on_pci",
        "a GPU is gone from the bus",
        "GpusLacking",
        f"mv {_GPU} {hardware.HOME}/away",
        f"mv {hardware.HOME}/away {_GPU}",
    ),
    _played(
        "node.numa",
        "a NIC does not know its NUMA node",
        "NoNuma",
        *_write(f"{_NIC}/numa_node", "-1", "0"),
        "fail or warn",
    ),
    _played(
        "node.pcie_link",
        "a GPU has half of its lanes",
        "LinkDegraded",
        *_write(f"{_GPU}/current_link_width", "8", "16"),
    ),
    _played(
        "node.nouveau",
        "nouveau is loaded",
        "NouveauLoaded",
        f"{hardware.LOAD} nouveau",
        f"{hardware.UNLOAD} nouveau",
    ),
    _played(
        "node.driver_version",
        "another driver is loaded than promised",
        "VersionDiffers",
        *_write(f"{hardware.HOME}/module/nvidia/version", "570.86.15", hardware.DRIVER),
        "fail",
        "node.fabric_manager",
    ),
    _played(
        "node.gdr",
        "no nvidia_peermem, and no DMA-BUF",
        "NoWay",
        f"{hardware.UNLOAD} nvidia_peermem",
        f"{hardware.LOAD} nvidia_peermem",
    ),
    _played("node.rdma_ports", "an RDMA port is down", "PortsDown", *_write(f"{_PORT}/state", "1: DOWN", "4: ACTIVE")),
    _played(
        "node.rdma_gid",
        "a RoCE port has no GID of an IP address",
        "NoRoceV2",
        *_write(
            f"{_PORT}/gids/1", "0000:0000:0000:0000:0000:0000:0000:0000", "0000:0000:0000:0000:0000:ffff:c0a8:0101"
        ),
    ),
    _played(
        "node.rdma_firmware",
        "one NIC has older firmware than the same boards",
        "FirmwareDiffers",
        *_write(f"{hardware.HOME}/infiniband/mlx5_0/fw_ver", "28.39.1002", "28.43.2026"),
        "warn",
    ),
)
FAULTS = (*MADE, *PLAYED)
_HOSTS = "a container has its host's"
NOT_MADE = {
    "node.inotify": f"{_HOSTS} limits, and is not judged",
    "node.time": f"{_HOSTS} clock, and is not judged",
    "node.governor": f"{_HOSTS} CPUs, and is not judged",
    "node.kernel_held": f"{_HOSTS} kernel, and no kernel package of its own",
    "node.kernel_arguments": f"{_HOSTS} kernel, and no command line of its own",
    "node.secure_boot": "a container cannot see the firmware",
    "node.acs": "judged on bare metal alone: a container leaves ACS to its host",
    "node.iommu": "judged on bare metal alone: a container leaves the IOMMU to its host",
}


def markdown() -> str:
    """The page docs/reference/node-faults.md."""
    checks = len({one.check for one in FAULTS})
    lines = [
        "# Faults made on machines",
        "",
        "<!-- Written by: python -m tests.nodes.faults > docs/reference/node-faults.md -->",
        "",
        "What checks say of a node is proven on machines: systemd-nspawn containers with sshd, containerd and a real",
        "kubelet (`gpuready rehearse up --ssh-nodes 2`). For each row the fault is made on one of two machines over",
        "SSH, both are probed, and the check must name that machine with this reason, while the other stays silent;",
        "then the fault is undone, and nothing is said any more.",
        "",
        f"{checks} of the {checks + len(NOT_MADE)} checks of the group `node` have such a fault. *Played* means",
        "that the machine lacks such hardware: files that tell of it are mounted over /sys and /proc, where the probe",
        "reads, and the fault is a change there. This proves probe and judgement, not hardware.",
        "",
        "| check | fault | finding | made on the machine |",
        "|---|---|---|---|",
        *(f"| `{one.check}` | {one.title} | {one.status}, {one.reason} | {_way(one)} |" for one in FAULTS),
        "",
        "These have none, as a machine of the rehearsal shares the kernel of its host; they are proven on recorded",
        "probes alone:",
        "",
        "| check | why |",
        "|---|---|",
        *(f"| `{check}` | {why} |" for check, why in NOT_MADE.items()),
        "",
    ]
    return "\n".join(lines)


def _way(one: Fault) -> str:
    return "played" if one in PLAYED else ("yes, beside played hardware" if one.played else "yes")


if __name__ == "__main__":
    sys.stdout.write(markdown())
