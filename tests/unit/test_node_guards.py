"""What is never done to a node, what is left to its platform, and what waits for a maintenance."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import yaml
from gpuready.charts_values.errors import RefusedError
from gpuready.charts_values.groups import Group
from gpuready.deploys.nodes import boot, guards, kubelet, machine, preparation
from gpuready.deploys.nodes.facts import Containerd
from gpuready.deploys.nodes.plan import Disruption, Step
from gpuready.deploys.nodes.standing import CORDONED, moves

from .bare_machine import BARE, BRIDGE, GPU, GROUP, IB, cluster, facts, plan, settled

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


@pytest.mark.parametrize("command", ["kubeadm reset --force", "/usr/local/bin/k3s-agent-uninstall.sh", "kubelet reset"])
def test_a_plan_with_such_a_command_is_an_error(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # As a step, as a command of the rollout, and as one that only a failure would run.
    step = (Step("x", command),)
    for platform in ("hosted", "vcluster"):
        with monkeypatch.context() as patch:
            patch.setattr(machine, "steps", lambda *_: step)
            with pytest.raises(
                RefusedError, match=f"is never run on platform {platform}: its nodes join by themselves"
            ):
                plan(platform=platform)
        for change in (Disruption(reasons=("x",), commands=(command,)), Disruption(reasons=("x",), undo=(command,))):
            with monkeypatch.context() as patch:
                patch.setattr(boot, "nouveau", lambda _, change=change: change)
                with pytest.raises(RefusedError, match=f"is never run on platform {platform}"):
                    plan(platform=platform)


def test_our_own_commands_are_harmless() -> None:
    for platform in ("kubeadm", "k3s", "hosted", "vcluster"):
        made = plan(facts(pci=(GPU, BRIDGE), traces=JOINED.traces), node={"acs": "off"}, group=IB, platform=platform)
        assert made.commands()
        guards.check(platform, JOINED, [*made.commands(), "cat /var/lib/kubelet/kubeadm-flags.env"])


def test_a_control_plane_on_a_hosted_node_is_said() -> None:
    seen = facts(traces={"kubeadm": ("/etc/kubernetes/manifests/kube-apiserver.yaml",)})
    assert "somebody ran kubeadm init" in plan(seen, platform="hosted").notes[0]
    assert plan(seen).notes == ()


# -- vCluster ------------------------------------------------------------------------------------------------------

EVERYTHING: dict[str, Any] = {
    "cpu_manager": {"policy": "static"},
    "memory_manager": {"policy": "Static"},
    "reserved": {"cpus": "0-1", "kube_memory": "1Gi", "eviction_memory": "100Mi"},
    "limits": {"nofile": 1048576},
    "hugepages": {"2Mi": 8, "1Gi": 1},
    "kernel_arguments": ["iommu=pt"],
    "registry_mirrors": {"nvcr.io": ["https://mirror.lab"]},
    "acs": "off",
}


def test_on_vcluster_the_machine_is_prepared_and_its_kubelet_left_alone() -> None:
    seen = facts(
        pci=(GPU, BRIDGE),
        kubelet=dataclasses.replace(
            BARE.kubelet, running=True, flags=("--config=/x",), state={"/var/lib/kubelet/cpu_manager_state": "{}"}
        ),
    )
    made = plan(seen, node=EVERYTHING, group=IB, platform="vcluster")
    paths = [one.path for one in (*made.files, *made.disruption.files)]
    assert not [one for one in (*paths, *made.commands()) if "kubelet" in one.replace("kubelet.service k3s", "")]
    assert made.disruption.removals == ()
    assert not made.disruption.expected
    # What is below Kubernetes, and containerd's own file, are the machine's.
    assert "/etc/systemd/system/containerd.service.d/90-gpuready.conf" in paths
    assert {machine.SYSCTL_FILE, machine.HUGEPAGES_FILE, boot.GRUB_DROP_IN, boot.ACS_UNIT} < set(paths)
    config = yaml.safe_load(made.printed)["privateNodes"]["kubelet"]["config"]
    assert config == kubelet.wanted(preparation.settings_of(cluster(node=EVERYTHING), None), seen)
    assert (config["cpuManagerPolicy"], config["reservedSystemCPUs"]) == ("static", "0-1")
    # Elsewhere the same settings are files of the kubelet.
    for platform in ("kubeadm", "hosted"):
        other = plan(seen, node=EVERYTHING, group=IB, platform=platform)
        assert other.printed == ""
        assert [one.path for one in other.disruption.files if "kubelet" in one.path] == [
            "/etc/kubernetes/kubelet.conf.d/50-gpuready.conf",
            "/etc/default/kubelet",
            "/etc/systemd/system/kubelet.service.d/90-gpuready.conf",
        ]


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


@pytest.mark.parametrize(
    ("meta", "phase", "leaves"),
    [
        ({"ownerReferences": [{"kind": "ReplicaSet"}]}, "Running", True),
        ({}, "Pending", True),
        ({"ownerReferences": [{"kind": "DaemonSet"}]}, "Running", False),
        ({"ownerReferences": [{"kind": "Node"}]}, "Running", False),
        ({"annotations": {"kubernetes.io/config.mirror": "1"}}, "Running", False),
        ({"ownerReferences": [{"kind": "Job"}]}, "Succeeded", False),
        ({}, "Failed", False),
    ],
)
def test_the_pods_that_a_drain_is_about(meta: dict[str, Any], phase: str, leaves: bool) -> None:
    assert moves({"metadata": meta, "status": {"phase": phase}}) is leaves
