"""Faults of the fabric, which Kubernetes does not see: only NCCL does."""

from __future__ import annotations

import dataclasses

from gpuready.charts_values.kube import Object
from gpuready.validators.acceptance import manifests

from ..fleet import Hardware
from .cluster import PROBES, probe_namespace
from .edits import Edit, create
from .model import Fault, Site

_HALF = 0.5
# Neither the first nor the last, which would be found by chance.
_NIC = 5


def _lose_rdma(truth: Hardware) -> Hardware:
    return dataclasses.replace(truth, rdma=False, gdr=False)


def _lose_gdr(truth: Hardware) -> Hardware:
    return dataclasses.replace(truth, gdr=False)


def _silence_rail(truth: Hardware) -> Hardware:
    return dataclasses.replace(truth, silent=frozenset(nic.name for nic in truth.nics[-1:]))


def _slow_down(truth: Hardware) -> Hardware:
    return dataclasses.replace(truth, slow={nic.name: _HALF for nic in truth.nics})


def _slow_one_down(truth: Hardware) -> Hardware:
    return dataclasses.replace(truth, slow={_one(truth): _HALF})


def _kill_one(truth: Hardware) -> Hardware:
    return dataclasses.replace(truth, dying=frozenset({_one(truth)}))


def _slow_inside(truth: Hardware) -> Hardware:
    return dataclasses.replace(truth, nvlink=_HALF)


def _decree(site: Site) -> list[Edit]:
    """Somebody wanted to see GPUDirect RDMA in the log."""
    settings: Object = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": manifests.NCCL_ENV, "namespace": manifests.NAMESPACE},
        "data": {"NCCL_NET_GDR_LEVEL": "SYS"},
    }
    return [*probe_namespace(site), create(f"{PROBES}/configmaps/{manifests.NCCL_ENV}", settings)]


def _one(truth: Hardware) -> str:
    return truth.nics[min(_NIC, len(truth.nics) - 1)].name


FAULTS = (
    Fault(
        name="tcp-fallback",
        title="one node's NCCL runs over sockets",
        breaks="NCCL finds no usable RDMA device on the node and falls back to TCP; Kubernetes sees nothing",
        finding="nccl.transport",
        phase="accept",
        follows=("nccl.bandwidth",),
        needs=("rdma",),
        truth=_lose_rdma,
    ),
    Fault(
        name="gpudirect-off",
        title="one node's NICs do not reach GPU memory",
        breaks="GPUDirect RDMA is off on the node: NCCL copies through host memory",
        finding="nccl.transport",
        phase="accept",
        follows=("nccl.bandwidth",),
        needs=("gdr",),
        truth=_lose_gdr,
    ),
    Fault(
        name="nic-silent",
        title="one rail of one node carries nothing",
        breaks="the port of the last NIC is down: NCCL on the node uses one NIC fewer; Kubernetes sees nothing",
        finding="nccl.rails",
        phase="accept",
        follows=("nccl.bandwidth",),
        needs=("rdma",),
        truth=_silence_rail,
    ),
    Fault(
        name="nic-dies",
        title="one rail of one node goes down under load",
        breaks="the port of one NIC goes down during the all-reduce, as with a loose cable; NCCL's run ends there",
        finding="nccl.errors",
        phase="accept",
        # Without a whole table there is no figure to judge.
        follows=("nccl.run", "nccl.bandwidth", "nccl.correct"),
        needs=("rdma",),
        truth=_kill_one,
    ),
    Fault(
        name="node-slow",
        title="one node's rails give half their rate",
        breaks="every rail of the node runs at half its rate, as on half the PCIe lanes; all-reduce waits for it",
        finding="nccl.slow",
        phase="accept",
        follows=("nccl.bandwidth",),
        needs=("rdma",),
        truth=_slow_down,
    ),
    Fault(
        name="nic-slow",
        title="one rail of one node gives half its rate",
        breaks="one NIC of the node runs at half its rate, as with a bad cable; every all-reduce waits for it",
        finding="nccl.slow",
        phase="accept",
        follows=("nccl.bandwidth",),
        needs=("rdma",),
        truth=_slow_one_down,
    ),
    Fault(
        name="nvlink-slow",
        title="one node's NVLinks give half their rate",
        breaks="the NVLinks between the GPUs of the node run at half their rate; its NICs are sound",
        finding="nccl.slow",
        phase="accept",
        follows=("nccl.bandwidth",),
        # Where Ethernet alone is between nodes it stays slower than what is inside them.
        needs=("rdma",),
        truth=_slow_inside,
    ),
    Fault(
        name="nccl-env-decree",
        title="the cluster's NCCL settings decree GPUDirect RDMA",
        breaks=f"ConfigMap {manifests.NCCL_ENV} sets NCCL_NET_GDR_LEVEL=SYS, so that its use no longer proves the way",
        finding="nccl.environment",
        phase="accept",
        scope="cluster",
        edits=_decree,
    ),
)
