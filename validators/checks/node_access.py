"""The machines themselves: reached, joined to one cluster, with room on their disks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gpuready.charts_values.node_settings import quantity

from .. import kubelet_config, machines
from ..evidence import Evidence
from ..expected import Expected
from ..machines import Machine, each, machine_check
from ..model import Finding, Status
from ..registry import check
from .subjects import node

# What each check of a machine follows from.
REACHED = ("node.reachable",)
# What kubelets have where their configuration names no threshold.
_EVICTION = {"nodefs.available": "10%", "imagefs.available": "15%"}
_CLOSE_PERCENT = 5.0


@check(
    "node.reachable",
    title="every machine of ssh_nodes tells what it is",
    proves="What gpuready says about machines was read on them, now.",
    rule="Each machine of `ssh_nodes` answers by SSH, lets the probe run as root, and prints what this version reads.",
    source="OpenSSH and sudo manuals: BatchMode, ConnectTimeout, sudo -n",
    fix="Try it by hand, with the options of inventory: ssh NODE sudo -n python3 --version",
    avoid="Do not turn host key checking off; put the key into known_hosts.",
    tier="node",
)
def reachable(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """Probes that could be had."""
    for finding in each(expected, evidence, _probed):
        name = finding.subject.name
        failure = machines.failure(evidence, name)
        if finding.reason != "NodeNotProbed" or (failure is None and not evidence.nodes.get(name)):
            yield finding
        elif failure is None:
            cause = "what the bundle holds is no probe of this version"
            yield Finding(Status.UNPROVEN, node(name), "ProbeDamaged", cause, f"nodes/{name}/probe.json")
        elif failure.kind == "refused":
            cause = "machine cannot be asked over SSH"
            yield Finding(Status.UNPROVEN, node(name), "SshRefused", cause, failure.message)
        elif failure.kind == "interrupted":
            cause = "the run was interrupted before this was read"
            yield Finding(Status.UNPROVEN, node(name), "Interrupted", cause, fix="Run it again.", avoid="")
        else:
            cause = "machine does not answer by SSH"
            fix = "Look at the machine and the way to it: ssh NODE; then its console."
            yield Finding(Status.ERROR, node(name), "SshUnreachable", cause, failure.message, fix=fix)


def _probed(one: Machine) -> Finding:
    errors = one.probe.get("errors") or {}
    if one.probe.get("root") is not True:
        return one.warn("NotRoot", "the probe ran without root and shows less", "give root or `_sudo` in ssh_nodes")
    if errors:
        text = "; ".join(f"{part}: {said}" for part, said in sorted(errors.items()))
        return one.warn("PartsUnread", "the probe could not read some parts", text)
    return one.good(f"probe of {one.probe.get('utc')}, {one.probe.get('seconds')} s")


@machine_check(
    "node.joined_once",
    title="each machine has joined one cluster, the way its platform does",
    proves="No second kubelet, and no control plane of its own, waits on the machine for the next boot.",
    rule="There are traces of joining by the platform's own way only: kubeadm, k3s, or vCluster (which joins by "
    "kubeadm); on a hosted platform and under vCluster no machine has a static API server.",
    source="Kubernetes documentation, kubeadm join; K3s documentation, architecture; vCluster documentation, private "
    "nodes",
    fix="Find out which cluster it belongs to; remove the other's leavings with that tool's own reset.",
    avoid="Do not run kubeadm reset on a node of a hosted platform, nor while it runs pods.",
    after=REACHED,
)
def joined_once(one: Machine) -> Finding:
    """Traces of clusters."""
    traces = {kind: list(paths) for kind, paths in one.part("joined").items() if paths}
    said = "; ".join(f"{kind}: {paths[0]}" for kind, paths in sorted(traces.items()))
    platform = one.cluster.platform if one.settings else None
    if {"kubeadm", "k3s"} <= traces.keys():
        return one.fail("JoinedTwice", "machine has traces of two clusters", said, observed=said)
    server = [path for path in traces.get("kubeadm", ()) if path.endswith("kube-apiserver.yaml")]
    if server and platform in ("hosted", "vcluster"):
        cause = "machine of a hosted control plane has a control plane of its own"
        return one.fail("OwnControlPlane", cause, server[0], expected=platform, observed="kubeadm init")
    wrong = {"kubeadm": "k3s", "hosted": "k3s", "vcluster": "k3s", "k3s": "kubeadm"}.get(platform or "")
    if wrong in traces:
        cause = "machine has joined by another way than its platform's"
        return one.fail("JoinedElsewhere", cause, said, expected=platform, observed=wrong)
    return one.good(said or "no traces")


@machine_check(
    "node.disk",
    title="disks have room above the kubelet's eviction thresholds",
    proves="Pods are not evicted, and images not removed, for want of space.",
    rule="The file systems of the kubelet and of images have more room than the hard eviction thresholds of the "
    f"kubelet's configuration; within {_CLOSE_PERCENT:g} percent points of them it is a warning.",
    source="Kubernetes documentation, node-pressure eviction: nodefs 10 %, imagefs 15 % by default",
    fix="Find what fills it: du -xh --max-depth=2 /var | sort -h | tail; old images: crictl rmi --prune",
    after=REACHED,
)
def disk(one: Machine) -> Finding:
    """Free space."""
    mounts = {each["mount"]: each for each in one.part("mounts") if each["size_kib"]}
    given = (kubelet_config.of(one).get("evictionHard") if one.probe.get("kubelet") else None) or {}
    seen = []
    for signal, paths in (
        ("nodefs.available", ("/var/lib/kubelet", "/var", "/")),
        ("imagefs.available", ("/var/lib/containerd", "/var", "/")),
    ):
        path = next((path for path in paths if path in mounts), None)
        if path is None:
            continue
        free = 100.0 * mounts[path]["free_kib"] / mounts[path]["size_kib"]
        least = _percent(given.get(signal, _EVICTION[signal] if not given else "0%"), mounts[path]["size_kib"])
        seen.append((free - least, f"{path} has {free:.0f} % free, {signal} evicts below {least:.0f} %"))
    if not seen:
        return one.unproven("NoMounts", "the probe shows no file system of the kubelet")
    spare, text = min(seen)
    if spare < 0:
        return one.fail("DiskFull", "disk is below the kubelet's eviction threshold", text)
    if spare < _CLOSE_PERCENT:
        return one.warn("DiskFilling", "disk is close to the kubelet's eviction threshold", text)
    return one.good("; ".join(dict.fromkeys(text for _, text in seen)))


def _percent(threshold: Any, size_kib: int) -> float:
    """A threshold such as 10% or 5Gi, as percent of a file system."""
    text = str(threshold)
    if text.endswith("%"):
        return float(text[:-1])
    return 100.0 * quantity("", "evictionHard", text) / 1024 / size_kib
