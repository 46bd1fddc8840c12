"""Kubelets that tell less than others, or write what they are told in their own way."""

from __future__ import annotations

import json

from gpuready.validators.evidence import Evidence, ReadFailure
from gpuready.validators.model import Status, exit_code

from .machines import Probe, configz, gpu_machine
from .test_node_checks import bad, cluster, results, seen, state

STATIC_OPTIONS = ("full-pcpus-only", "prefer-align-cpus-by-uncorecache")


def test_flags_and_files_stand_in_for_a_kubelet_that_may_not_be_asked() -> None:
    evidence = seen(gpu_machine())
    for name, files in evidence.nodes.items():
        del files["configz.json"]
        evidence.failures[f"nodes/{name}/configz.json"] = ReadFailure("forbidden", "nodes/proxy")
    found = results(cluster(), evidence)
    assert {one[0] for one in bad(found)} == {"node.kubelet_restart"}
    # The least role does not hold the right, so that nothing is required of it.
    assert exit_code(found, strict=True) == 0
    policy = next(one for one in found if one.check == "node.kubelet_policy")
    assert policy.status is Status.PASS and "by its files and flags" in policy.finding.detail

    probe = gpu_machine()
    probe["kubelet"]["flags"].append("--topology-manager-policy=none")
    evidence = Evidence(nodes={"gpu-1": {"probe.json": json.dumps(probe)}})
    assert ("node.kubelet_policy", "fail", "PolicyDiffers", "gpu-1") in bad(results(cluster(), evidence))


def k3s_machine() -> Probe:
    """A machine whose kubelet is part of k3s: no process, no file of its own; only what gpuready gave k3s."""
    probe = gpu_machine()
    args = ["topology-manager-policy=restricted", "topology-manager-scope=pod", "cpu-manager-policy=static"]
    args += ["topology-manager-policy-options=prefer-closest-numa-nodes=true", "reserved-cpus=0-1"]
    # k3s takes no list of options: the flag comes once for each.
    args += [f"cpu-manager-policy-options={one}=true" for one in STATIC_OPTIONS]
    probe["kubelet"] |= {"flags": [], "config": None, "environment": {}, "state": {}}
    probe["containerd"] |= {"config_file": "/var/lib/rancher/k3s/agent/etc/containerd/config.toml", "dump": None}
    probe["joined"] = {"kubeadm": [], "k3s": ["/etc/rancher/node/password"], "vcluster": []}
    probe["units"] = {"k3s-agent": {"active": "active", "memlock": "infinity"}, "chrony": {"active": "active"}}
    probe["files"]["/etc/rancher/k3s/config.yaml.d/50-gpuready.yaml"] = json.dumps({"kubelet-arg+": args})
    return probe


def test_a_kubelet_inside_k3s_is_judged_by_the_flags_that_it_was_given() -> None:
    promise = cluster(platform="k3s", ssh_nodes={"gpu-1": {}})
    text = json.dumps(k3s_machine())
    alone = Evidence(nodes={"gpu-1": {"probe.json": text}})
    assert bad(results(promise, alone)) == [("node.kubelet_restart", "unproven", "ConfigNotRead", "gpu-1")]
    options = dict.fromkeys(STATIC_OPTIONS, "true")
    static = configz(cpuManagerPolicy="static", reservedSystemCPUs="0-1", cpuManagerPolicyOptions=options)
    asked = Evidence(nodes={"gpu-1": {"probe.json": text, "configz.json": static}})
    assert bad(results(promise, asked)) == []
    last = configz(
        cpuManagerPolicy="static", reservedSystemCPUs="0-1", cpuManagerPolicyOptions={STATIC_OPTIONS[-1]: "true"}
    )
    lacking = Evidence(nodes={"gpu-1": {"probe.json": text, "configz.json": last}})
    assert ("node.kubelet_restart", "fail", "NotRestarted", "gpu-1") in bad(results(promise, lacking))
    other = Evidence(nodes={"gpu-1": {"probe.json": text, "configz.json": configz()}})
    assert ("node.kubelet_restart", "fail", "NotRestarted", "gpu-1") in bad(results(promise, other))


def test_amounts_are_compared_by_their_size() -> None:
    probe = gpu_machine()
    # The machine evicts below 50Mi: 974 and 50 make 1024.
    probe["kubelet"]["config"] += (
        "memoryManagerPolicy: Static\nkubeReserved: {memory: 974Mi}\n"
        "reservedMemory: [{numaNode: 0, limits: {memory: 1024Mi}}]\n"
    )
    state("memory", "Static")(probe)
    running = {
        "memoryManagerPolicy": "Static",
        "reservedMemory": [{"numaNode": 0, "limits": {"memory": "1Gi"}}],
        "kubeReserved": {"memory": "974Mi"},
    }
    assert bad(results(cluster(), seen(probe, config=configz(**running)))) == []


def test_a_policy_that_no_file_names_any_more_still_runs() -> None:
    running = {"cpuManagerPolicy": "static", "reservedSystemCPUs": "0"}
    found = bad(results(cluster(), seen(gpu_machine(), config=configz(**running))))
    assert found == [("node.kubelet_restart", "fail", "NotRestarted", "gpu-1")]
