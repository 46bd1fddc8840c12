"""What the cluster's own NCCL settings are, and which of them are traps."""

from __future__ import annotations

from typing import Any

import pytest
from gpuready.rehearsal.outputs.nccl import Host, Style, render
from gpuready.validators.acceptance.verdicts import RUN_LABEL, WORKLOAD_LABEL
from gpuready.validators.checks.nccl_settings import environment
from gpuready.validators.evidence import Evidence
from gpuready.validators.expected import Expected
from gpuready.validators.model import Finding, Status


def judged(
    expected: Expected, env: dict[str, str], *, nics: int = 2, other: dict[str, str] | None = None
) -> list[Finding]:
    """The findings about a run on two nodes; ``other`` are the second one's settings."""
    names = tuple(f"mlx5_{number}" for number in (0, 1, 10, 11)[:nics])
    hosts = [Host(f"pod-{one}", 2, names, "IB", 400, rdma=True, gdr=True, address=f"192.0.2.{one}") for one in range(2)]
    both = [
        render(hosts, min_bytes=1 << 30, max_bytes=1 << 30, seed=1, style=Style(env=one)) for one in (env, other or env)
    ]
    logs = {"pod-0": both[0].logs["pod-0"], "pod-1": both[1].logs["pod-1"]}
    pods: list[dict[str, Any]] = [
        {
            "metadata": {"name": host.name, "labels": {RUN_LABEL: "r1", WORKLOAD_LABEL: "nccl-pair"}},
            "spec": {"nodeName": f"gpu-{number}"},
            "status": {"phase": "Succeeded"},
        }
        for number, host in enumerate(hosts)
    ]
    evidence = Evidence(cluster={"pods": pods}, logs={"nccl-pair": logs})
    evidence.about |= {"run": "r1", "nccl": {"nccl-pair": {"nodes": ["gpu-0", "gpu-1"]}}}
    return list(environment(expected, evidence))


def test_harmless_settings_are_reported(expected: Expected) -> None:
    (finding,) = judged(expected, {"NCCL_DEBUG": "INFO", "NCCL_SOCKET_IFNAME": "eth0", "NCCL_IB_HCA": "=mlx5_1"})
    assert (finding.status, finding.detail) == (Status.PASS, "NCCL_IB_HCA==mlx5_1, NCCL_SOCKET_IFNAME=eth0")


def test_without_settings_that_is_said(expected: Expected) -> None:
    (finding,) = judged(expected, {})
    assert (finding.status, finding.detail) == (Status.PASS, "the cluster sets none")


@pytest.mark.parametrize(
    ("env", "nics", "reason", "detail"),
    [
        ({"NCCL_NET_GDR_LEVEL": "SYS"}, 2, "GdrByDecree", "whether GPU and NIC are near enough is no longer looked at"),
        ({"NCCL_NET_GDR_LEVEL": "LOC"}, 2, "GdrForbidden", "NCCL_NET_GDR_LEVEL=LOC"),
        (
            {"NCCL_IB_HCA": "mlx5_0,mlx5_1"},
            4,
            "HcaPrefix",
            "NCCL_IB_HCA=mlx5_0,mlx5_1: mlx5_1 also means mlx5_10, mlx5_11",
        ),
        ({"NCCL_IB_HCA": "^mlx5_1"}, 4, "HcaPrefix", "mlx5_1 also means mlx5_10, mlx5_11"),
        ({"NCCL_IB_DISABLE": "1"}, 2, "TransportOff", "NCCL_IB_DISABLE=1: no InfiniBand and no RoCE"),
        ({"NCCL_P2P_DISABLE": "1"}, 2, "TransportOff", "GPUs of a node do not talk over NVLink"),
    ],
)
def test_traps(expected: Expected, env: dict[str, str], nics: int, reason: str, detail: str) -> None:
    (finding,) = judged(expected, env, nics=nics)
    assert (finding.status, finding.reason) == (Status.WARN, reason)
    assert detail in finding.detail
    (name,) = env
    assert finding.subject.name == f"{name} in gpu-0+gpu-1"


@pytest.mark.parametrize("hca", ["mlx5_1", "=mlx5_1", "mlx5", "mlx5_0:1,mlx5_1:1"])
def test_a_list_that_means_what_it_says_is_no_trap(expected: Expected, hca: str) -> None:
    assert [one.status for one in judged(expected, {"NCCL_IB_HCA": hca})] == [Status.PASS]


def test_nodes_that_differ_are_named(expected: Expected) -> None:
    (finding,) = judged(expected, {"NCCL_ALGO": "Ring"}, other={"NCCL_ALGO": "Tree"})
    assert finding.reason == "SettingsDiffer"
    assert finding.detail == "NCCL_ALGO: Ring on gpu-0; Tree on gpu-1"


def test_without_a_run_there_is_nothing_to_judge(expected: Expected) -> None:
    assert [one.status for one in environment(expected, Evidence())] == [Status.SKIP]
