"""The plan of the machine below the kubelet: what it does, what it refuses, and that a second run does nothing."""

from __future__ import annotations

import dataclasses
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from gpuready.charts_values.errors import RefusedError
from gpuready.deploys.nodes import boot, containerd, machine, preparation
from gpuready.deploys.nodes.facts import Containerd, Kubelet
from gpuready.deploys.nodes.plan import diff

from .bare_machine import (
    BARE,
    BRIDGE,
    CONFIG,
    DUMP,
    DUMP_2,
    GIB,
    GPU,
    IB,
    cluster,
    content,
    facts,
    plan,
    settled,
    titles,
)


def test_a_bare_machine_gets_everything_and_then_nothing_more() -> None:
    seen = facts(pci=(GPU, BRIDGE))
    node = {"kernel_arguments": ["iommu=pt"], "acs": "off"}
    made = plan(seen, node=node, group=IB)
    assert titles(made) == [
        "modules",
        "initial RAM disk",
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


def test_options_of_modules() -> None:
    node = {
        "module_options": {
            "nvidia": "NVreg_OpenRmEnableUnsupportedGpus=1",
            "ib_core": "netns_mode=0 recv_queue_size=512",
        }
    }
    seen = facts(modules=frozenset({"overlay", "ib_core"}))
    made = plan(seen, node=node)
    assert content(made, machine.OPTIONS_FILE).splitlines()[1:] == [
        "options ib_core netns_mode=0 recv_queue_size=512",
        "options nvidia NVreg_OpenRmEnableUnsupportedGpus=1",
    ]
    assert "initial RAM disk" in titles(made)
    assert made.notes == ("gpu-0: `module_options` of ib_core count when it is loaded again: at the next boot",)
    there = settled(made, seen)
    again = plan(there, node=node)
    assert (titles(again), again.notes) == ([], ())
    gone = plan(there)
    assert [one.path for one in gone.files if one.content is None] == [machine.OPTIONS_FILE]
    assert titles(gone) == ["initial RAM disk"]


@pytest.mark.parametrize(
    ("system", "command"),
    [
        ("ubuntu", "apt-get install -y -q chrony && systemctl enable -q --now chrony.service"),
        ("rhel", "dnf install -y -q chrony && systemctl enable -q --now chronyd.service"),
    ],
)
def test_a_machine_without_a_time_service_gets_one(system: str, command: str) -> None:
    bare = {"os_id": system, "os_version": {"ubuntu": "24.04", "rhel": "9.4"}[system], "units": {}}

    def clock(**changes: Any) -> list[str]:
        return [one.command for one in plan(facts(**bare, **changes)).steps if one.title == "time synchronisation"]

    (found,) = clock()
    assert found.endswith(command)
    # Something that we do not know keeps its clock.
    assert clock(synchronized=True) == []


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
