"""docs/reference/systems.md says what the plans do: its tables are made from them, and compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gpuready.charts_values import inventory
from gpuready.charts_values.inventory import Cluster
from gpuready.deploys.nodes import boot, facts, machine, preparation, systems
from gpuready.deploys.nodes.facts import Containerd, Kubelet, NodeFacts, Numa
from gpuready.deploys.nodes.plan import NodePlan

from .machines import real_machine

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "systems.md"
# What machines of the rehearsal are: tests/nodes runs on them.
RUN = ("debian", "12")
HERE = "yes, in containers; once, in a VM"
# What was run once, by hand, as the page says: Debian 12 with a kernel, a boot loader and NUMA nodes of its own.
ONCE = {
    *("modules", "initial RAM disk", "swap off", "time synchronisation", "kernel held", "kernel arguments"),
    *(machine.OPTIONS_FILE, machine.SWAP_UNIT, machine.FSTAB, machine.HUGEPAGES_FILE, boot.GRUB_DROP_IN),
    "/etc/containerd/config.toml",
}
GIB = 2**20  # in KiB
# What containers have, and what needs a kernel of its own.
COMMON: dict[str, Any] = {
    "cpu_manager": {"policy": "static"},
    "memory_manager": {"policy": "Static"},
    "reserved": {"cpus": "0", "kube_memory": "512Mi", "system_memory": "256Mi"},
    "registry_mirrors": {"REGISTRY": ["https://mirror.example"]},
}
ALL = {
    **COMMON,
    "hugepages": {"2Mi": 8},
    "kernel_arguments": ["iommu=pt"],
    "module_options": {"ib_core": "netns_mode=0"},
    "acs": "off",
}
MANAGERS = {"Debian": "apt", "RHEL": "dnf"}


def known() -> list[tuple[str, str, str]]:
    """Every distribution and version that gpuready is written for, with the family it is treated as."""
    found = []
    for name, versions in systems._KNOWN.items():
        for version in versions:
            system, note = systems.system_of(NodeFacts(name="gpu-0", os_id=name, os_version=version))
            assert not note
            found.append((name, version, system.title))
    return found


def bare_metal(name: str, version: str, family: str) -> NodeFacts:
    """A machine before anything was done to it, on which everything is to do."""
    system, _ = systems.system_of(NodeFacts(name="gpu-0", os_id=name, os_version=version))
    clocks = {unit: {"load": "loaded", "active": "inactive", "enabled": "disabled"} for unit in system.time_units[:1]}
    return NodeFacts(
        name="gpu-0",
        os_id=name,
        os_version=version,
        online=(0, 1, 2, 3),
        cores=((0,), (1,), (2,), (3,)),
        governors={"schedutil": 4},
        numa=(Numa(0, (0, 1, 2, 3), 64 * GIB),),
        memory_kib=64 * GIB,
        available_kib=60 * GIB,
        swaps=("/swap.img",),
        sysctl={"net.ipv4.ip_forward": "0", "kernel.numa_balancing": "1"},
        units=clocks,
        package_manager=MANAGERS[family],
        kernels=("KERNEL",),
        pci=({"class": "0x060400", "address": "0000:16:00.0", "acs": {"control": 29}},),
        containerd=Containerd(version="2.1.4", config="version = 3\n", dump="version = 3\n"),
        kubelet=Kubelet(version="v1.35.4"),
        files={
            "/etc/default/grub": "GRUB_CMDLINE_LINUX=\n",
            machine.FSTAB: "/swap.img none swap sw 0 0\n",
            machine.DNF_CONF: "[main]\n" if family == "RHEL" else None,
        },
    )


def rehearsed() -> NodePlan:
    """The plan of a machine of the rehearsal before anything was done to it."""
    seen = facts.from_probe("machine-0", real_machine())
    # What it says of containerd leaves the registries out; the file has them.
    whole = dataclasses.replace(seen.containerd, dump=seen.containerd.config or "")
    fresh = dataclasses.replace(seen, sysctl={"net.ipv4.ip_forward": "0"}, files={}, containerd=whole)
    return preparation.plan(cluster(COMMON, "none"), None, fresh, None)


def cluster(node: dict[str, Any], rdma: str = "ib", platform: str = "kubeadm") -> Cluster:
    group: dict[str, Any] = {
        "nodes": ["gpu-0"],
        "gpu_product": "H100",
        "resources": {"nvidia.com/gpu": 8},
        "rdma": rdma,
    }
    if rdma != "none":
        group["resources"] |= {"rdma/hca": 8}
    entry = {"driver_version": "580.95.05", "platform": platform, "groups": {"h100": group}, "node": node}
    return inventory.parse("lab", {**entry, "pod_cidr": "10.244.0.0/16", "service_cidr": "10.96.0.0/16"})


def plan(name: str, version: str, family: str, platform: str = "kubeadm") -> NodePlan:
    made = cluster(ALL, platform=platform)
    return preparation.plan(made, made.groups[0], bare_metal(name, version, family), None)


def steps(made: NodePlan) -> dict[str, str]:
    """What each step of a plan runs, by its title; restarts and commands of the rollout with them."""
    found = {one.title: f"`{one.command}`" for one in made.steps if one.needed}
    rollout = made.disruption
    for command in rollout.commands:
        title = {"grub": "kernel arguments", "ACS": "PCIe ACS off now", "acs": "PCIe ACS off now"}
        name = next((text for mark, text in title.items() if mark in command), "")
        found |= {name: f"`{command}`"} if name else {}
    return found | {"restarted on the drained node": ", ".join(f"`{one}`" for one in (*rollout.services, rollout.unit))}


def files(made: NodePlan) -> dict[str, str]:
    """The files of a plan; those that wait for a drained node are marked."""
    return {one.path: "yes" for one in made.files} | {one.path: "drained" for one in made.disruption.files}


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"|{'|'.join(f' {cell} ' if cell != '---' else cell for cell in line)}|" for line in lines) + "\n"


def tables() -> list[str]:
    """The tables of the page."""
    families = {family: (name, version) for name, version, family in reversed(known())}
    plans = [plan(*families[family], family) for family in ("Debian", "RHEL")]
    plans += [plan(*families["Debian"], "Debian", platform) for platform in ("k3s", "vcluster")]
    tried = rehearsed()
    found = [
        table(
            ("system", "version", "treated as", "preparation run here"),
            (
                (
                    name,
                    version,
                    family,
                    "yes, in containers; once, in a VM" if (name, version) == RUN else "not run here: data alone",
                )
                for name, version, family in known()
            ),
        )
    ]
    for part, title in ((steps, "step"), (files, "file")):
        columns = [part(one) for one in plans]
        here = part(tried)
        cells = []
        for key in dict.fromkeys(key for column in columns for key in column):
            first, *others = (column.get(key, "-") for column in columns)
            same = ["same" if one == first and len(one) > 12 else one for one in others]
            name = f"`{key}`" if part is files else key
            run = "yes" if key in here else "once, in a VM" if key in ONCE else "not run here"
            cells.append([name, first, *same, run])
        found.append(table((title, "Debian", "RHEL", "k3s, on Debian", "vCluster, on Debian", "run here"), cells))
    return found


def test_the_page_says_what_the_plans_do() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for one in tables():
        assert one in text, f"docs/reference/systems.md lacks this table:\n{one}"
    # What was run by hand follows, which no test can know.
    planned, _, _ = text.partition("\n## Once, in a virtual machine\n")
    assert planned.count("\n|---") == len(tables())


def test_each_version_of_a_family_is_treated_alike() -> None:
    # One column stands for all of them.
    for platform in ("kubeadm", "k3s", "vcluster"):
        for family in MANAGERS:
            made = [plan(*one, platform) for one in known() if one[2] == family]
            assert all((one.files, one.steps, one.disruption) == (made[0].files, made[0].steps, made[0].disruption)
                       for one in made)  # fmt: skip
