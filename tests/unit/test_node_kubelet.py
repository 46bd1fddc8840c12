"""The kubelet's plan: its file on each platform, the sums that it starts with, the state files that must go."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import yaml
from gpuready.charts_values import node_settings
from gpuready.charts_values.errors import RefusedError
from gpuready.charts_values.node_settings import NodeSettings
from gpuready.deploys.nodes import kubelet
from gpuready.deploys.nodes.facts import Kubelet, NodeFacts, Numa, from_probe
from gpuready.deploys.nodes.plan import Disruption
from gpuready.deploys.nodes.standing import holds, standing
from gpuready.deploys.nodes.systems import system_of

GIB = 2**20  # in KiB
DROP_IN = "/etc/kubernetes/kubelet.conf.d/50-gpuready.conf"
UNIT = "[Service]\nEnvironmentFile=-/var/lib/kubelet/kubeadm-flags.env\nEnvironmentFile=-/etc/default/kubelet\n"
NODE = NodeFacts(
    name="gpu-0",
    os_id="ubuntu",
    os_version="24.04",
    online=(0, 1, 2, 3),
    numa=(Numa(0, (0, 1), 64 * GIB), Numa(1, (2, 3), 64 * GIB)),
    memory_kib=128 * GIB,
    kubelet=Kubelet(version="v1.35.4", unit=UNIT, environment={}),
)
STATIC = {"cpu_manager": {"policy": "static"}, "reserved": {"cpus": "0-1"}}
MEMORY: dict[str, Any] = {
    "memory_manager": {"policy": "Static"},
    "reserved": {"kube_memory": "4Gi", "system_memory": "1Gi", "eviction_memory": "100Mi"},
}


def settings(**table: Any) -> NodeSettings:
    return node_settings.parse("inventory, cluster 'lab'", table)


def plan(table: dict[str, Any], facts: NodeFacts = NODE, platform: str = "kubeadm") -> Disruption:
    return kubelet.plan(settings(**table), facts, platform, system_of(facts)[0])[0]


def with_kubelet(**changes: Any) -> NodeFacts:
    return dataclasses.replace(NODE, kubelet=dataclasses.replace(NODE.kubelet, **changes))


def content(change: Disruption, path: str) -> str:
    (found,) = [one for one in change.files if one.path == path]
    assert found.content is not None
    return found.content


def applied(change: Disruption, facts: NodeFacts = NODE) -> NodeFacts:
    """The node as a probe finds it once the change is made and the kubelet runs."""
    texts: dict[str, str] = {one.path: one.content or "" for one in change.files}
    part = {
        "version": facts.kubelet.version,
        "unit": facts.kubelet.unit,
        "flags": ["--config=/var/lib/kubelet/config.yaml", f"--config-dir={DROP_IN.rpartition('/')[0]}"],
        "config_dir": DROP_IN.rpartition("/")[0],
        "config": yaml.safe_dump(dict(facts.kubelet.config)),
        "drop_ins": {path: text for path, text in texts.items() if path.endswith(".conf")},
        "environment": {path: text for path, text in texts.items() if not path.endswith(".conf")},
        "state": {path: text for path, text in facts.kubelet.state.items() if path not in change.removals},
    }
    found = from_probe("gpu-0", {"kubelet": part})
    return dataclasses.replace(facts, kubelet=found.kubelet)


def test_kubeadm_gets_a_drop_in_and_the_flag_for_it() -> None:
    change = plan({})
    body = yaml.safe_load(content(change, DROP_IN))
    assert body == {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "topologyManagerPolicy": "restricted",
        "topologyManagerScope": "pod",
        "topologyManagerPolicyOptions": {"prefer-closest-numa-nodes": "true"},
    }
    assert content(change, "/etc/default/kubelet") == "KUBELET_EXTRA_ARGS=--config-dir=/etc/kubernetes/kubelet.conf.d\n"
    assert change.removals == ()
    assert change.expected["topologyManagerPolicy"] == "restricted"


@pytest.mark.parametrize("table", [{}, STATIC, MEMORY, {**STATIC, "cpu_manager": {"policy": "none"}}])
def test_a_second_run_changes_nothing(table: dict[str, Any]) -> None:
    first = plan(table)
    assert first
    assert not plan(table, applied(first))


def test_a_kubelet_that_was_not_restarted_is_found_out() -> None:
    done = applied(plan({}))
    stale = dataclasses.replace(done, kubelet=dataclasses.replace(done.kubelet, config_dir="", live={}))
    assert "it runs without the settings of its files" in plan({}, stale).reasons[0]


def test_red_hat_has_another_place_for_the_flag() -> None:
    facts = dataclasses.replace(NODE, os_id="rocky", os_version="9.4", kubelet=Kubelet(version="v1.35.4"))
    assert "--config-dir" in content(plan({}, facts), "/etc/sysconfig/kubelet")


def test_a_directory_that_the_kubelet_reads_already_is_used() -> None:
    change = plan({}, with_kubelet(config_dir="/etc/kubelet.d", flags=("--config-dir=/etc/kubelet.d",)))
    assert [one.path for one in change.files] == ["/etc/kubelet.d/50-gpuready.conf"]


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("", "KUBELET_EXTRA_ARGS=--config-dir=/d\n"),
        ("KUBELET_EXTRA_ARGS=\n", "KUBELET_EXTRA_ARGS=--config-dir=/d\n"),
        ("# ours\nKUBELET_EXTRA_ARGS=--v=2\n", '# ours\nKUBELET_EXTRA_ARGS="--v=2 --config-dir=/d"\n'),
        ('KUBELET_EXTRA_ARGS="--v=2 --x=y"\nB=1\n', 'KUBELET_EXTRA_ARGS="--v=2 --x=y --config-dir=/d"\nB=1\n'),
        ("KUBELET_EXTRA_ARGS='--v=2'\n", "KUBELET_EXTRA_ARGS='--v=2 --config-dir=/d'\n"),
        ("KUBELET_EXTRA_ARGS=--config-dir=/e\n", "KUBELET_EXTRA_ARGS=--config-dir=/e\n"),
        (
            "KUBELET_EXTRA_ARGS=a\nKUBELET_EXTRA_ARGS=b\n",
            'KUBELET_EXTRA_ARGS=a\nKUBELET_EXTRA_ARGS="b --config-dir=/d"\n',
        ),
    ],
)
def test_extra_arguments_are_added_to(text: str, result: str) -> None:
    assert kubelet.extra_args("/etc/default/kubelet", text, "/d") == result


@pytest.mark.parametrize(
    "text", ["KUBELET_EXTRA_ARGS=--v=2 \\\n  --x\n", 'KUBELET_EXTRA_ARGS=--x="a b"\n', 'KUBELET_EXTRA_ARGS="a\n']
)
def test_extra_arguments_of_another_form_are_left_alone(text: str) -> None:
    with pytest.raises(RefusedError, match="KUBELET_EXTRA_ARGS"):
        kubelet.extra_args("/etc/default/kubelet", text, "/d")


def test_k3s_takes_arguments() -> None:
    change = plan({**MEMORY, "cpu_manager": {"policy": "static"}}, platform="k3s")
    (file,) = change.files
    assert file.path == "/etc/rancher/k3s/config.yaml.d/50-gpuready.yaml"
    assert yaml.safe_load(file.content or "") == {
        "kubelet-arg+": [
            "topology-manager-policy=restricted",
            "topology-manager-scope=pod",
            "topology-manager-policy-options=prefer-closest-numa-nodes=true",
            "cpu-manager-policy=static",
            "kube-reserved=memory=4096Mi",
            "system-reserved=memory=1024Mi",
            "eviction-hard=memory.available<100Mi,nodefs.available<10%,nodefs.inodesFree<5%,imagefs.available<15%,"
            "imagefs.inodesFree<5%",
            "memory-manager-policy=Static",
            "reserved-memory=0:memory=2610Mi;1:memory=2610Mi",
        ]
    }
    assert change.unit == "k3s-agent"
    # The kubelet's own files show nothing of it: only a change of ours makes the state files go.
    static = dataclasses.replace(NODE.kubelet, state={kubelet.MEMORY_STATE: '{"policyName":"Static"}'})
    there = dataclasses.replace(NODE, files={file.path: file.content}, kubelet=static)
    assert plan(MEMORY, there, platform="k3s").removals == (kubelet.MEMORY_STATE,)
    assert not plan({**MEMORY, "cpu_manager": {"policy": "static"}}, there, platform="k3s")


def test_vcluster_is_told_and_never_written() -> None:
    change, printed = kubelet.plan(settings(), NODE, "vcluster", system_of(NODE)[0])
    assert not change
    config = yaml.safe_load(printed)["privateNodes"]["kubelet"]["config"]
    assert config["topologyManagerPolicy"] == "restricted"
    live = with_kubelet(flags=("--config=/var/lib/kubelet/config.yaml",), running=True, live=config)
    assert kubelet.plan(settings(), live, "vcluster", system_of(NODE)[0]) == (Disruption(), "")


# -- Memory Manager -----------------------------------------------------------------------------------------------


def memory_mib(table: dict[str, Any], facts: NodeFacts = NODE) -> dict[int, str]:
    found = kubelet.wanted(settings(**table), facts)["reservedMemory"]
    return {one["numaNode"]: one["limits"]["memory"] for one in found}


def test_reserved_memory_adds_up_to_what_the_node_keeps() -> None:
    # 4 GiB + 1 GiB + 100 MiB = 5220 MiB, the example of the Kubernetes documentation.
    assert memory_mib(MEMORY) == {0: "2610Mi", 1: "2610Mi"}
    uneven = dataclasses.replace(NODE, numa=(Numa(0, (0, 1), 3 * GIB), Numa(1, (2, 3), GIB), Numa(2, (), 96 * GIB)))
    assert memory_mib(MEMORY, uneven) == {0: "3915Mi", 1: "1305Mi"}
    # What does not divide goes to one of them, so that not a byte is lost.
    odd = {**MEMORY, "reserved": {**MEMORY["reserved"], "kube_memory": "4097Mi"}}
    assert memory_mib(odd) == {0: "2611Mi", 1: "2610Mi"}
    given = {**MEMORY, "memory_manager": {"policy": "Static", "reserved": {0: "3072Mi", 1: "2148Mi"}}}
    assert memory_mib(given) == {0: "3072Mi", 1: "2148Mi"}


def test_reserved_memory_counts_what_the_node_keeps_already() -> None:
    facts = with_kubelet(config={"kubeReserved": {"memory": "1Gi"}, "evictionHard": {"memory.available": "500Mi"}})
    assert memory_mib({"memory_manager": {"policy": "Static"}}, facts) == {0: "762Mi", 1: "762Mi"}
    # Without any word the kubelet's own threshold of 100 MiB remains.
    assert memory_mib({"memory_manager": {"policy": "Static"}}) == {0: "50Mi", 1: "50Mi"}


@pytest.mark.parametrize(
    ("table", "changes", "line"),
    [
        (
            {**MEMORY, "memory_manager": {"policy": "Static", "reserved": {0: "3Gi", 1: "2Gi"}}},
            {},
            "`memory_manager.reserved` adds up to 5120Mi; the kubelet starts only with 5220Mi",
        ),
        (
            {**MEMORY, "memory_manager": {"policy": "Static", "reserved": {0: "5120Mi", 7: "100Mi"}}},
            {},
            "names NUMA node 7, which it does not have",
        ),
        (
            {"memory_manager": {"policy": "Static"}},
            {"kubelet": Kubelet(version="v1.35.4", unit=UNIT, config={"evictionHard": {"memory.available": "5%"}})},
            "evictionHard memory.available is 5%, and Memory Manager needs it in bytes",
        ),
        ({"memory_manager": {"policy": "Static"}}, {"numa": ()}, "its NUMA nodes could not be read"),
        ({}, {"kubelet": Kubelet(version="v1.29.3", unit=UNIT)}, "kubelet v1.29.3 has no --config-dir"),
        ({}, {"kubelet": Kubelet(unit="[Service]\nExecStart=/usr/bin/kubelet")}, "does not read /etc/default/kubelet"),
        (
            {},
            {"kubelet": Kubelet(unit=UNIT, flags=("--topology-manager-policy", "none"))},
            "started with --topology-manager-policy=none, which beats its files",
        ),
        (
            {},
            {
                "kubelet": Kubelet(
                    unit=UNIT, environment={"/etc/default/kubelet": "A=--topology-manager-scope=container"}
                )
            },
            "started with --topology-manager-scope=container",
        ),
        (
            {},
            {
                "kubelet": Kubelet(
                    unit=UNIT, drop_ins={"/etc/kubernetes/kubelet.conf.d/90-x.conf": "topologyManagerPolicy: none"}
                )
            },
            "/etc/kubernetes/kubelet.conf.d/90-x.conf sets topologyManagerPolicy after gpuready's file",
        ),
    ],
)
def test_refusals(table: dict[str, Any], changes: dict[str, Any], line: str) -> None:
    with pytest.raises(RefusedError) as refused:
        plan(table, dataclasses.replace(NODE, **changes))
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)


def test_flags_and_files_that_say_the_same_are_no_quarrel() -> None:
    flags = ("--topology-manager-policy=restricted", "--topology-manager-policy-options=prefer-closest-numa-nodes=true")
    assert plan({}, with_kubelet(flags=flags))


# -- state files --------------------------------------------------------------------------------------------------


def cpu_state(policy: str, default: str, **entries: Any) -> dict[str, str]:
    return {kubelet.CPU_STATE: json.dumps({"policyName": policy, "defaultCpuSet": default, "entries": entries})}


@pytest.mark.parametrize(
    ("table", "changes", "gone"),
    [
        (STATIC, {"state": cpu_state("none", "")}, (kubelet.CPU_STATE,)),
        # Another reservation of the same policy.
        (STATIC, {"state": cpu_state("static", "0-3")}, (kubelet.CPU_STATE,)),
        ({}, {"state": cpu_state("none", "")}, ()),
        ({}, {}, ()),
        # A CPU was taken away while nothing else changed.
        (
            {},
            {
                "state": cpu_state("static", "0-2", pod={"main": "3-4"}),
                "config": {"cpuManagerPolicy": "static", "reservedSystemCPUs": "0"},
                "live": {"cpuManagerPolicy": "static", "reservedSystemCPUs": "0"},
            },
            (kubelet.CPU_STATE,),
        ),
        (
            {},
            {
                "state": cpu_state("static", "0-1", pod={"main": "2-3"}),
                "config": {"cpuManagerPolicy": "static", "reservedSystemCPUs": "0"},
                "live": {"cpuManagerPolicy": "static", "reservedSystemCPUs": "0"},
            },
            (),
        ),
        (MEMORY, {"state": {kubelet.MEMORY_STATE: '{"policyName":"None"}'}}, (kubelet.MEMORY_STATE,)),
        (
            {},
            {"state": {kubelet.MEMORY_STATE: '{"policyName":"None"}', kubelet.CPU_STATE: '{"policyName":"none"}'}},
            (),
        ),
        # A damaged file stops the kubelet just the same.
        ({}, {"state": {kubelet.CPU_STATE: "{"}}, (kubelet.CPU_STATE,)),
    ],
)
def test_exactly_the_state_files_that_must_go(
    table: dict[str, Any], changes: dict[str, Any], gone: tuple[str, ...]
) -> None:
    assert plan(table, with_kubelet(**changes)).removals == gone


def test_strictly_reserved_cpus_are_in_no_state_file() -> None:
    table = {**STATIC, "cpu_manager": {"policy": "static", "options": {"strict-cpu-reservation": True}}}
    done = applied(plan(table))
    settled = dataclasses.replace(done, kubelet=dataclasses.replace(done.kubelet, state=cpu_state("static", "2-3")))
    assert not plan(table, settled)


def test_a_policy_that_inventory_does_not_name_stays() -> None:
    config = {"cpuManagerPolicy": "static", "reservedSystemCPUs": "0"}
    facts = with_kubelet(config=config, live=config, state=cpu_state("static", "0-3"))
    change = plan({}, facts)
    assert change.removals == ()
    assert "cpuManagerPolicy" not in change.expected


# -- what the running kubelet says --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("has", "wants", "same"),
    [
        ("static", "static", True),
        ("none", "static", False),
        (None, "restricted", False),
        # Amounts in another form are the same amount.
        ("4Gi", "4096Mi", True),
        ("1500m", "1.5", True),
        ("100Mi", "104857600", True),
        ("10%", "100Mi", False),
        # It may show more than was asked for, and never less.
        ({"cpu": "1", "memory": "1Gi"}, {"memory": "1024Mi"}, True),
        ({"cpu": "1"}, {"memory": "1Gi"}, False),
        ([{"numaNode": 0, "limits": {"memory": "1Gi"}}], [{"numaNode": 0, "limits": {"memory": "1024Mi"}}], True),
        ([], [{"numaNode": 0, "limits": {"memory": "1Gi"}}], False),
        ([{"numaNode": 1, "limits": {"memory": "1Gi"}}], [{"numaNode": 0, "limits": {"memory": "1Gi"}}], False),
        ({"full-pcpus-only": "true"}, {"full-pcpus-only": "true", "strict-cpu-reservation": "true"}, False),
    ],
)
def test_what_a_kubelet_shows_holds_what_was_asked_for(has: Any, wants: Any, same: bool) -> None:
    assert holds(has, wants) is same


@pytest.mark.parametrize(
    ("status", "reason", "message", "found"),
    [
        ("True", "KubeletReady", "", (True, False, True)),
        ("False", "KubeletNotReady", "container runtime network not ready: cni plugin not initialized", (0, 1, 1)),
        ("False", "KubeletNotReady", "PLEG is not healthy", (False, False, False)),
        # A kubelet that is silent cannot complain of its network.
        ("Unknown", "NodeStatusUnknown", "network: Kubelet stopped posting node status", (False, False, False)),
    ],
)
def test_how_a_node_stands(status: str, reason: str, message: str, found: tuple[bool, bool, bool]) -> None:
    ready = {"type": "Ready", "status": status, "reason": reason, "message": message}
    stands = standing({"metadata": {"name": "gpu-0"}, "status": {"conditions": [ready]}})
    assert (stands.ready, stands.network_only, stands.well) == found
    assert standing({"metadata": {"name": "gpu-0"}}).complaint == "NotReady, no word of its kubelet"
    assert not standing(None).joined


def test_several_cpu_manager_options_are_arguments_of_their_own_on_k3s() -> None:
    table = {"cpu_manager": {"policy": "static", "options": {"full-pcpus-only": True, "strict-cpu-reservation": True}}}
    (file,) = plan({**table, "reserved": {"cpus": "0-1"}}, platform="k3s").files
    arguments = yaml.safe_load(file.content or "")["kubelet-arg+"]
    assert [one for one in arguments if one.startswith("cpu-manager-policy-options")] == [
        "cpu-manager-policy-options=full-pcpus-only=true",
        "cpu-manager-policy-options=strict-cpu-reservation=true",
    ]
