"""A bare machine as its facts, a cluster for it, and the plan that comes of both; for the tests of the plans."""

from __future__ import annotations

import dataclasses
from typing import Any

from gpuready.charts_values import inventory, node_settings
from gpuready.charts_values.inventory import Cluster
from gpuready.deploys.nodes import machine, preparation
from gpuready.deploys.nodes.facts import Containerd, Kubelet, NodeFacts, Numa
from gpuready.deploys.nodes.plan import NodePlan

GIB = 2**20  # in KiB
CONFIG = """version = 2
# ours
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.k8s.io/pause:3.10"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
"""
DUMP = CONFIG.replace('"registry.k8s.io/pause:3.10"', '"registry.k8s.io/pause:3.10"\n  enable_cdi = false')
# What containerd 2 shows of itself where nobody has set anything.
DUMP_2 = """version = 3
[plugins]
  [plugins.'io.containerd.cri.v1.runtime']
    enable_cdi = true
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
      SystemdCgroup = true
"""
BARE = NodeFacts(
    name="gpu-0",
    os_id="ubuntu",
    os_version="24.04",
    kernel="6.8.0-60-generic",
    cmdline="BOOT_IMAGE=/vmlinuz root=/dev/sda1 ro quiet",
    online=tuple(range(8)),
    cores=tuple((cpu,) for cpu in range(8)),
    governors={"schedutil": 8},
    numa=(Numa(0, tuple(range(8)), 64 * GIB),),
    memory_kib=64 * GIB,
    available_kib=60 * GIB,
    swaps=("/swap.img",),
    sysctl={
        "net.ipv4.ip_forward": "0",
        "fs.inotify.max_user_instances": "128",
        "fs.inotify.max_user_watches": "1000000",
        "kernel.numa_balancing": "1",
    },
    modules=frozenset({"overlay"}),
    units={"chrony": {"load": "loaded", "active": "inactive", "enabled": "disabled"}},
    package_manager="apt",
    kernels=("linux-image-6.8.0-60-generic", "linux-image-generic"),
    containerd=Containerd(version="1.7.27", config=CONFIG, dump=DUMP),
    kubelet=Kubelet(version="v1.35.4"),
    files={
        "/etc/default/grub": "GRUB_CMDLINE_LINUX=\n",
        machine.FSTAB: "UUID=1 / ext4 defaults 0 1\n/swap.img none swap sw 0 0\n",
    },
)
GROUP = {"nodes": ["gpu-0"], "gpu_product": "NVIDIA-H100-80GB-HBM3", "resources": {"nvidia.com/gpu": 8}}
IB: dict[str, Any] = {**GROUP, "rdma": "ib", "nics": 8, "resources": {"nvidia.com/gpu": 8, "rdma/hca": 8}}
GPU = {"class": "0x030200", "vendor": "0x10de", "address": "0000:18:00.0", "numa_node": 0}
BRIDGE = {"class": "0x060400", "vendor": "0x1000", "address": "0000:16:00.0", "acs": {"capability": 31, "control": 29}}


def cluster(group: dict[str, Any] | None = None, node: dict[str, Any] | None = None, **changes: Any) -> Cluster:
    entry = {
        "pod_cidr": "10.244.0.0/16",
        "service_cidr": "10.96.0.0/16",
        "driver_version": "580.95.05",
        "groups": {"h100": group or GROUP},
        "node": node or {},
        **changes,
    }
    return inventory.parse("lab", entry)


def facts(**changes: Any) -> NodeFacts:
    return dataclasses.replace(BARE, **changes)


def plan(seen: NodeFacts = BARE, node: dict[str, Any] | None = None, **more: Any) -> NodePlan:
    made = cluster(node=node, **more)
    return preparation.plan(made, made.groups[0], seen, None)


def titles(made: NodePlan) -> list[str]:
    return [one.title for one in made.steps if one.needed]


def content(made: NodePlan, path: str) -> str:
    (found,) = [one for one in (*made.files, *made.disruption.files) if one.path == path]
    return found.content or ""


RDMA = frozenset({"ib_core", "ib_uverbs", "mlx5_ib", "rdma_cm", "rdma_ucm", "ib_umad"})


def settled(made: NodePlan, seen: NodeFacts) -> NodeFacts:
    """The node as it is found after everything was done, and after a reboot."""
    written = {one.path: one.content for one in (*made.files, *made.disruption.files)}
    config = written.get(seen.containerd.config_file, seen.containerd.config) or ""
    return dataclasses.replace(
        seen,
        files={**seen.files, **written},
        swaps=(),
        governors={"performance": 8},
        held=seen.kernels,
        modules=seen.modules
        | set(node_settings.modules(preparation.settings_of(cluster(), None), None, "inbox"))
        | RDMA,
        sysctl={
            **seen.sysctl,
            **dict(line.split(" = ") for line in content(made, machine.SYSCTL_FILE).splitlines()[1:]),
        },
        units={
            "chrony": {"load": "loaded", "active": "active", "enabled": "enabled"},
            **{name: {"enabled": "enabled"} for name in ("gpuready-swap-off", "gpuready-cpu-governor", "gpuready-acs")},
        },
        cmdline=f"{seen.cmdline} iommu=pt",
        versions={"pciutils": "1:3.10"},
        pci=tuple({**one, "acs": None} for one in seen.pci),
        containerd=dataclasses.replace(
            seen.containerd, config=config, dump=config if "enable_cdi" in config else seen.containerd.dump
        ),
        kubelet=dataclasses.replace(
            seen.kubelet,
            environment={path: text or "" for path, text in written.items() if path == "/etc/default/kubelet"},
            drop_ins={path: text or "" for path, text in written.items() if path.endswith("50-gpuready.conf")},
        ),
    )
