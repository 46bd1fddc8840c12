#!/usr/bin/env python3
# It runs on nodes with Python 3.6, which newer ways of writing do not know; types are told by the schema.
# mypy: ignore-errors
# ruff: noqa: PTH110, PTH112, PTH115, PTH118, PTH119, PTH123, PTH207, PTH208, UP031, RUF005, SIM102, SIM105
"""Prints what a node is, as JSON: `gpuready probe`, over SSH, in a pod, or copied there by hand.

One file, standard library only, Python 3.6 and newer, read-only. Each part is read by itself: one that cannot be
read is null, and ``errors`` says why; it also says where a command gave no answer in time, which the part then lacks.
Values are as the kernel and the files say them; nothing is judged here.

Schema 1 (units in the names; null where the node does not show it):

- ``schema``, ``host``, ``root`` (read as root?), ``seconds``, ``utc`` (RFC 3339), ``errors`` {part: text}
- ``os``: id, version_id, id_like, pretty_name, kernel, arch, cmdline, cgroup (1 or 2), boot_id, uptime_s
- ``virtualization``: as systemd-detect-virt names it ("none" on bare metal); ``container`` where there is one
- ``machine``: vendor, product, bios, secure_boot (true, false, null: no EFI variable)
- ``cpu``: online ("0-127"), model, sockets, threads_per_core, cores [[cpus of a core]...], governors {name: cpus}
- ``numa``: [{node, cpus, memory_kib, free_kib}]
- ``memory``: total_kib, available_kib, swaps [{device, size_kib, used_kib}], hugepages {size_kib: {count, free}},
  transparent_hugepages
- ``pci``: NVIDIA and Mellanox functions, other display and RDMA-capable network functions, and every bridge:
  [{address, class, vendor, device, driver, numa_node, link_speed, link_speed_max, link_width, link_width_max, bridges
  (those above it, outermost first), iommu_group, iommu_type, vfs, acs {capability, control}, ats {enabled},
  relaxed_ordering, max_read_request_bytes}]; acs, ats and the last two need root
- ``iommu``: groups (how many), units (names)
- ``rdma``: [{device, board_id, fw_ver, pci, netdev, ports [{port, state, phys_state, rate, link_layer, gids [{index,
  type, gid}]}]}]; ``rdma_netns``: shared or exclusive
- ``net``: interfaces [{name, state, mtu, speed_mbits_s, pci, driver}], default_route (interface)
- ``driver``: nvidia (version), open, nouveau, peermem, gdrdrv, nvidia_fs, dmabuf (kernel symbol found), nvswitches,
  fabric_manager {active, version}, persistence, uvm, on_host (nvidia-smi is installed on the host itself)
- ``modules``: names; ``sysctl``: {name: value}
- ``units``: {unit: {load, active, enabled, memlock, nofile, tasks_max, restarts, fragment, drop_ins}}
- ``mounts``: [{mount, type, size_kib, free_kib}] of those that a node lives on
- ``time``: synchronized, ntp (what systemd says of its own client)
- ``packages``: manager, held, versions {package: version}
- ``kubelet``: version, flags (of the process), environment {file: text}, unit (text), config_file, config (text),
  config_dir (as the process was told), drop_ins {file: text}, state {file: text}
- ``containerd``: version, config_file, config (text), drop_ins {file: text}, dump (text), certs_d (registries), error
- ``joined``: {kubeadm: [paths], k3s: [paths], vcluster: [paths]}: traces of having joined a cluster
- ``cdi``: {directory: [files]}
- ``files``: {path: text or null} for each path asked for with --file
"""

import argparse
import glob
import json
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
import time

SCHEMA = 1
LONGEST = 262144  # characters of one file or output
# Seconds for one command, and for all of them: on a node under load each may need several.
CALL_S, CALLS_S = 10.0, 40.0
SYSCTLS = (
    "fs.inotify.max_user_instances",
    "fs.inotify.max_user_watches",
    "kernel.numa_balancing",
    "net.bridge.bridge-nf-call-iptables",
    "net.ipv4.conf.all.arp_announce",
    "net.ipv4.conf.all.arp_ignore",
    "net.ipv4.conf.all.rp_filter",
    "net.ipv4.ip_forward",
    "net.ipv6.conf.all.forwarding",
    "vm.max_map_count",
    "vm.nr_hugepages",
    "vm.overcommit_memory",
)
UNITS = (
    "kubelet",
    "containerd",
    "k3s",
    "k3s-agent",
    "nvidia-fabricmanager",
    "nvidia-persistenced",
    "systemd-timesyncd",
    "chrony",
    "chronyd",
    "ntpd",
    "gpuready-acs",
    "gpuready-cpu-governor",
    "gpuready-swap-off",
)
PACKAGES = ("kubelet", "kubeadm", "containerd", "containerd.io", "nvidia-fabricmanager", "chrony", "pciutils")
TRACES = {
    "kubeadm": (
        "/etc/kubernetes/kubelet.conf",
        "/etc/kubernetes/bootstrap-kubelet.conf",
        "/var/lib/kubelet/config.yaml",
        "/var/lib/kubelet/kubeadm-flags.env",
        "/var/lib/kubelet/pki/kubelet-client-current.pem",
        "/etc/kubernetes/manifests/kube-apiserver.yaml",
    ),
    "k3s": (
        "/var/lib/rancher/k3s/agent/kubelet.kubeconfig",
        "/var/lib/rancher/k3s/server/db",
        "/etc/rancher/node/password",
    ),
    "vcluster": ("/etc/vcluster", "/var/lib/vcluster", "/etc/systemd/system/vcluster-vpn.service"),
}
DISPLAY, NETWORK, BRIDGE = "0x03", "0x02", "0x0604"
NVIDIA, MELLANOX = "0x10de", "0x15b3"
_root = "/"
_silent = []  # commands that gave no answer in time
_spent = 0.0  # seconds that commands took


def at(path):
    """The path below the root that is looked at (tests look at a tree of their own)."""
    return os.path.join(_root, path.lstrip("/"))


def text(path, default=None):
    """What a small file says, without the white space around it."""
    try:
        with open(at(path), errors="replace") as file:
            return file.read(LONGEST).strip()
    except OSError:
        return default


def whole(path):
    """What a file says, as it is; None where it is not there."""
    try:
        with open(at(path), errors="replace") as file:
            return file.read(LONGEST)
    except OSError:
        return None


def number(path, base=10):
    """The whole number in a file."""
    try:
        return int(text(path, ""), base)
    except ValueError:
        return None


def listed(path):
    """What is in a directory, sorted; empty where it is not there."""
    try:
        return sorted(os.listdir(at(path)))
    except OSError:
        return []


def found(pattern):
    """The paths that match, as seen from the node's own root."""
    prefix = _root.rstrip("/")
    return sorted(path[len(prefix) :] for path in glob.glob(at(pattern)))


def link(path):
    """The last name of what a link points to."""
    try:
        return os.path.basename(os.readlink(at(path)))
    except OSError:
        return None


def call(*command):
    """What a command prints; None where it does not exist, fails or takes too long."""
    code, out, _ = outcome(*command)
    return out if code == 0 else None


def outcome(*command):
    """Exit code, output and errors of a command; code None where there is no such command or it took too long."""
    global _spent
    if _root != "/" or not shutil.which(command[0]):
        return None, "", ""
    environment = dict(os.environ, LC_ALL="C")
    began = time.time()
    # None is left out: one that hangs must not hide what the others say.
    limit = max(0.5, min(CALL_S, CALLS_S - _spent))
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    try:
        out, errors = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        _silent.append("%s gave no answer in %.1f s" % (" ".join(command[:3]), limit))
        return None, "", ""
    finally:
        _spent += time.time() - began
    return process.returncode, out.decode(errors="replace")[:LONGEST], errors.decode(errors="replace")[-2000:]


def pairs(content, separator="="):
    """The ``key=value`` lines of a text."""
    result = {}
    for line in (content or "").splitlines():
        key, found_separator, value = line.partition(separator)
        if found_separator and not key.startswith("#"):
            result[key.strip()] = value.strip().strip("\"'")
    return result


def numbers(spec):
    """The numbers of a list such as 0-3,8."""
    result = []
    for part in (spec or "").split(","):
        first, _, last = part.partition("-")
        if first.strip().isdigit():
            result.extend(range(int(first), int(last or first) + 1))
    return result


def redacted(content):
    """A TOML text without what opens a registry."""
    return content and re.sub(r"(?m)^(\s*(?:password|auth|identitytoken|token)\s*=\s*).*$", r'\1"(redacted)"', content)


# -- the parts ----------------------------------------------------------------------------------------------------


def read_os():
    release = pairs(text("/etc/os-release") or text("/usr/lib/os-release"))
    unified = os.path.exists(at("/sys/fs/cgroup/cgroup.controllers"))
    uptime = (text("/proc/uptime") or "").split()
    return {
        "id": release.get("ID"),
        "version_id": release.get("VERSION_ID"),
        "id_like": release.get("ID_LIKE", "").split(),
        "pretty_name": release.get("PRETTY_NAME"),
        "kernel": text("/proc/sys/kernel/osrelease"),
        "arch": platform.machine(),
        "cmdline": text("/proc/cmdline"),
        "cgroup": 2 if unified else 1,
        "boot_id": text("/proc/sys/kernel/random/boot_id"),
        "uptime_s": float(uptime[0]) if uptime else None,
    }


def read_virtualization():
    code, out, _ = outcome("systemd-detect-virt", "--vm")
    if code is not None and out.strip():
        return out.strip()
    flags = re.search(r"^flags\s*:.*\bhypervisor\b", text("/proc/cpuinfo") or "", re.MULTILINE)
    return "vm-other" if flags else "none"


def read_container():
    out = outcome("systemd-detect-virt", "--container")[1].strip()
    return out if out and out != "none" else None


def read_machine():
    secure = None
    for path in glob.glob(at("/sys/firmware/efi/efivars/SecureBoot-*")):
        with open(path, "rb") as file:
            secure = file.read()[-1:] == b"\x01"
    names = {"vendor": "sys_vendor", "product": "product_name", "bios": "bios_version"}
    result = {key: text("/sys/class/dmi/id/" + name) for key, name in names.items()}
    return dict(result, secure_boot=secure)


def read_cpu():
    base = "/sys/devices/system/cpu"
    online = text(base + "/online")
    cores, sockets, governors = set(), set(), {}
    for cpu in numbers(online):
        here = "%s/cpu%d" % (base, cpu)
        cores.add(tuple(numbers(text(here + "/topology/thread_siblings_list")) or [cpu]))
        sockets.add(text(here + "/topology/physical_package_id", "0"))
        governor = text(here + "/cpufreq/scaling_governor")
        if governor:
            governors[governor] = governors.get(governor, 0) + 1
    model = re.search(r"^model name\s*:\s*(.*)$", text("/proc/cpuinfo") or "", re.MULTILINE)
    return {
        "online": online,
        "model": model.group(1) if model else None,
        "sockets": len(sockets) or None,
        "threads_per_core": max([len(core) for core in cores] or [1]),
        "cores": sorted(list(core) for core in cores),
        "governors": governors,
    }


def read_numa():
    result = []
    for name in listed("/sys/devices/system/node"):
        if not re.match(r"node\d+$", name):
            continue
        here = "/sys/devices/system/node/" + name
        sizes = dict(re.findall(r"(MemTotal|MemFree):\s+(\d+)", text(here + "/meminfo") or ""))
        result.append(
            {
                "node": int(name[4:]),
                "cpus": text(here + "/cpulist", ""),
                "memory_kib": int(sizes.get("MemTotal", 0)),
                "free_kib": int(sizes.get("MemFree", 0)),
            }
        )
    return sorted(result, key=lambda one: one["node"])


def read_memory():
    sizes = dict(re.findall(r"^(\w+):\s+(\d+)", text("/proc/meminfo") or "", re.MULTILINE))
    swaps = [line.split() for line in (text("/proc/swaps") or "").splitlines()[1:]]
    pages = {}
    for name in listed("/sys/kernel/mm/hugepages"):
        here = "/sys/kernel/mm/hugepages/" + name
        size = re.sub(r"\D", "", name)
        pages[size] = {"count": number(here + "/nr_hugepages"), "free": number(here + "/free_hugepages")}
    chosen = re.search(r"\[(\w+)\]", text("/sys/kernel/mm/transparent_hugepage/enabled") or "")
    return {
        "total_kib": int(sizes.get("MemTotal", 0)),
        "available_kib": int(sizes.get("MemAvailable", 0)),
        "swaps": [
            {"device": one[0], "size_kib": int(one[2]), "used_kib": int(one[3])} for one in swaps if len(one) > 3
        ],
        "hugepages": pages,
        "transparent_hugepages": chosen.group(1) if chosen else None,
    }


def read_pci():
    result = []
    for address in listed("/sys/bus/pci/devices"):
        here = "/sys/bus/pci/devices/" + address
        kind, vendor = text(here + "/class", ""), text(here + "/vendor", "")
        if vendor not in (NVIDIA, MELLANOX) and not kind.startswith(BRIDGE):
            if not (kind.startswith(DISPLAY) or (kind.startswith(NETWORK) and listed(here + "/infiniband"))):
                continue
        real = os.path.realpath(at(here))
        above = [part for part in real.split("/")[:-1] if re.match(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.\d$", part)]
        group = link(here + "/iommu_group")
        one = {
            "address": address,
            "class": kind,
            "vendor": vendor,
            "device": text(here + "/device"),
            "driver": link(here + "/driver"),
            "numa_node": number(here + "/numa_node"),
            "link_speed": text(here + "/current_link_speed"),
            "link_speed_max": text(here + "/max_link_speed"),
            "link_width": number(here + "/current_link_width"),
            "link_width_max": number(here + "/max_link_width"),
            "bridges": above,
            "iommu_group": group,
            "iommu_type": text("/sys/kernel/iommu_groups/%s/type" % group) if group else None,
            "vfs": number(here + "/sriov_numvfs"),
        }
        result.append(dict(one, **read_config_space(here + "/config")))
    return result


def read_config_space(path):
    """ACS, ATS, relaxed ordering and read request size; None each where the capability is absent or not readable."""
    result = {"acs": None, "ats": None, "relaxed_ordering": None, "max_read_request_bytes": None}
    try:
        with open(at(path), "rb") as file:
            data = file.read(4096)
    except OSError:
        return result
    # Without root the kernel shows the first 64 bytes, where no capability lies.
    here, seen = (data[0x34] if len(data) > 64 else 0), set()
    while 64 <= here < len(data) - 12 and here not in seen:
        seen.add(here)
        if data[here] == 0x10:
            control = struct.unpack_from("<H", data, here + 8)[0]
            result["relaxed_ordering"] = bool(control & 0x10)
            result["max_read_request_bytes"] = 128 << ((control >> 12) & 7)
        here = data[here + 1]
    here, seen = 0x100, set()
    while 0x100 <= here <= len(data) - 8 and here not in seen:
        seen.add(here)
        head = struct.unpack_from("<I", data, here)[0]
        if head in (0, 0xFFFFFFFF):
            break
        capability, control = struct.unpack_from("<HH", data, here + 4)
        if head & 0xFFFF == 0x000D:
            result["acs"] = {"capability": capability, "control": control}
        elif head & 0xFFFF == 0x000F:
            result["ats"] = {"enabled": bool(control & 0x8000)}
        here = head >> 20
    return result


def read_iommu():
    return {"groups": len(listed("/sys/kernel/iommu_groups")), "units": listed("/sys/class/iommu")}


def read_rdma():
    result = []
    for device in listed("/sys/class/infiniband"):
        here = "/sys/class/infiniband/" + device
        ports = []
        for port in listed(here + "/ports"):
            base = "%s/ports/%s" % (here, port)
            one = {key: text("%s/%s" % (base, key)) for key in ("state", "phys_state", "rate", "link_layer")}
            ports.append(dict(one, port=int(port), gids=read_gids(base)))
        result.append(
            {
                "device": device,
                "board_id": text(here + "/board_id"),
                "fw_ver": text(here + "/fw_ver"),
                "pci": link(here + "/device"),
                "netdev": (listed(here + "/device/net") or [None])[0],
                "ports": ports,
            }
        )
    return result


def read_gids(base):
    result = []
    for index in sorted(listed(base + "/gids"), key=int):
        gid = text("%s/gids/%s" % (base, index), "")
        if gid.replace(":", "").strip("0"):
            kind = text("%s/gid_attrs/types/%s" % (base, index))
            result.append({"index": int(index), "type": kind, "gid": gid})
    return result


def read_rdma_netns():
    mode = text("/sys/module/ib_core/parameters/netns_mode")
    return None if mode is None else ("shared" if mode in ("Y", "1") else "exclusive")


def read_net():
    result = []
    for name in listed("/sys/class/net"):
        here = "/sys/class/net/" + name
        if name == "lo" or not os.path.exists(at(here + "/device")):
            continue
        speed = None
        try:
            speed = number(here + "/speed")
        except OSError:
            pass
        result.append(
            {
                "name": name,
                "state": text(here + "/operstate"),
                "mtu": number(here + "/mtu"),
                "speed_mbits_s": speed if speed and speed > 0 else None,
                "pci": link(here + "/device"),
                "driver": link(here + "/device/driver"),
            }
        )
    routes = [line.split() for line in (text("/proc/net/route") or "").splitlines()[1:]]
    default = [one[0] for one in routes if len(one) > 7 and one[1] == "00000000" and one[7] == "00000000"]
    return {"interfaces": result, "default_route": default[0] if default else None}


def read_driver():
    loaded = set(read_modules())
    described = text("/proc/driver/nvidia/version") or ""
    manager = unit("nvidia-fabricmanager")
    said = call("nv-fabricmanager", "--version") or ""
    version = re.search(r"(\d+\.\d+(?:\.\d+)?)", said)
    symbols = at("/proc/kallsyms")
    dmabuf = None
    if os.path.exists(symbols) and "ib_uverbs" in loaded:
        with open(symbols, errors="replace") as file:
            dmabuf = any("ib_umem_dmabuf_get" in line for line in file)
    return {
        "nvidia": text("/sys/module/nvidia/version"),
        "open": ("Open Kernel Module" in described) if described else None,
        "nouveau": "nouveau" in loaded,
        "peermem": "nvidia_peermem" in loaded,
        "gdrdrv": "gdrdrv" in loaded,
        "nvidia_fs": "nvidia_fs" in loaded,
        "uvm": "nvidia_uvm" in loaded,
        "dmabuf": dmabuf,
        "nvswitches": len([name for name in listed("/dev") if re.match(r"nvidia-nvswitch\d+$", name)]),
        "fabric_manager": {"active": manager.get("active"), "version": version.group(1) if version else None},
        "on_host": os.path.exists(at("/usr/bin/nvidia-smi")),
        "persistence": os.path.exists(at("/run/nvidia-persistenced/socket")),
    }


def read_modules():
    said = text("/proc/modules")
    if said is None:
        # Containers may hide it. Modules that were loaded have a state; those built into the kernel have none.
        return [name for name in listed("/sys/module") if text("/sys/module/%s/initstate" % name) is not None]
    return sorted(line.split()[0] for line in said.splitlines())


def read_sysctl():
    return {name: text("/proc/sys/" + name.replace(".", "/")) for name in SYSCTLS}


_units = {}
_KEYS = {
    "LoadState": "load",
    "ActiveState": "active",
    "UnitFileState": "enabled",
    "LimitMEMLOCK": "memlock",
    "LimitNOFILE": "nofile",
    "TasksMax": "tasks_max",
    "NRestarts": "restarts",
    "FragmentPath": "fragment",
    "DropInPaths": "drop_ins",
}


def read_units():
    if not _units:
        # One call for all: each would cost as much as the rest of a part.
        out = call("systemctl", "show", "-p", ",".join(["Id"] + sorted(_KEYS)), *[name + ".service" for name in UNITS])
        for block in re.split(r"\n\s*\n", out or ""):
            said = pairs(block)
            name = said.get("Id", "").replace(".service", "")
            if name in UNITS and said.get("LoadState") != "not-found":
                _units[name] = {key: said.get(theirs) or None for theirs, key in _KEYS.items()}
                _units[name]["drop_ins"] = (said.get("DropInPaths") or "").split()
    return _units


def unit(name):
    return read_units().get(name, {})


def read_mounts():
    wanted = ("/", "/var", "/var/lib/kubelet", "/var/lib/containerd", "/dev/shm", "/dev/hugepages", "/sys/fs/cgroup")
    result = []
    for line in (text("/proc/mounts") or "").splitlines():
        fields = line.split()
        if len(fields) > 2 and fields[1] in wanted:
            size = os.statvfs(at(fields[1]))
            scale = size.f_frsize / 1024.0
            sizes = {"size_kib": int(size.f_blocks * scale), "free_kib": int(size.f_bavail * scale)}
            result.append(dict(sizes, mount=fields[1], type=fields[2]))
    return result


def read_time():
    said = pairs(call("timedatectl", "show", "-p", "NTPSynchronized", "-p", "NTP"))
    return {"synchronized": answer(said.get("NTPSynchronized")), "ntp": answer(said.get("NTP"))}


def answer(word):
    return {"yes": True, "no": False}.get(word)


def read_packages():
    if shutil.which("dpkg-query") and _root == "/":
        out = outcome(
            "dpkg-query", "-W", "-f", "${db:Status-Want} ${Package} ${Version}\n", *PACKAGES + ("linux-image-*",)
        )[1]
        rows = [line.split() for line in out.splitlines()]
        good = [row for row in rows if len(row) == 3]
        held = [row[1] for row in good if row[0] == "hold"]
        versions = {row[1]: row[2] for row in good if not row[1].startswith("linux-image")}
        kernels = sorted(row[1] for row in good if row[1].startswith("linux-image") and row[0] in ("install", "hold"))
        return {"manager": "apt", "held": held, "versions": versions, "kernels": kernels}
    if shutil.which("rpm") and _root == "/":
        out = outcome("rpm", "-q", "--qf", "%{NAME} %{VERSION}-%{RELEASE}\n", *PACKAGES + ("kernel",))[1]
        rows = [line.split() for line in out.splitlines() if len(line.split()) == 2]
        kernels = sorted("%s-%s" % (row[0], row[1]) for row in rows if row[0] == "kernel")
        excluded = re.search(r"^exclude\w*\s*=\s*(.*)$", text("/etc/dnf/dnf.conf") or "", re.MULTILINE)
        held = re.split(r"[,\s]+", excluded.group(1).strip()) if excluded else []
        return {
            "manager": "dnf",
            "held": held,
            "versions": dict(row for row in rows if row[0] != "kernel"),
            "kernels": kernels,
        }
    return {"manager": None, "held": [], "versions": {}, "kernels": []}


def read_kubelet():
    flags = []
    for name in listed("/proc"):
        # comm is cut at 15 characters, so that this costs one short read for each process.
        if name.isdigit() and text("/proc/%s/comm" % name) == "kubelet":
            flags = (text("/proc/%s/cmdline" % name) or "").strip("\0").split("\0")[1:]
    config, folder = "/var/lib/kubelet/config.yaml", None
    for index, flag in enumerate(flags):
        key, _, value = flag.partition("=")
        value = value or (flags[index + 1] if index + 1 < len(flags) else "")
        config = value if key == "--config" else config
        folder = value if key == "--config-dir" else folder
    folders = [
        one
        for one in (folder, "/etc/kubernetes/kubelet.conf.d", "/var/lib/rancher/k3s/agent/etc/kubelet.conf.d")
        if one
    ]
    drop_ins = [path for one in dict.fromkeys(folders) for path in found(one + "/*.conf")]
    environment = ("/etc/default/kubelet", "/etc/sysconfig/kubelet", "/var/lib/kubelet/kubeadm-flags.env")
    state = ("/var/lib/kubelet/cpu_manager_state", "/var/lib/kubelet/memory_manager_state")
    fragment = unit("kubelet").get("fragment")
    parts = [fragment] + list(unit("kubelet").get("drop_ins") or ()) if fragment else []
    version = re.search(r"v\S+", call("kubelet", "--version") or "")
    return {
        "version": version.group(0) if version else None,
        "flags": flags,
        "environment": {path: whole(path) for path in environment if whole(path) is not None},
        "unit": "\n".join(whole(path) or "" for path in parts) if parts else None,
        "config_file": config,
        "config": whole(config),
        "config_dir": folder,
        "drop_ins": {path: whole(path) for path in drop_ins},
        "state": {path: whole(path) for path in state if whole(path) is not None},
    }


def read_containerd():
    k3s = "/var/lib/rancher/k3s/agent/etc/containerd/config.toml"
    path = k3s if whole(k3s) is not None else "/etc/containerd/config.toml"
    config = whole(path)
    folders = ("/etc/containerd/conf.d", "/etc/containerd/config.d")
    drop_ins = {path: redacted(whole(path)) for folder in folders for path in found(folder + "/*.toml")}
    version = re.search(r"\bv?(\d+\.\d+\.\d+\S*)", call("containerd", "--version") or "")
    # k3s brings a containerd of its own, whose configuration is a template.
    code, dump, errors = outcome("containerd", "config", "dump") if path != k3s else (None, "", "")
    return {
        "version": version.group(1) if version else None,
        "config_file": path,
        "config": redacted(config),
        "drop_ins": drop_ins,
        "dump": redacted(dump) if code == 0 else None,
        "error": errors.strip() if code else None,
        "certs_d": listed("/etc/containerd/certs.d"),
    }


def read_joined():
    return {kind: [path for path in paths if os.path.exists(at(path))] for kind, paths in TRACES.items()}


def read_cdi():
    return {folder: listed(folder) for folder in ("/etc/cdi", "/var/run/cdi") if os.path.isdir(at(folder))}


PARTS = {
    "os": read_os,
    "virtualization": read_virtualization,
    "container": read_container,
    "machine": read_machine,
    "cpu": read_cpu,
    "numa": read_numa,
    "memory": read_memory,
    "pci": read_pci,
    "iommu": read_iommu,
    "rdma": read_rdma,
    "rdma_netns": read_rdma_netns,
    "net": read_net,
    "driver": read_driver,
    "modules": read_modules,
    "sysctl": read_sysctl,
    "units": read_units,
    "mounts": read_mounts,
    "time": read_time,
    "packages": read_packages,
    "kubelet": read_kubelet,
    "containerd": read_containerd,
    "joined": read_joined,
    "cdi": read_cdi,
}


def probe(files=(), root="/"):
    """What the node is, as the docstring of this file describes it. ``files``: paths whose text is wanted, too."""
    global _root, _spent
    _root, _spent = root, 0.0
    _units.clear()
    began, errors = time.time(), {}
    result = {
        "schema": SCHEMA,
        "host": platform.node(),
        "root": os.geteuid() == 0,
        "utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
    }
    for part, read in PARTS.items():
        del _silent[:]
        try:
            result[part] = read()
        except Exception as error:  # one part must not cost the others
            result[part] = None
            errors[part] = "%s: %s" % (type(error).__name__, error)
        if _silent:
            errors[part] = "; ".join(([errors[part]] if part in errors else []) + _silent)
    result["files"] = {path: whole(path) for path in files}
    result["errors"] = errors
    result["seconds"] = round(time.time() - began, 3)
    return result


def main(arguments=None):
    """Print the probe of this node; always exits 0 once the arguments are understood."""
    parser = argparse.ArgumentParser(prog="gpuready probe", description="Print what this node is, as JSON; read-only.")
    parser.add_argument("--file", action="append", default=[], metavar="PATH", help="show the text of this file, too")
    parser.add_argument("--root", default="/", metavar="DIR", help="look at the tree in DIR instead; runs no commands")
    chosen = parser.parse_args(arguments)
    json.dump(probe(chosen.file, chosen.root), sys.stdout, separators=(",", ":"), sort_keys=True)
    sys.stdout.write("\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
