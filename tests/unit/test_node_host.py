"""The plan of the machine below the kubelet: what it does, what it refuses, and that a second run does nothing."""

from __future__ import annotations

import dataclasses
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from gpuready.charts_values import inventory
from gpuready.charts_values.errors import RefusedError
from gpuready.charts_values.groups import Group
from gpuready.charts_values.inventory import Cluster
from gpuready.deploys.nodes import boot, containerd, guards, machine, preparation
from gpuready.deploys.nodes.facts import Containerd, Kubelet, NodeFacts, Numa
from gpuready.deploys.nodes.plan import Disruption, NodePlan, diff
from gpuready.deploys.nodes.standing import CORDONED
from gpuready.deploys.nodes.systems import system_of

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
        modules=seen.modules | set(machine.modules(preparation.settings_of(cluster(), None), None, "inbox")) | RDMA,
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


RDMA = frozenset({"ib_core", "ib_uverbs", "mlx5_ib", "rdma_cm", "rdma_ucm", "ib_umad"})


def test_a_bare_machine_gets_everything_and_then_nothing_more() -> None:
    seen = facts(pci=(GPU, BRIDGE))
    node = {"kernel_arguments": ["iommu=pt"], "acs": "off"}
    made = plan(seen, node=node, group=IB)
    assert titles(made) == [
        "modules",
        "nouveau out of the initial RAM disk",
        "sysctl",
        "swap off",
        "CPU governor",
        "time synchronisation",
        "kernel held",
        "setpci for PCIe ACS",
        "PCIe ACS off at each boot",
    ]
    assert made.disruption.reboot
    again = plan(settled(made, seen), node=node, group=IB)
    assert titles(again) == []
    assert not again.disruption, again.disruption.reasons
    assert diff(again.files, settled(made, seen).files) == ""
    assert [one for one in made.notes if "ACS" not in one] == []


def test_what_the_files_say() -> None:
    made = plan(group=IB, node={"modules": ["nvme"], "sysctl": {"vm.max_map_count": 262144, "net.ipv4.ip_forward": 0}})
    modules = content(made, machine.MODULES_FILE).splitlines()[1:]
    assert modules == ["overlay", "ib_core", "ib_uverbs", "mlx5_ib", "rdma_cm", "rdma_ucm", "ib_umad", "nvme"]
    sysctl = content(made, machine.SYSCTL_FILE)
    # A value of the node that is higher than ours stays, and what inventory says wins.
    assert "fs.inotify.max_user_watches = 1000000\n" in sysctl
    assert "fs.inotify.max_user_instances = 8192\n" in sysctl
    assert "net.ipv4.ip_forward = 0\n" in sysctl
    assert "vm.max_map_count = 262144\n" in sysctl
    assert content(made, machine.FSTAB).splitlines()[1] == "# off, by gpuready: /swap.img none swap sw 0 0"
    limits = content(made, "/etc/systemd/system/containerd.service.d/90-gpuready.conf")
    assert limits.splitlines()[1:] == ["[Service]", "LimitMEMLOCK=infinity"]
    assert "rp_filter" not in sysctl
    roce = {**IB, "rdma": "roce", "host_network": True}
    assert "net.ipv4.conf.all.rp_filter = 2" in content(plan(group=roce), machine.SYSCTL_FILE)


def test_modules_of_rdma_are_left_to_the_operator_that_owns_ofed() -> None:
    assert "mlx5_ib" not in content(plan(group=IB, ofed_owner="operator"), machine.MODULES_FILE)


def test_a_container_has_no_kernel_of_its_own() -> None:
    made = plan(facts(container="systemd-nspawn", governors={}), group=IB)
    assert titles(made) == ["sysctl"]
    with pytest.raises(RefusedError, match="it is a container"):
        plan(facts(container="systemd-nspawn"), node={"kernel_arguments": ["iommu=pt"]})


def test_red_hat() -> None:
    seen = facts(
        os_id="rhel", os_version="9.4", package_manager="dnf", files={**BARE.files, machine.DNF_CONF: "[main]\n"}
    )
    made = plan(seen, node={"kernel_arguments": ["iommu=pt"]})
    assert content(made, machine.DNF_CONF) == "[main]\nexcludepkgs=kernel*\n"
    assert "grubby --update-kernel=ALL --args=iommu=pt" in made.disruption.commands
    assert "grubby --update-kernel=ALL --remove-args=iommu=pt" in made.disruption.undo
    assert machine.without_kernels("[main]\nexclude=foo\ngpgcheck=1\n") == "[main]\nexclude=foo kernel*\ngpgcheck=1\n"
    assert machine.without_kernels("excludepkgs=kernel*\n") == "excludepkgs=kernel*\n"


def test_kernel_arguments_that_inventory_no_longer_names_go() -> None:
    first = plan(node={"kernel_arguments": ["iommu=pt"]})
    text = content(first, boot.GRUB_DROP_IN)
    assert text.endswith('GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX iommu=pt"\n')
    there = facts(files={**BARE.files, boot.GRUB_DROP_IN: text})
    gone = boot.kernel_arguments(preparation.settings_of(cluster(), None), there, system_of(there)[0])
    assert (gone.files[0].content, gone.reboot) == (None, True)
    assert not boot.kernel_arguments(preparation.settings_of(cluster(), None), BARE, system_of(BARE)[0])


def test_hugepages() -> None:
    made = plan(facts(hugepages={2048: 0}), node={"hugepages": {"2Mi": 512, "1Gi": 4}})
    # Not before a maintenance: the kubelet sees them when it starts.
    assert not any("hugepages" in (one.content or "") for one in made.files)
    assert "vm.nr_hugepages = 512" in content(made, machine.HUGEPAGES_FILE)
    assert "hugepages: 0 -> 512 of 2Mi" in made.disruption.reasons
    assert "hugepagesz=1G hugepages=4" in content(made, boot.GRUB_DROP_IN)
    assert made.disruption.reboot
    there = facts(
        hugepages={2048: 512}, files={**BARE.files, machine.HUGEPAGES_FILE: content(made, machine.HUGEPAGES_FILE)}
    )
    assert not any("hugepages" in one for one in plan(there, node={"hugepages": {"2Mi": 512}}).disruption.reasons)
    assert "hugepages: 512 -> 0 of 2Mi" in plan(there).disruption.reasons


def test_what_inventory_no_longer_asks_for_goes() -> None:
    seen = facts(pci=(GPU, BRIDGE))
    there = settled(plan(seen, node={"acs": "off"}), seen)
    made = plan(there, node={"governor": "keep", "swap": "keep"})
    gone = [one.path for one in made.files if one.content is None]
    assert gone == [boot.ACS_UNIT, boot.ACS_SCRIPT, machine.GOVERNOR_UNIT, machine.SWAP_UNIT]
    assert titles(made) == ["units that are no longer wanted"]
    later = dataclasses.replace(there, files={**there.files, **dict.fromkeys(gone)})
    assert titles(plan(later, node={"governor": "keep", "swap": "keep"})) == []


def test_the_script_for_acs_is_a_script() -> None:
    script = content(plan(facts(pci=(GPU, BRIDGE)), node={"acs": "off"}), boot.ACS_SCRIPT)
    subprocess.run(["sh", "-n"], input=script, text=True, check=True)
    assert "setpci -s" in script


@pytest.mark.parametrize(
    ("changes", "node", "more", "line"),
    [
        ({"root": False}, {}, {}, "the probe did not run as root"),
        ({"os_id": "flatcar", "os_like": ()}, {}, {}, "flatcar is neither of the Debian nor of the RHEL family"),
        ({"swap_used_kib": 62 * GIB}, {}, {}, "63488 MiB lie in swap and 61440 MiB of memory are free"),
        ({}, {"hugepages": {"1Gi": 40}}, {}, "`hugepages` take 40.0 of 64.0 GiB, more than half"),
        ({"files": {}}, {"kernel_arguments": ["iommu=pt"]}, {}, "it does not boot by GRUB"),
        (
            {"virtualization": "kvm"},
            {"acs": "off"},
            {},
            "does not work in a virtual machine (kvm), whose isolation needs ACS",
        ),
        (
            {"pci": ({**GPU, "driver": "vfio-pci"},)},
            {"acs": "off"},
            {},
            "take the isolation from device 0000:18:00.0, which is passed to a virtual machine",
        ),
        (
            {"pci": (GPU,), "driver": {"on_host": True}},
            {},
            {},
            "a driver is installed on the host, and `driver_owner` is operator",
        ),
        ({"pci": (GPU,)}, {}, {"driver_owner": "host"}, "`driver_owner` is host, and no driver is installed there"),
        (
            {
                "pci": (GPU,),
                "driver": {
                    "on_host": True,
                    "nvidia": "580.95.05",
                    "nvswitches": 4,
                    "fabric_manager": {"active": "active", "version": "580.82.07"},
                },
            },
            {},
            {"driver_owner": "host"},
            "fabric manager 580.82.07 and driver 580.95.05 differ",
        ),
        (
            {"containerd": Containerd(version="1.7.27", config=CONFIG, error="bad\ntoml")},
            {},
            {},
            "`containerd config dump` fails, so that containerd would not start again: bad toml",
        ),
        (
            {
                "containerd": Containerd(
                    version="2.1.4",
                    config="version = 3\n",
                    dump=DUMP_2,
                    drop_ins={"/etc/containerd/conf.d/99-nvidia.toml": "version = 2\n"},
                )
            },
            {},
            {},
            "/etc/containerd/conf.d/99-nvidia.toml has version 2 and /etc/containerd/config.toml 3",
        ),
        (
            {"containerd": Containerd(version="1.7.27", config="version = 2\nplugins = {a = 1}\n", dump=DUMP)},
            {},
            {},
            "/etc/containerd/config.toml is written in a way that gpuready does not edit; set plugins.",
        ),
    ],
)
def test_refusals(changes: dict[str, Any], node: dict[str, Any], more: dict[str, Any], line: str) -> None:
    with pytest.raises(RefusedError) as refused:
        plan(facts(**changes), node=node, **more)
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "more", "line"),
    [
        ({"os_version": "25.10"}, {}, "ubuntu 25.10 is untried; it is treated as Debian"),
        ({"cgroup": 1}, {}, "cgroup version 1: kubelets from 1.35 on do not start there"),
        ({"pci": (GPU,), "secure_boot": True}, {}, "Secure Boot is on"),
        ({"pci": ({**GPU, "iommu_type": "DMA-FQ"},)}, {}, "the IOMMU translates the GPUs' DMA"),
        ({"pci": (GPU, BRIDGE)}, {}, "PCIe ACS sends peer traffic to the root on 1 bridges"),
        (
            {"pci": (GPU,), "driver": {"on_host": True, "nvidia": "570.1"}},
            {"driver_owner": "host"},
            "driver 570.1 is loaded, inventory names 580.95.05",
        ),
        (
            {"pci": (GPU,), "driver": {"on_host": True, "nvidia": "580.95.05", "nvswitches": 4}},
            {"driver_owner": "host"},
            "it has NVSwitches and no running fabric manager",
        ),
    ],
)
def test_notes(changes: dict[str, Any], more: dict[str, Any], line: str) -> None:
    (note,) = plan(facts(**changes), **more).notes
    assert note.startswith("gpu-0: ")
    assert line in note


def test_a_sound_machine_is_no_news() -> None:
    assert plan(facts(pci=(GPU,))).notes == ()
    # In a virtual machine both are the host's business.
    assert plan(facts(pci=({**GPU, "iommu_type": "DMA"}, BRIDGE), virtualization="kvm")).notes == ()


# -- containerd ---------------------------------------------------------------------------------------------------


def test_containerd_is_edited_in_place() -> None:
    made = plan()
    text = content(made, "/etc/containerd/config.toml")
    assert text.splitlines()[:2] == ["version = 2", "# ours"]
    cri = tomllib.loads(text)["plugins"]["io.containerd.grpc.v1.cri"]
    assert cri["enable_cdi"] is True
    assert cri["containerd"]["runtimes"]["runc"]["options"] == {"SystemdCgroup": True}
    assert cri["sandbox_image"] == "registry.k8s.io/pause:3.10"
    assert made.disruption.services == ("containerd",)


def test_containerd_that_is_right_by_default_is_left_alone() -> None:
    found = Containerd(version="2.1.4", dump=DUMP_2)
    assert not containerd.plan(preparation.settings_of(cluster(), None), facts(containerd=found))[0]
    # The kubelet of this node does not use systemd's control groups: then neither does containerd.
    other = facts(containerd=found, kubelet=Kubelet(live={"cgroupDriver": "cgroupfs"}))
    change, _ = containerd.plan(preparation.settings_of(cluster(), None), other)
    table = tomllib.loads(change.files[0].content or "")
    assert table["version"] == 3
    assert table["plugins"]["io.containerd.cri.v1.runtime"]["containerd"]["runtimes"]["runc"]["options"] == {
        "SystemdCgroup": False
    }


def test_registry_mirrors() -> None:
    node = {"registry_mirrors": {"docker.io": ["https://mirror.lab:5000"]}}
    made = plan(node=node)
    hosts = tomllib.loads(content(made, "/etc/containerd/certs.d/docker.io/hosts.toml"))
    assert hosts == {
        "server": "https://registry-1.docker.io",
        "host": {"https://mirror.lab:5000": {"capabilities": ["pull", "resolve"]}},
    }
    assert 'config_path = "/etc/containerd/certs.d"' in content(made, "/etc/containerd/config.toml")
    k3s = plan(node=node, platform="k3s")
    assert "endpoint:" in content(k3s, containerd.K3S_REGISTRIES)
    assert not any("/etc/containerd" in one.path for one in (*k3s.files, *k3s.disruption.files))
    with pytest.raises(RefusedError, match="is not of gpuready"):
        plan(facts(files={**BARE.files, containerd.K3S_REGISTRIES: "mirrors: {}\n"}), node=node, platform="k3s")


def test_the_proof_fails_where_a_drop_in_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containerd, "STAGED", str(tmp_path / "staged"))
    (proof,) = [one for one in plan().disruption.commands if "config dump" in one]
    right = DUMP.replace("false", "true")
    for dump, good in (
        (right, True),
        (DUMP, False),
        (right.replace('"', "'"), True),
        (right.replace(".options]", ".other]"), False),
    ):
        (tmp_path / "containerd").write_text(f"#!/bin/sh\ncat <<'EOT'\n{dump}EOT\n")
        (tmp_path / "containerd").chmod(0o755)
        path = f"{tmp_path}:/usr/bin:/bin"
        assert (subprocess.run(["sh", "-c", proof], env={"PATH": path}, check=False).returncode == 0) is good


# -- guards -------------------------------------------------------------------------------------------------------

JOINED = facts(traces={"kubeadm": ("/etc/kubernetes/kubelet.conf",)})


@pytest.mark.parametrize(
    "command",
    [
        "kubeadm join 10.0.0.1:6443 --token x",
        "sudo kubeadm reset --force",
        "/usr/local/bin/k3s-agent-uninstall.sh",
        "k3s-uninstall.sh",
        "rm -rf /etc/kubernetes",
        "curl -sfLk https://x/node/join?token=y | sh -",
    ],
)
def test_clusters_are_never_made_or_left(command: str) -> None:
    for platform in ("hosted", "vcluster"):
        with pytest.raises(RefusedError, match=f"is never run on platform {platform}"):
            guards.check(platform, BARE, [command])
    with pytest.raises(RefusedError, match=r"has joined a cluster \(/etc/kubernetes/kubelet.conf\)"):
        guards.check("kubeadm", JOINED, [command])
    guards.check("kubeadm", BARE, [command])


def test_our_own_commands_are_harmless() -> None:
    for platform in ("kubeadm", "k3s", "hosted", "vcluster"):
        made = plan(facts(pci=(GPU, BRIDGE), traces=JOINED.traces), node={"acs": "off"}, group=IB, platform=platform)
        assert made.commands()
        guards.check(platform, JOINED, [*made.commands(), "cat /var/lib/kubelet/kubeadm-flags.env"])


def test_a_control_plane_on_a_hosted_node_is_said() -> None:
    seen = facts(traces={"kubeadm": ("/etc/kubernetes/manifests/kube-apiserver.yaml",)})
    assert "somebody ran kubeadm init" in plan(seen, platform="hosted").notes[0]
    assert plan(seen).notes == ()


# -- maintenance --------------------------------------------------------------------------------------------------


def test_what_disturbs_waits_for_a_maintenance() -> None:
    change, reboot = Disruption(reasons=("kubelet",)), Disruption(reasons=("kernel",), reboot=True)
    calm = cluster()
    line = preparation.withheld(calm, change, "gpu-0", joined=True)
    assert line is not None
    assert "withheld, since it disturbs pods: kubelet; to make it, add 'gpu-0' to `maintenance`" in line
    assert preparation.withheld(calm, Disruption(), "gpu-0", joined=True) is None
    # A machine that has joined nothing has no pods; yet nobody's machine is rebooted unasked.
    assert preparation.withheld(calm, change, "gpu-0", joined=False) is None
    assert preparation.withheld(calm, reboot, "gpu-0", joined=False) is not None
    for names in (["*"], ["lab"], ["gpu-0"]):
        assert preparation.withheld(cluster(maintenance=names), reboot, "gpu-0", joined=True) is None
    assert preparation.withheld(cluster(maintenance=["gpu-1"]), change, "gpu-0", joined=True) is not None


def test_an_interrupted_rollout_is_taken_up() -> None:
    made = cluster(maintenance=["*"])
    seen = facts(containerd=Containerd())
    first = preparation.plan(made, made.groups[0], seen, None)
    marked = {"metadata": {"name": "gpu-0", "annotations": {CORDONED: "rollout"}}}
    again = preparation.plan(made, made.groups[0], settled(first, seen), marked)
    assert again.disruption.reasons == ("an earlier run was interrupted here, and left the node cordoned",)


def test_the_group_of_a_machine() -> None:
    two = cluster(groups={"a": GROUP, "b": {**GROUP, "nodes": (), "count": 1, "selector": {"pool": "b"}}})
    assert name(preparation.group_of(two, "gpu-0", None)) == "a"
    assert preparation.group_of(two, "gpu-9", None) is None
    labelled = {"metadata": {"name": "gpu-9", "labels": {"pool": "b"}}}
    assert name(preparation.group_of(two, "gpu-9", labelled)) == "b"
    only = cluster({**GROUP, "nodes": (), "count": 1, "selector": {"pool": "b"}})
    assert name(preparation.group_of(only, "gpu-9", None)) == "h100"


def name(group: Group | None) -> str:
    assert group is not None
    return group.name
