"""GPUs, NICs and their driver on a machine that has none: trees of files, mounted over what its kernel shows.

The probe reads /sys and /proc of the machine as it does everywhere; only what lies there is played. Programs of the
driver are scripts, its fabric manager a unit of systemd.
"""

from __future__ import annotations

import base64
import io
import tarfile
from typing import Any

HOME = "/run/hardware"
DRIVER = "580.173.02"
RAILS = ("net.ipv4.conf.all.arp_ignore=1", "net.ipv4.conf.all.arp_announce=2", "net.ipv4.conf.all.rp_filter=2")
GPU, NIC = "{0}2:00.0", "{0}3:00.0"
FABRIC_MANAGER = "nvidia-fabricmanager.service"
_BUSES = ("0000:1", "0000:2")
_PAGES = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"
# Where each part of the tree is seen.
_MOUNTS = {
    "infiniband": "/sys/class/infiniband",
    "module": "/sys/module",
    "pci": "/sys/bus/pci/devices",
    "node": "/sys/devices/system/node",
    "driver": "/proc/driver",
    "kallsyms": "/proc/kallsyms",
    "nr_hugepages": _PAGES,
}
# Kernels without modules do not have it.
_LIST = "/proc/modules"
# modprobe and rmmod, as far as the kernel tells of them.
LOAD, UNLOAD = f"{HOME}/load", f"{HOME}/unload"
_LOAD = f"""#!/bin/sh
mkdir -p {HOME}/module/$1
echo live > {HOME}/module/$1/initstate
echo "$1 16384 0 - Live 0x0000000000000000" >> {HOME}/modules
"""
_UNLOAD = f"""#!/bin/sh
rm -r {HOME}/module/$1
sed "/^$1 /d" {HOME}/modules > {HOME}/others
cat {HOME}/others > {HOME}/modules
"""
# A containerd that knows CDI: the newer version and the one key are played, the rest is its own.
_CONTAINERD = f"""#!/bin/sh
case "$*" in
--version) echo 'containerd played v1.7.27 0' ;;
'config dump') /usr/bin/containerd config dump |
    sed '/^ *\\[plugins."io.containerd.grpc.v1.cri"\\]$/a enable_cdi = '"$(cat {HOME}/cdi)" ;;
*) exec /usr/bin/containerd "$@" ;;
esac
"""
_PROGRAMS = {
    "/usr/bin/nvidia-smi": "#!/bin/sh\nexit 9\n",
    "/usr/local/bin/nv-fabricmanager": f"#!/bin/sh\necho 'Fabric Manager version is : {DRIVER}'\n",
    "/usr/local/bin/containerd": _CONTAINERD,
}


def promise(names: tuple[str, ...]) -> dict[str, Any]:
    """What an inventory entry says of machines with this hardware."""
    group = {
        "nodes": list(names),
        "gpu_product": "NVIDIA-H100-80GB-HBM3",
        "resources": {"nvidia.com/gpu": 2, "rdma/rdma_shared_device_a": 63},
        "rdma": "roce",
        "host_network": True,
        "nics": 2,
        "nic_gbits_s": 400,
        "node": {"hugepages": {"2Mi": 16}},
    }
    owners = {"driver_owner": "host", "driver_version": DRIVER, "ofed_owner": "operator", "dra": "off"}
    return {"groups": {"played": group}, **owners}


def show() -> str:
    """The command that puts it there; run as root."""
    lines = ["set -e", f"mkdir -p {HOME}", f"base64 -d <<'END' | tar -xzf - -C {HOME}", _packed(), "END"]
    lines += [
        f"mount -t overlay -o ro,lowerdir={HOME}/class:/sys/class overlay /sys/class",
        # systemd-nspawn leaves it out of the /sys that it mounts, read-only.
        "test -d /sys/module || { mount -o remount,bind,rw /sys; mkdir /sys/module; mount -o remount,bind,ro /sys; }",
        f"! test -e {_LIST} || cat {_LIST} > {HOME}/modules",
        f"chmod 755 {LOAD} {UNLOAD} && {LOAD} nvidia && {LOAD} nvidia_peermem",
        f"! test -e {_LIST} || mount --bind {HOME}/modules {_LIST}",
        *(f"mount --bind {HOME}/{name} {path}" for name, path in _MOUNTS.items()),
    ]
    lines += [f"install -m 755 {HOME}/programs{path} {path}" for path in _PROGRAMS]
    lines += [
        f"printf '[Service]\\nExecStart=/bin/sleep infinity\\n' > /run/systemd/system/{FABRIC_MANAGER}",
        f"systemctl daemon-reload && systemctl start {FABRIC_MANAGER}",
        "touch /dev/nvidia-nvswitch0",
        f"sysctl {' '.join(one.partition('=')[0] for one in RAILS)} > {HOME}/sysctl",
        f"sysctl -q -w {' '.join(RAILS)}",
    ]
    return "\n".join(lines)


def hide() -> str:
    """The command that takes it away again, also where it came half way."""
    mounts = ["/sys/class", _LIST, *_MOUNTS.values()]
    lines = [f"umount {path} 2> /dev/null || true" for path in reversed(mounts)]
    lines += [
        f"rm -f /dev/nvidia-nvswitch0 {' '.join(_PROGRAMS)}",
        f"systemctl stop {FABRIC_MANAGER} 2> /dev/null || true",
        f"rm -f /run/systemd/system/{FABRIC_MANAGER} && systemctl daemon-reload",
        f"! test -e {HOME}/sysctl || sysctl -q -p {HOME}/sysctl",
        f"rm -rf {HOME}",
    ]
    return "\n".join(lines)


# -- the tree --------------------------------------------------------------------------------------------------------


def _packed() -> str:
    """The tree as text that a shell can unpack."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name in ("class/infiniband", "pci"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        for name, text in _files().items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(text.encode()), 0o644
            tar.addfile(entry, io.BytesIO(text.encode()))
        for name, target in _links().items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            tar.addfile(entry)
    return base64.encodebytes(out.getvalue()).decode().strip()


def _files() -> dict[str, str]:
    found = {
        "module/nvidia/version": f"{DRIVER}\n",
        "load": _LOAD,
        "unload": _UNLOAD,
        "modules": "",
        "driver/nvidia/version": f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {DRIVER}\n",
        "kallsyms": "0000000000000000 T nothing\n",
        "nr_hugepages": "16\n",
        "cdi": "true\n",
    }
    for index, bus in enumerate(_BUSES):
        found[f"node/node{index}/cpulist"] = f"{index}\n"
        found[f"node/node{index}/meminfo"] = f"Node {index} MemTotal: 8388608 kB\nNode {index} MemFree: 4194304 kB\n"
        for address, device in _devices(bus).items():
            found |= {f"{_place(bus, address)}/{key}": f"{value}\n" for key, value in device.items()}
            if device["class"] != "0x060400":
                found[f"{_place(bus, address)}/numa_node"] = f"{index}\n"
        found |= {f"infiniband/mlx5_{index}/{key}": f"{value}\n" for key, value in _port(index).items()}
    found |= {f"programs{path}": text for path, text in _PROGRAMS.items()}
    return found


def _links() -> dict[str, str]:
    found = {}
    for index, bus in enumerate(_BUSES):
        for address in _devices(bus):
            found[f"pci/{address}"] = f"{HOME}/{_place(bus, address)}"
        found[f"infiniband/mlx5_{index}/device"] = f"{HOME}/{_place(bus, NIC.format(bus))}"
    return found


def _devices(bus: str) -> dict[str, dict[str, str]]:
    """A root port, a switch with two ports, and a GPU and a NIC below them."""
    link = {
        "current_link_speed": "32.0 GT/s PCIe",
        "max_link_speed": "32.0 GT/s PCIe",
        "current_link_width": "16",
        "max_link_width": "16",
    }
    bridge = {"class": "0x060400", "vendor": "0x1000", "device": "0xc030"}
    gpu = {"class": "0x030200", "vendor": "0x10de", "device": "0x2330", **link}
    nic = {"class": "0x020700", "vendor": "0x15b3", "device": "0x1021", **link}
    bridges = dict.fromkeys((f"{bus}0:00.0", f"{bus}1:00.0", f"{bus}1:01.0"), bridge)
    return {**bridges, GPU.format(bus): gpu, NIC.format(bus): nic}


def _place(bus: str, address: str) -> str:
    """Where a device lies: sysfs tells by the path which bridges are above it."""
    root, above = f"{bus}0:00.0", {GPU.format(bus): f"{bus}1:00.0", NIC.format(bus): f"{bus}1:01.0"}
    parents = [] if address == root else [root, *([above[address]] if address in above else [])]
    return "/".join(("devices", *parents, address))


def _port(index: int) -> dict[str, str]:
    return {
        "board_id": "MT_0000000838",
        "fw_ver": "28.43.2026",
        "ports/1/state": "4: ACTIVE",
        "ports/1/phys_state": "5: LinkUp",
        "ports/1/rate": "400 Gb/sec (4X NDR)",
        "ports/1/link_layer": "Ethernet",
        "ports/1/gids/0": "fe80:0000:0000:0000:0000:0000:0000:0001",
        "ports/1/gids/1": f"0000:0000:0000:0000:0000:ffff:c0a8:{index + 1:02x}01",
        "ports/1/gid_attrs/types/0": "RoCE v2",
        "ports/1/gid_attrs/types/1": "RoCE v2",
    }
