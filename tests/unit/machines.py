"""What machines say, for tests: one that was really probed, and a GPU machine made of it.

probes/machine.json is what a machine of `gpuready rehearse up --ssh-nodes 2` said, and probes/configz.json its kubelet;
they have no GPU. The PCI and RDMA devices of `gpu_machine` are written by hand, as the kernel shows those of an
8-GPU server with InfiniBand.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

Probe = dict[str, Any]
_FOLDER = Path(__file__).parent / "probes"
REAL: Probe = json.loads((_FOLDER / "machine.json").read_text())
CONFIGZ: dict[str, Any] = json.loads((_FOLDER / "configz.json").read_text())
DRIVER = "580.173.02"
RDMA = ("ib_core", "ib_uverbs", "mlx5_ib", "rdma_cm", "rdma_ucm", "ib_umad")
_LIVE = {"topologyManagerPolicy": "restricted", "topologyManagerScope": "pod"}
_OPTIONS = "topologyManagerPolicyOptions:\n  prefer-closest-numa-nodes: 'true'\n"
_DUMP = """version = 3
[plugins.'io.containerd.cri.v1.runtime']
  enable_cdi = true
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
    SystemdCgroup = true
"""


def real_machine() -> Probe:
    """The machine as it was."""
    return copy.deepcopy(REAL)


def gpu_machine() -> Probe:
    """A healthy 8-GPU server, prepared as gpuready prepares one."""
    probe = real_machine()
    config = probe["kubelet"]["config"].replace("cgroupfs", "systemd") + "topologyManagerPolicy: restricted\n"
    probe |= {
        "container": None,
        "virtualization": "none",
        "modules": sorted(("overlay", "nvidia", *RDMA)),
        "pci": [device for index in range(8) for device in _switch(index)],
        "rdma": [_nic(index) for index in range(8)],
        "numa": [{"node": node, "cpus": f"{node}", "memory_kib": 2**30, "free_kib": 2**29} for node in (0, 1)],
        "time": {"ntp": True, "synchronized": True},
        "iommu": {"groups": 0, "units": []},
    }
    probe["sysctl"] |= {"fs.inotify.max_user_instances": "8192", "fs.inotify.max_user_watches": "524288"}
    probe["driver"] |= {"nvidia": DRIVER, "open": True, "dmabuf": True, "nvswitches": 4}
    probe["cpu"]["governors"] = {"performance": 2}
    probe["memory"]["hugepages"]["2048"] = {"count": 16, "free": 16}
    probe["os"]["cmdline"] += " iommu=pt"
    probe["packages"] |= {"kernels": ["linux-image-6.1.0-40-amd64"], "held": ["linux-image-6.1.0-40-amd64"]}
    for unit in ("kubelet", "containerd"):
        probe["units"][unit]["memlock"] = "infinity"
    probe["units"]["chrony"] = {"active": "active"}
    probe["files"] |= {"/etc/modules-load.d/90-gpuready.conf": "\n".join(("overlay", *RDMA))}
    probe["kubelet"]["config"] = config + "topologyManagerScope: pod\n" + _OPTIONS
    probe["containerd"] |= {"version": "2.1.4", "config": "version = 3\n", "dump": _DUMP}
    return probe


def configz(**changes: Any) -> str:
    """What the running kubelet of `gpu_machine` says."""
    config = {**CONFIGZ["kubeletconfig"], **_LIVE, "cgroupDriver": "systemd"}
    config["topologyManagerPolicyOptions"] = {"prefer-closest-numa-nodes": "true"}
    return json.dumps({"kubeletconfig": {**config, **changes}})


def _switch(index: int) -> list[dict[str, Any]]:
    """A GPU and a NIC below one switch."""
    bus = f"0000:{index + 1:x}"
    common = {
        "numa_node": index // 4,
        "iommu_group": None,
        "iommu_type": None,
        "vfs": None,
        "link_speed": "32.0 GT/s PCIe",
        "link_speed_max": "32.0 GT/s PCIe",
        "link_width": 16,
        "link_width_max": 16,
        "acs": None,
        "ats": None,
        "relaxed_ordering": True,
        "max_read_request_bytes": 4096,
    }
    off = {"capability": 0x1F, "control": 0}
    root, port, other = f"{bus}0:00.0", f"{bus}1:00.0", f"{bus}1:01.0"

    def device(address: str, kind: str, vendor: str, number: str, driver: str, *bridges: str) -> dict[str, Any]:
        ids = {"address": address, "class": kind, "vendor": vendor, "device": number, "driver": driver}
        return {**common, **ids, "bridges": list(bridges)}

    return [
        *({**device(one, "0x060400", "0x1000", "0xc030", "pcieport"), "acs": off} for one in (root, port, other)),
        device(f"{bus}2:00.0", "0x030200", "0x10de", "0x2330", "nvidia", root, port),
        device(f"{bus}3:00.0", "0x020700", "0x15b3", "0x1021", "mlx5_core", root, other),
    ]


def _nic(index: int) -> dict[str, Any]:
    gids = [
        {"index": 0, "type": "IB/RoCE v1", "gid": "fe80:0000:0000:0000:0000:0000:0000:0001"},
        {"index": 3, "type": "RoCE v2", "gid": "0000:0000:0000:0000:0000:ffff:c0a8:0101"},
    ]
    port = {
        "port": 1,
        "state": "4: ACTIVE",
        "phys_state": "5: LinkUp",
        "rate": "400 Gb/sec (4X NDR)",
        "link_layer": "InfiniBand",
        "gids": gids,
    }
    ids = {"device": f"mlx5_{index}", "board_id": "MT_0000000838", "fw_ver": "28.43.2026"}
    return {**ids, "pci": f"0000:{index + 1:x}3:00.0", "netdev": f"ibs{index}", "ports": [port]}
