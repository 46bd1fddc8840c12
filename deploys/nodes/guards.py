"""What gpuready never does to a node, tested on the plan before anything runs."""

from __future__ import annotations

import re
from collections.abc import Iterable

from gpuready.charts_values.errors import RefusedError

from .facts import NodeFacts

# The control plane is another's; its nodes join by themselves.
FOREIGN = ("hosted", "vcluster")
_LIFECYCLE = re.compile(
    r"\bkubeadm\b(?!\S*\.conf|-flags)"
    r"|\bk3s(-agent)?-uninstall(\.sh)?\b|\bk3s-killall(\.sh)?\b|\bkubelet\s+reset\b"
    r"|\b(k3s|k0s|rke2)\s+(server|agent|reset|install)\b"
    r"|\bvcluster\b.*\b(join|reset)\b|/node/join\b"
    r"|\brm\s+(-\S+\s+)*(\S+\s+)*/(etc/kubernetes|var/lib/kubelet|var/lib/rancher)(/pki)?/?(\s|$)"
)


def check(platform: str, facts: NodeFacts, commands: Iterable[str]) -> None:
    """No command makes, joins or resets a cluster where it must not; raises RefusedError.

    Where another runs the control plane that is never right; elsewhere never on a node that has joined.
    """
    for command in commands:
        match = _LIFECYCLE.search(command)
        if match is None:
            continue
        what = match[0].strip()
        if platform in FOREIGN:
            raise RefusedError(
                f"node {facts.name}: `{what}` is never run on platform {platform}: its nodes join by themselves, and "
                "this would break the cluster"
            )
        if facts.joined:
            raise RefusedError(
                f"node {facts.name}: `{what}` is never run on a node that has joined a cluster ({facts.joined[0]}); "
                "take it out of its cluster yourself, if that is meant"
            )


def resets(facts: NodeFacts, platform: str) -> str | None:
    """A trace that somebody ran kubeadm where the platform joins nodes by itself; None where there is none."""
    if platform not in FOREIGN:
        return None
    if any(path.endswith("kube-apiserver.yaml") for path in facts.traces.get("kubeadm", ())):
        return (
            f"{facts.name}: it has a control plane of its own (/etc/kubernetes/manifests/kube-apiserver.yaml): "
            f"somebody ran kubeadm init on a node of platform {platform}"
        )
    return None
