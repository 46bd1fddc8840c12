"""The checks of an acceptance: silent after one that ended well, and each with a fault that it catches."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from gpuready.charts_values import inventory
from gpuready.rehearsal.outputs.nccl import Form, Host, Style, render
from gpuready.validators import registry
from gpuready.validators.acceptance.verdicts import RUN_LABEL, WORKLOAD_LABEL
from gpuready.validators.evidence import Evidence
from gpuready.validators.expected import Expected
from gpuready.validators.judge import judge
from gpuready.validators.model import Result, Status

from .conftest import entry
from .healthy import slice_of

NODES = ("gpu-0", "gpu-1")
NICS = tuple(f"mlx5_{number}" for number in range(8))
SEEN = {"gpus": 8, "product": "NVIDIA H100 80GB HBM3", "driver": "580.173.02"}
CHECKS = [one for one in registry.of_phase("accept") if one.phase == "accept"]
Edit = Callable[[Evidence], object]


def uuid(node: str, gpu: int) -> str:
    return f"GPU-{node}-{gpu}"


def pod(workload: str, node: str, name: str, message: dict[str, Any]) -> dict[str, Any]:
    ended = {"exitCode": 0, "reason": "Completed", "message": json.dumps(message)}
    return {
        "metadata": {"name": name, "labels": {RUN_LABEL: "r1", WORKLOAD_LABEL: workload}},
        "spec": {"nodeName": node},
        "status": {
            "phase": "Succeeded",
            "containerStatuses": [{"state": {"terminated": ended}}],
            "resourceClaimStatuses": [{"name": "gpus", "resourceClaimName": f"{name}-gpus"}],
        },
    }


def hosts(**changes: Any) -> list[Host]:
    """The pods of an all-reduce; what changes is the second one."""
    given = {"gpus": 8, "nics": NICS, "link": "IB", "nic_gbits_s": 400.0, "rdma": True, "gdr": True}
    return [
        Host(f"pod-{number}", address=f"10.244.0.{number + 10}", **{**given, **(changes if number else {})})
        for number in range(2)
    ]


def ran(style: Style | None = None, **changes: Any) -> Edit:
    """The all-reduce ran on other hosts, or in another way."""

    def edit(evidence: Evidence) -> None:
        style_ = style or Style()
        evidence.logs["nccl-pair"] = render(
            hosts(**changes), min_bytes=8 << 20, max_bytes=8 << 30, seed=1, style=style_
        ).logs

    return edit


def ended(workload: str, code: int, **message: Any) -> Edit:
    """The last pod of a workload ended otherwise."""

    def edit(evidence: Evidence) -> None:
        last = [one for one in evidence.objects("pods") if one["metadata"]["labels"][WORKLOAD_LABEL] == workload][-1]
        state = last["status"]["containerStatuses"][0]["state"]["terminated"]
        state |= {"exitCode": code, "reason": "Error" if code else "Completed"}
        state["message"] = json.dumps({**json.loads(state["message"]), **message})

    return edit


def both(*edits: Edit) -> Edit:
    return lambda evidence: [edit(evidence) for edit in edits]


@pytest.fixture
def expected() -> Expected:
    """The promised cluster, whose GPUs DRA hands out."""
    return Expected.of(inventory.parse("lab", entry(dra="gpus")))


@pytest.fixture
def accepted(evidence: Evidence) -> Evidence:
    """What an acceptance collects that ended well."""
    for node in evidence.objects("nodes"):
        node["status"]["allocatable"].pop("nvidia.com/gpu")
    evidence.about |= {
        "run": "r1",
        "kind": "accept",
        "planned": {f"smi-{number}": node for number, node in enumerate(NODES)},
        "nccl": {"nccl-pair": {"nodes": list(NODES)}},
    }
    ran()(evidence)
    evidence.cluster["pods"] = [
        *(pod("nvidia-smi", node, f"smi-{number}-x", SEEN) for number, node in enumerate(NODES)),
        *(pod("nccl-pair", node, f"pod-{number}", {"index": number}) for number, node in enumerate(NODES)),
    ]
    slices = []
    for node in NODES:
        one = slice_of(node, "gpu.nvidia.com", 0)
        one["spec"]["devices"] = [
            {"name": f"gpu-{gpu}", "attributes": {"uuid": {"string": uuid(node, gpu)}}} for gpu in range(8)
        ]
        slices.append(one)
        text = "".join(f"<uuid>{uuid(node, gpu)}</uuid>" for gpu in range(8))
        evidence.nodes[node] = {"nvidia-smi.xml": text}
    evidence.cluster["resourceslices.resource.k8s.io"] = slices
    return evidence


def found(expected: Expected, evidence: Evidence) -> list[Result]:
    return [one for one in judge(expected, evidence, CHECKS) if one.status.rank >= Status.WARN.rank]


def test_an_acceptance_that_ended_well_is_silent(expected: Expected, accepted: Evidence) -> None:
    results = judge(expected, accepted, CHECKS)
    assert [one.id for one in results if one.status.rank >= Status.WARN.rank] == []
    said = {one.check for one in results if one.status is Status.PASS}
    assert said == {one.id for one in CHECKS} - {"nccl.nvlink"}, "an NVLink domain is not among these nodes"


FAULTS: list[tuple[str, Edit, str, str]] = [
    ("something is left", lambda e: e.about.update(leftovers=["jobs/smi-0"]), "probes.run/cluster/lab", "Leftovers"),
    ("a quota", lambda e: e.about.update(refused={"smi-0": "exceeded quota: full"}), "probes.admitted/cluster/lab",
     "PodsRefused"),
    ("nvidia-smi fails", ended("nvidia-smi", 9), "smi.pod/node/gpu-1", "SmiFailed"),
    ("nvidia-smi sees fewer", ended("nvidia-smi", 0, gpus=7), "smi.gpus/node/gpu-1", "CountDiffers"),
    ("another product", ended("nvidia-smi", 0, product="NVIDIA A100"), "smi.gpus/node/gpu-1", "ProductDiffers"),
    ("another driver", ended("nvidia-smi", 0, driver="570.1"), "smi.gpus/node/gpu-1", "DriverDiffers"),
    ("a claim gives others", lambda e: e.nodes["gpu-1"].update({"nvidia-smi.xml": "<uuid>GPU-other</uuid>"}),
     "dra.claim/node/gpu-1", "ClaimDiffers"),
    ("a port goes down", both(ran(dying=frozenset({"mlx5_5"})), ended("nccl-pair", 1)), "nccl.errors/nic/gpu-1/mlx5_5",
     "IbAsyncFatal"),
    ("a pod fails", ended("nccl-pair", 1), "nccl.run/pair/gpu-0+gpu-1", "RunFailed"),
    ("sockets", ran(rdma=False, gdr=False), "nccl.transport/node/gpu-1", "TcpFallback"),
    ("through host memory", ran(gdr=False), "nccl.transport/node/gpu-1", "NoGpuDirect"),
    ("a NIC fewer", ran(nics=NICS[:7]), "nccl.rails/node/gpu-1", "NicMissing"),
    ("a trap", ran(Style(env={"NCCL_NET_GDR_LEVEL": "SYS"})),
     "nccl.environment/object/NCCL_NET_GDR_LEVEL in gpu-0+gpu-1",
     "GdrByDecree"),
    ("half the rate", ran(slow=dict.fromkeys(NICS, 0.5)), "nccl.bandwidth/pair/gpu-0+gpu-1", "BelowFloor"),
    ("wrong sums", ran(Style(form=Form((2, 19, 6), wrong=3))), "nccl.correct/pair/gpu-0+gpu-1", "WrongResults"),
    ("NVLink unused", lambda e: e.about["nccl"]["nccl-pair"].update(nvlink_domain="rack.0"),
     "nccl.nvlink/pair/gpu-0+gpu-1", "NvlinkNotUsed"),
]  # fmt: skip


@pytest.mark.parametrize(("edit", "id_", "reason"), [row[1:] for row in FAULTS], ids=[row[0] for row in FAULTS])
def test_a_fault_is_found(expected: Expected, accepted: Evidence, edit: Edit, id_: str, reason: str) -> None:
    edit(accepted)
    assert (id_, reason) in [(one.id, one.finding.reason) for one in found(expected, accepted)]
    first = found(expected, accepted)[0]
    assert (first.id, first.caused_by) == (id_, None), "it is what is read first"


def test_every_check_of_an_acceptance_has_a_fault() -> None:
    # What a search finds takes a fabric to search: test_search.py.
    covered = {row[2].partition("/")[0] for row in FAULTS} | {"nccl.slow"}
    assert {one.id for one in CHECKS} == covered
