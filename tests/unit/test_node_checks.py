"""Every check of a machine: silent on a healthy one, and naming the machine and what was broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gpuready.charts_values import inventory
from gpuready.charts_values.errors import InputError
from gpuready.validators import registry
from gpuready.validators.evidence import Evidence, ReadFailure
from gpuready.validators.expected import Expected
from gpuready.validators.judge import judge
from gpuready.validators.model import Result, Status, exit_code

from .conftest import entry
from .machines import Probe, configz, gpu_machine, real_machine

CHECKS = [one for one in registry.all_checks() if one.group == "node"]
Edit = Callable[[Probe], object]
# What the promised machines are set to, beyond what gpuready sets by itself.
NODE = {"kernel_arguments": ["iommu=pt"], "hugepages": {"2Mi": 16}, "acs": "off"}


def cluster(**changes: Any) -> Expected:
    more = {"node": NODE, "ssh_nodes": {"gpu-0": {}, "gpu-1": {}}, **changes}
    return Expected.of(inventory.parse("lab", entry(**more)))


def seen(one: Probe, *, config: str | None = None) -> Evidence:
    """gpu-0 as it should be, and gpu-1 as it is."""
    said = {"gpu-0": gpu_machine(), "gpu-1": one}
    files = {name: {"probe.json": json.dumps(probe), "configz.json": configz()} for name, probe in said.items()}
    if config is not None:
        files["gpu-1"]["configz.json"] = config
    return Evidence(nodes=files)


def results(expected: Expected, evidence: Evidence, *, saved: bool = False) -> tuple[Result, ...]:
    return judge(expected, evidence, CHECKS, saved=saved)


def bad(found: tuple[Result, ...]) -> list[tuple[str, str, str, str]]:
    return [
        (one.check, one.status.value, one.finding.reason, one.finding.subject.name)
        for one in found
        if one.status.rank >= Status.WARN.rank
    ]


def test_a_healthy_machine_raises_nothing() -> None:
    found = results(cluster(), seen(gpu_machine()))
    assert bad(found) == []
    passed = {one.check for one in found if one.status is Status.PASS}
    # Those need RoCE, a driver of the host, or a policy that inventory names.
    not_here = {"node.rdma_gid", "node.fabric_manager", "node.cpu_manager", "node.memory_manager"}
    assert passed == {one.id for one in CHECKS} - not_here


def put(path: str, value: Any) -> Edit:
    """Set what lies under keys such as ``driver.nvidia`` or ``pci.3.link_width``."""

    def edit(probe: Probe) -> None:
        *above, last = [int(key) if key.isdigit() else key for key in path.split("/")]
        here: Any = probe
        for key in above:
            here = here[key]
        here[last] = value

    return edit


def without_gpu(probe: Probe) -> None:
    probe["pci"] = [one for one in probe["pci"] if not one["address"].endswith("82:00.0")]


def lost_numa(probe: Probe) -> None:
    for one in probe["pci"]:
        one["numa_node"] = -1


def append(path: str, text: str) -> Edit:
    def edit(probe: Probe) -> None:
        above, last = path.split("/")
        probe[above][last] = (probe[above][last] or "") + text

    return edit


def drop_in(text: str) -> Edit:
    """A file in the directory that the kubelet was started with."""
    folder = "/etc/kubernetes/kubelet.conf.d"
    return lambda probe: probe["kubelet"].update(config_dir=folder, drop_ins={f"{folder}/60-own.conf": text})


def file(path: str, text: str) -> Edit:
    return lambda probe: probe["files"].update({path: text})


def state(name: str, policy: str) -> Edit:
    text = json.dumps({"policyName": policy})
    return lambda probe: probe["kubelet"]["state"].update({f"/var/lib/kubelet/{name}_manager_state": text})


def other_version(probe: Probe) -> None:
    probe["containerd"]["drop_ins"] = {"/etc/containerd/conf.d/99-nvidia.toml": "version = 2\n"}


def small_memlock(probe: Probe) -> None:
    probe["units"]["containerd"]["memlock"] = "65536"


def full_disk(probe: Probe) -> None:
    for mount in probe["mounts"]:
        mount["free_kib"] = mount["size_kib"] // 200


SYSTEM: list[tuple[str, Edit, str, str]] = [
    ("read without root", put("root", False), "node.reachable", "NotRoot"),
    ("a part unread", put("errors", {"pci": "OSError"}), "node.reachable", "PartsUnread"),
    ("joined k3s, too", put("joined/k3s", ["/etc/rancher/node/password"]), "node.joined_once", "JoinedTwice"),
    ("disk full", full_disk, "node.disk", "DiskFull"),
    ("module gone", put("modules", ["overlay", "ib_core"]), "node.modules", "ModuleAbsent"),
    ("module not at boot", file("/etc/modules-load.d/90-gpuready.conf", "overlay"), "node.modules", "ModuleForgotten"),
    ("no forwarding", put("sysctl/net.ipv4.ip_forward", "0"), "node.sysctl", "SysctlDiffers"),
    ("inotify", put("sysctl/fs.inotify.max_user_instances", "128"), "node.inotify", "InotifyLow"),
    ("memlock", small_memlock, "node.limits", "LimitDiffers"),
    ("hugepages", put("memory/hugepages/2048", {"count": 8, "free": 8}), "node.hugepages", "HugepagesDiffer"),
    ("swap", put("memory/swaps", [{"device": "/dev/sda2", "size_kib": 4096, "used_kib": 0}]), "node.swap", "SwapOn"),
    ("swap at boot", file("/etc/fstab", "/swap none swap sw 0 0\n"), "node.swap", "SwapAtBoot"),
    ("clock", put("time/synchronized", False), "node.time", "ClockFree"),
    ("clock not shown", put("time/synchronized", None), "node.time", "ClockNotShown"),
    ("governor", put("cpu/governors", {"performance": 1, "powersave": 1}), "node.governor", "GovernorDiffers"),
    ("kernel free", put("packages/held", []), "node.kernel_held", "KernelFree"),
    ("argument", put("os/cmdline", "quiet"), "node.kernel_arguments", "ArgumentAbsent"),
    ("containerd versions", other_version, "node.containerd_version", "VersionsDiffer"),
    ("containerd unreadable", put("containerd/error", "toml: line 3"), "node.containerd_version", "ConfigUnreadable"),
    (
        "no CDI",
        lambda probe: put("containerd/dump", probe["containerd"]["dump"].replace("_cdi = true", "_cdi = false"))(probe),
        "node.containerd_cdi",
        "CdiOff",
    ),
    ("edited kubelet", append("kubelet/config", "maxPods: 250\n"), "node.kubelet_restart", "NotRestarted"),
    ("edited drop-in", drop_in("topologyManagerPolicy: none\n"), "node.kubelet_restart", "NotRestarted"),
    ("CPU state", state("cpu", "static"), "node.kubelet_restart", "StateDiffers"),
    ("memory state", state("memory", "Static"), "node.kubelet_restart", "StateDiffers"),
    (
        "static without CPUs",
        append("kubelet/config", "cpuManagerPolicy: static\n"),
        "node.cpu_manager",
        "NoReservation",
    ),
    (
        "memory sums",
        append(
            "kubelet/config",
            "memoryManagerPolicy: Static\nreservedMemory: [{numaNode: 0, limits: {memory: 1Gi}}]\n",
        ),
        "node.memory_manager",
        "MemorySum",
    ),
    ("no dump", put("containerd/dump", None), "node.containerd_cdi", "NoDump"),
]
HARDWARE: list[tuple[str, Edit, str, str]] = [
    ("GPU gone", without_gpu, "node.gpus_on_pci", "GpusLacking"),
    ("no NUMA node", lost_numa, "node.numa", "NoNuma"),
    ("narrow GPU", put("pci/3/link_width", 8), "node.pcie_link", "LinkDegraded"),
    ("slow NIC", put("pci/4/link_speed", "8.0 GT/s PCIe"), "node.pcie_link", "LinkDegraded"),
    ("ACS", put("pci/1/acs", {"capability": 31, "control": 0x1D}), "node.acs", "AcsOn"),
    ("IOMMU", put("pci/3/iommu_type", "DMA-FQ"), "node.iommu", "IommuTranslates"),
    ("nouveau", put("driver/nouveau", True), "node.nouveau", "NouveauLoaded"),
    ("two drivers", put("driver/on_host", True), "node.driver_owner", "TwoOwners"),
    ("old driver", put("driver/nvidia", "570.1"), "node.driver_version", "VersionDiffers"),
    ("no driver", put("driver/nvidia", None), "node.driver_version", "NotLoaded"),
    ("no GPUDirect", put("driver/dmabuf", False), "node.gdr", "NoWay"),
    ("port down", put("rdma/2/ports/0/state", "1: DOWN"), "node.rdma_ports", "PortsDown"),
    ("slow port", put("rdma/2/ports/0/rate", "200 Gb/sec (2X NDR)"), "node.rdma_ports", "PortsDown"),
    ("firmware", put("rdma/5/fw_ver", "28.39.1002"), "node.rdma_firmware", "FirmwareDiffers"),
]


@pytest.mark.parametrize(
    ("edit", "check", "reason"),
    [row[1:] for row in (*SYSTEM, *HARDWARE)],
    ids=[row[0] for row in (*SYSTEM, *HARDWARE)],
)
def test_a_fault_is_found_on_its_machine(edit: Edit, check: str, reason: str) -> None:
    probe = gpu_machine()
    edit(probe)
    found = bad(results(cluster(), seen(probe)))
    assert (check, reason, "gpu-1") in [(one, why, name) for one, _, why, name in found]
    assert {name for *_, name in found} == {"gpu-1"}


# -- what depends on more than one thing -----------------------------------------------------------------------------


def secure_boot(probe: Probe) -> None:
    probe["machine"]["secure_boot"] = True
    probe["driver"]["nvidia"] = None


def host_driver(probe: Probe) -> None:
    probe["driver"] |= {"on_host": True, "fabric_manager": {"active": "active", "version": "580.95.05"}}


def link_local(probe: Probe) -> None:
    for nic in probe["rdma"]:
        nic["ports"][0] |= {"link_layer": "Ethernet", "gids": [{"index": 0, "type": "IB/RoCE v1", "gid": "fe80::1"}]}


def roce() -> dict[str, Any]:
    groups: dict[str, Any] = entry()["groups"]
    groups["h100"] |= {"rdma": "roce", "host_network": True}
    return groups


OTHERS: list[tuple[str, dict[str, Any], Edit, dict[str, Any], str, str]] = [
    ("Secure Boot", {}, secure_boot, {}, "node.secure_boot", "SecureBoot"),
    ("fabric manager", {"driver_owner": "host"}, host_driver, {}, "node.fabric_manager", "VersionsDiffer"),
    ("RoCE GIDs", {"groups": roce()}, link_local, {}, "node.rdma_gid", "NoRoceV2"),
    ("joined k3s", {"platform": "k3s"}, lambda probe: None, {}, "node.joined_once", "JoinedElsewhere"),
    ("policy", {}, lambda probe: None, {"topologyManagerPolicy": "none"}, "node.kubelet_policy", "PolicyDiffers"),
    ("cgroups", {}, lambda probe: None, {"cgroupDriver": "cgroupfs"}, "node.cgroup_driver", "DriverDiffers"),
    (
        "CPU Manager",
        {"node": {"cpu_manager": {"policy": "static"}, "reserved": {"cpus": "0"}}},
        lambda probe: None,
        {},
        "node.cpu_manager",
        "PolicyDiffers",
    ),
]


@pytest.mark.parametrize(
    ("promise", "edit", "running", "check", "reason"), [row[1:] for row in OTHERS], ids=[row[0] for row in OTHERS]
)
def test_a_promise_that_is_broken_is_found(
    promise: dict[str, Any], edit: Edit, running: dict[str, Any], check: str, reason: str
) -> None:
    probe = gpu_machine()
    edit(probe)
    found = bad(results(cluster(**promise), seen(probe, config=configz(**running))))
    assert (check, reason, "gpu-1") in [(one, why, name) for one, _, why, name in found]


def test_every_check_has_a_fault_that_it_catches() -> None:
    assert {row[2] for row in (*SYSTEM, *HARDWARE)} | {row[4] for row in OTHERS} == {one.id for one in CHECKS}


def test_a_real_machine_is_silent_where_it_is_as_inventory_says() -> None:
    settings = {
        "topology_manager": {"policy": "none", "scope": "container"},
        "limits": {"memlock": int(real_machine()["units"]["containerd"]["memlock"])},
    }
    expected = cluster(node=settings, ssh_nodes={"machine-0": {}})
    evidence = Evidence(nodes={"machine-0": {"probe.json": json.dumps(real_machine())}})
    evidence.nodes["machine-0"]["configz.json"] = (Path(__file__).parent / "probes/configz.json").read_text()
    found = results(expected, evidence)
    assert bad(found) == []
    # A container shares clock, inotify and kernel with its host; it has no GPU, and its containerd knows no CDI.
    passed = {one.check.removeprefix("node.") for one in found if one.status is Status.PASS}
    assert passed == {
        *("reachable", "joined_once", "disk", "modules", "sysctl", "limits", "swap"),
        *("containerd_version", "kubelet_restart", "kubelet_policy", "cgroup_driver"),
    }


# -- what could not be asked, or promises nothing --------------------------------------------------------------------


def test_without_ssh_nodes_nothing_is_asked_or_missed() -> None:
    found = results(cluster(ssh_nodes={}), Evidence())
    assert {(one.status, one.finding.reason) for one in found} == {(Status.SKIP, "NoSshNodes")}
    assert len(found) == len(CHECKS)


@pytest.mark.parametrize(
    ("kind", "status"), [("refused", Status.UNPROVEN), ("unreachable", Status.ERROR), ("interrupted", Status.UNPROVEN)]
)
def test_a_machine_that_could_not_be_asked_is_named_once_and_explains_the_rest(kind: str, status: Status) -> None:
    evidence = seen(gpu_machine())
    del evidence.nodes["gpu-1"]
    evidence.failures["nodes/gpu-1/probe.json"] = ReadFailure(kind, "sudo asks for a password")
    found = [one for one in results(cluster(), evidence) if one.status.rank >= Status.WARN.rank]
    first, *rest = found
    assert (first.id, first.status) == ("node.reachable/node/gpu-1", status)
    assert len(rest) == len(CHECKS) - 1
    assert {one.caused_by for one in rest} == {first.id}
    assert exit_code(found, strict=False) == 2


@pytest.mark.parametrize("text", ["", "no JSON", "[]", '{"schema": 2}', '{"schema": 1, "pci": {}}'])
def test_what_is_no_probe_is_unproven(text: str) -> None:
    evidence = seen(gpu_machine())
    evidence.nodes["gpu-1"]["probe.json"] = text
    found = [one for one in results(cluster(), evidence) if one.status.rank >= Status.WARN.rank]
    assert found[0].id == "node.reachable/node/gpu-1"
    assert {(one.status, one.finding.subject.name) for one in found} == {(Status.UNPROVEN, "gpu-1")}


def test_parts_that_are_damaged_or_unread_cost_their_own_checks_alone() -> None:
    probe = gpu_machine() | {"driver": {}, "memory": None, "pci": [{"vendor": "0x10de"}], "units": [1], "cpu": "torn"}
    found = results(cluster(), seen(probe))
    assert {one.status for one in found} <= {Status.PASS, Status.SKIP, Status.UNPROVEN}
    open_ = {one.check for one in found if one.status is Status.UNPROVEN}
    assert {"node.swap", "node.nouveau", "node.gpus_on_pci", "node.limits", "node.governor"} <= open_
    assert {one.finding.subject.name for one in found if one.status is Status.UNPROVEN} == {"gpu-1"}


def test_a_lone_probe_is_judged_by_what_is_wrong_anywhere(tmp_path: Path) -> None:
    probe = gpu_machine()
    probe["pci"][3]["link_width"] = 8
    other_version(probe)
    folder = tmp_path / "nodes/gpu-7"
    folder.mkdir(parents=True)
    # As `gpuready probe > probe.json` leaves it, or a person who made it readable.
    (folder / "probe.json").write_text(json.dumps(probe, indent=2))
    evidence, promised = Evidence.load(tmp_path)
    assert promised is None
    nothing = Expected(inventory.Cluster(name="bundle", entry={}, groups=()), ())
    found = bad(results(nothing, evidence, saved=True))
    assert [one[:1] + one[2:] for one in found if one[1] == "fail"] == [
        ("node.containerd_version", "VersionsDiffer", "gpu-7"),
        ("node.pcie_link", "LinkDegraded", "gpu-7"),
    ]


def test_a_spot_node_that_is_away_need_not_answer() -> None:
    expected = cluster(groups={"h100": {**entry()["groups"]["h100"], "capacity": "spot"}})
    evidence = Evidence(
        cluster={"nodes": [{"metadata": {"name": "gpu-1"}, "spec": {"unschedulable": True}, "status": {}}]},
        nodes={"gpu-0": seen(gpu_machine()).nodes["gpu-0"]},
        failures={"nodes/gpu-1/probe.json": ReadFailure("unreachable", "no route")},
    )
    assert bad(results(expected, evidence)) == []


def test_inventory_takes_the_table_of_the_cluster_and_of_a_group() -> None:
    groups = entry()["groups"]
    groups["h100"]["node"] = {"topology_manager": {"policy": "best-effort"}}
    expected = cluster(groups=groups)
    assert expected.cluster.groups[0].node == {"topology_manager": {"policy": "best-effort"}}
    found = bad(results(expected, seen(gpu_machine())))
    assert {one[:3] for one in found} == {("node.kubelet_policy", "fail", "PolicyDiffers")}
    groups["h100"]["node"] = {"topology_manager": {"policy": "bestest"}}
    with pytest.raises(InputError, match="group 'h100', node, topology_manager: `policy` is 'bestest'"):
        cluster(groups=groups)
