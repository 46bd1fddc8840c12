"""The secondary networks that bring RoCE rails into pods."""

from __future__ import annotations

from collections.abc import Iterator

from gpuready.charts_values.inventory import RailNetwork

from ..evidence import Evidence
from ..expected import Expected
from ..model import Finding, Status, Subject
from ..registry import check
from .subjects import passed, skipped

NETWORKS = "macvlannetworks.mellanox.com"
ATTACHMENTS = "network-attachment-definitions.k8s.cni.cncf.io"


@check(
    "network.secondary",
    title="every RoCE rail has its secondary network",
    proves="A pod that names the network gets the rail's device; without it NCCL falls back to TCP in silence.",
    rule="The NetworkAttachmentDefinition of each network in inventory exists; one that gpuready makes comes from a "
    "MacvlanNetwork in state ready, on the interface that inventory names.",
    source="Mellanox/network-operator 26.4.1, api/v1alpha1/macvlannetwork_types.go; "
    "Mellanox/k8s-rdma-shared-dev-plugin, README, macvlan for RDMA",
    fix="Run the installer: pyinfra inventory deploys/gpu.py. Then: kubectl get macvlannetworks -o yaml",
    needs=(NETWORKS, ATTACHMENTS),
    after=("release.installed", "network.policy"),
)
def secondary_networks(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """Networks of the rails."""
    networks = expected.cluster.networks
    if not networks:
        yield skipped(Subject("cluster", expected.cluster.name), "inventory names no network of a RoCE rail")
    for one in networks:
        namespace, name = one.attachment
        subject = Subject("rail", one.name)
        if evidence.find(ATTACHMENTS, name, namespace) is None:
            yield Finding(
                Status.FAIL,
                subject,
                "NoAttachment",
                "the rail's network cannot be attached to pods",
                _why(one, evidence),
                expected=f"NetworkAttachmentDefinition {namespace}/{name}",
                observed="none",
                fix=None if one.interface else f"Make it, or name `interface` and `cidr` of {one.name} in inventory.",
                evidence=(f"cluster/{ATTACHMENTS}.json",),
            )
        elif one.interface and (wrong := _why(one, evidence)):
            yield Finding(
                Status.FAIL,
                subject,
                "NetworkDiffers",
                "the rail's network is not what inventory says",
                wrong,
                expected=f"ready on {one.interface}",
                observed=wrong,
                evidence=(f"cluster/{NETWORKS}.json",),
            )
        else:
            yield passed(subject, f"{namespace}/{name}" + (f" on {one.interface}" if one.interface else ""))


def _why(network: RailNetwork, evidence: Evidence) -> str:
    """What is wrong with the MacvlanNetwork of a rail; empty where nothing is."""
    if not network.interface:
        return "gpuready does not make it: inventory names no interface"
    found = evidence.find(NETWORKS, network.name)
    if found is None:
        return f"no MacvlanNetwork {network.name}"
    status = found.get("status", {})
    if status.get("state") != "ready":
        return (
            f"MacvlanNetwork {network.name} is {status.get('state', 'not taken up')}: {status.get('reason', '')}".strip(
                ": "
            )
        )
    master = found.get("spec", {}).get("master")
    return "" if master == network.interface else f"MacvlanNetwork {network.name} is on {master}"
