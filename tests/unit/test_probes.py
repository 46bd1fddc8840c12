"""What the probes of an acceptance tell: were they admitted, and does every rail carry traffic."""

from __future__ import annotations

from typing import Any

import pytest
from gpuready.charts_values.errors import ApiError, UnreachableError
from gpuready.rehearsal.outputs.nccl import Host, render, render_rails
from gpuready.validators import registry
from gpuready.validators.acceptance.run import record_failure
from gpuready.validators.acceptance.verdicts import RUN_LABEL, WORKLOAD_LABEL, refusal
from gpuready.validators.evidence import Evidence
from gpuready.validators.expected import Expected
from gpuready.validators.judge import judge
from gpuready.validators.model import Result, Status

NICS = tuple(f"mlx5_{number}" for number in range(8))
NODES = ("gpu-0", "gpu-1")
QUOTA = "exceeded quota: full, requested: pods=1, used: pods=0, limited: pods=0"


def host(number: int, **changes: Any) -> Host:
    """A pod of the all-reduce on a healthy node."""
    given = {"gpus": 8, "nics": NICS, "link": "IB", "nic_gbits_s": 400.0, "rdma": True, "gdr": True}
    return Host(f"pod-{number}", address=f"10.244.0.{number + 10}", **{**given, **changes})


def after(evidence: Evidence, *hosts: Host) -> Evidence:
    """The evidence of an all-reduce on two nodes."""
    evidence.about |= {"run": "r1", "kind": "accept", "nccl": {"nccl-pair": {"nodes": list(NODES)}}}
    evidence.logs["nccl-pair"] = render(hosts, min_bytes=8 << 20, max_bytes=8 << 30, seed=1).logs
    labels = {RUN_LABEL: "r1", WORKLOAD_LABEL: "nccl-pair"}
    evidence.cluster["pods"] = [
        {
            "metadata": {"name": one.name, "labels": labels},
            "spec": {"nodeName": name},
            "status": {"phase": "Succeeded", "containerStatuses": [{"state": {"terminated": {"exitCode": 0}}}]},
        }
        for one, name in zip(hosts, NODES, strict=True)
    ]
    return evidence


def bad(expected: Expected, evidence: Evidence, *checks: str) -> list[Result]:
    found = judge(expected, evidence, [registry.get(one) for one in checks])
    return [one for one in found if one.status.rank >= Status.WARN.rank]


FABRIC = ("nccl.run", "nccl.transport", "nccl.rails", "nccl.errors", "nccl.bandwidth", "nccl.correct")


def test_every_rail_of_a_healthy_run_is_used(expected: Expected, evidence: Evidence) -> None:
    after(evidence, host(0), host(1))
    assert bad(expected, evidence, *FABRIC) == []
    found = judge(expected, evidence, [registry.get("nccl.rails")])
    assert {one.finding.detail for one in found} == {"8 of 8 rails used"}


def test_a_nic_that_nccl_does_not_see_is_named_and_comes_first(expected: Expected, evidence: Evidence) -> None:
    after(evidence, host(0), host(1, nics=NICS[:5] + NICS[6:]))
    found = bad(expected, evidence, *FABRIC)
    first = found[0]
    assert (first.id, first.status, first.finding.reason) == ("nccl.rails/node/gpu-1", Status.FAIL, "NicMissing")
    assert first.finding.detail == "7 of 8 rails; not there: mlx5_5"
    assert {one.caused_by for one in found[1:]} <= {first.id}


def test_on_every_node_a_missing_nic_is_seen_by_the_promise(expected: Expected, evidence: Evidence) -> None:
    after(evidence, host(0, nics=NICS[:7]), host(1, nics=NICS[:7]))
    found = bad(expected, evidence, "nccl.rails")
    assert [(one.finding.subject.name, one.finding.detail) for one in found] == [
        ("gpu-0", "7 of 8 rails"), ("gpu-1", "7 of 8 rails"),
    ]  # fmt: skip


def test_a_node_on_sockets_has_no_rails_to_judge(expected: Expected, evidence: Evidence) -> None:
    after(evidence, host(0), host(1, rdma=False, gdr=False))
    found = bad(expected, evidence, *FABRIC)
    assert found[0].id == "nccl.transport/node/gpu-1"
    assert [one.id for one in found if one.caused_by is None] == [found[0].id]
    rails = judge(expected, evidence, [registry.get("nccl.rails")])
    assert {one.finding.subject.name: one.status for one in rails} == {
        "gpu-0": Status.UNPROVEN, "gpu-1": Status.SKIP,
    }  # fmt: skip


def ended(evidence: Evidence, *states: dict[str, Any]) -> Evidence:
    """The same with pods that end so."""
    for pod, state in zip(evidence.cluster["pods"], states, strict=True):
        pod["status"] = {"phase": "Failed", "containerStatuses": [{"state": {"terminated": state}}]}
    evidence.parsed.clear()
    return evidence


FAILED = {"exitCode": 1, "reason": "Error", "message": '{"index": 0, "exit": 1}'}


def test_a_nic_that_goes_down_under_load_is_named_and_explains_the_failed_run(
    expected: Expected, evidence: Evidence
) -> None:
    after(evidence, host(0), host(1, dying=frozenset({"mlx5_5"})))
    first, *rest = bad(expected, ended(evidence, FAILED, FAILED), *FABRIC)
    assert (first.id, first.finding.reason) == ("nccl.errors/nic/gpu-1/mlx5_5", "IbAsyncFatal")
    assert first.finding.detail.startswith("ib_async_fatal x1 on gpu-1 mlx5_5: NET/IB : mlx5_5:1 Got async error event")
    assert "; ib_completion_12 x2 on gpu-0, gpu-1 peer gpu-0, gpu-1 mlx5_5: " in first.finding.detail
    (run,) = [one for one in rest if one.check == "nccl.run"]
    assert run.caused_by == first.id
    assert {one.caused_by for one in rest} == {first.id, run.id}, "no table has its largest size"
    assert (run.finding.reason, run.finding.detail) == ("RunFailed", "gpu-1: exit 1")


def test_a_nic_may_go_down_in_a_run_of_one_size() -> None:
    hosts = [host(0), host(1, dying=frozenset({"mlx5_5"}))]
    done = render_rails(hosts, ("mlx5_4", "mlx5_5"), min_bytes=1 << 30, max_bytes=1 << 30, seed=1)
    assert not done.whole
    assert "port error" in done.logs["pod-1"]
    assert render_rails(hosts, ("mlx5_4",), min_bytes=1 << 30, max_bytes=1 << 30, seed=1).whole


def test_a_pod_that_was_killed_explains_what_its_peers_say(expected: Expected, evidence: Evidence) -> None:
    after(evidence, host(0), host(1))
    address = host(1).address
    said = (
        f"NET/IB: Got completion from peer {address}<1> with status=12 opcode=0 len=0 vendor err 129 (Send) hca mlx5_0"
    )
    evidence.logs["nccl-pair"]["pod-0"] += f"pod-0:101:301 [0] transport/net_ib.cc:1 NCCL WARN {said}\n"
    (first,) = bad(
        expected, ended(evidence, FAILED, {"exitCode": 137, "reason": "OOMKilled"}), "nccl.run", "nccl.errors"
    )
    assert (first.check, first.finding.detail) == ("nccl.run", "gpu-1: OOMKilled")
    # What goes wrong on a host itself is no consequence of a dead peer.
    evidence.logs["nccl-pair"]["pod-0"] += "pod-0:101:301 [0] enqueue.cc:1 NCCL WARN Cuda failure 'unknown error'\n"
    (found, _) = bad(expected, ended(evidence, FAILED, {"exitCode": 137}), "nccl.run", "nccl.errors")[:2]
    assert (found.id, found.finding.reason) == ("nccl.errors/node/gpu-0", "CudaFailure")
    evidence.logs["nccl-pair"]["pod-0"] = evidence.logs["nccl-pair"]["pod-0"].rpartition("pod-0:101:301 [0] enqueue")[0]
    # By itself the same line accuses the peer.
    (found,) = bad(expected, ended(evidence, FAILED, FAILED), "nccl.errors")
    assert (found.id, found.finding.reason) == ("nccl.errors/node/gpu-1", "IbCompletion12")


def test_echoes_alone_explain_no_failure(expected: Expected, evidence: Evidence) -> None:
    after(evidence, host(0), host(1))
    said = "socketProgress: Connection closed by remote peer pod-1<40921>"
    evidence.logs["nccl-pair"]["pod-0"] += f"pod-0:101:301 [0] misc/socket.cc:561 NCCL WARN {said}\n"
    (first,) = bad(expected, ended(evidence, FAILED, FAILED), "nccl.run", "nccl.errors")
    assert first.check == "nccl.run"
    done = {"exitCode": 0, "reason": "Completed"}
    (found,) = bad(expected, ended(evidence, done, done), "nccl.errors")
    assert (found.id, found.finding.reason) == ("nccl.errors/node/gpu-0", "Socket"), "a run that ended well hid it"


def test_without_a_run_the_rails_are_left_out(expected: Expected, evidence: Evidence) -> None:
    evidence.about["nccl_off"] = "deselected with --nccl off"
    assert {one.status for one in judge(expected, evidence, [registry.get("nccl.rails")])} == {Status.SKIP}


PROBES = ("probes.run", "probes.admitted", "smi.pod", "smi.gpus", "nccl.run", "nccl.rails")


def test_refused_pods_come_first_and_explain_the_rest(expected: Expected, evidence: Evidence) -> None:
    evidence.about |= {
        "run": "r1", "planned": {"smi-0000-r1": "gpu-0", "smi-0001-r1": "gpu-1"},
        "refused": {"smi-0000-r1": QUOTA, "smi-0001-r1": QUOTA}, "nccl_off": "the cluster refuses the probe pods",
    }  # fmt: skip
    evidence.cluster["pods"] = []
    first, *rest = bad(expected, evidence, *PROBES)
    assert (first.check, first.status, first.finding.detail) == (
        "probes.admitted", Status.FAIL, f"{QUOTA}; 2 Jobs got no pod",
    )  # fmt: skip
    assert {one.check for one in rest} == {"smi.pod", "smi.gpus", "nccl.run"}
    assert {one.caused_by for one in rest} == {first.id}
    assert {one.finding.detail for one in rest if one.check == "smi.pod"} == {QUOTA}


def test_admitted_pods_are_no_news(expected: Expected, evidence: Evidence) -> None:
    assert bad(expected, evidence, "probes.admitted") == []


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (f'Error creating: pods "smi-0000-r1-x" is forbidden: {QUOTA}', QUOTA),
        ('Error creating: pods "a" is forbidden: violates PodSecurity "restricted:latest": x',
         'violates PodSecurity "restricted:latest": x'),
        ('Error creating: Internal error occurred: failed calling webhook "v.io": no\n endpoints',
         'Internal error occurred: failed calling webhook "v.io": no endpoints'),
        ("", ""),
    ],
)  # fmt: skip
def test_a_refusal_is_the_servers_own_words(message: str, told: str) -> None:
    assert refusal(message) == told


RBAC = 'jobs.batch is forbidden: User "me" cannot create resource "jobs" in API group "batch"'


@pytest.mark.parametrize(
    ("error", "reason", "status"),
    [
        (ApiError(RBAC, 403), "PermissionMissing", Status.UNPROVEN),
        (ApiError(f'jobs.batch "anchor" is forbidden: {QUOTA}', 403), "ProbesRefused", Status.FAIL),
        (UnreachableError("gone"), "Unreachable", Status.ERROR),
    ],
)
def test_a_quota_is_no_missing_permission(
    expected: Expected, evidence: Evidence, error: Exception, reason: str, status: Status
) -> None:
    record_failure(evidence, "acceptance", error)  # type: ignore[arg-type]
    (found,) = bad(expected, evidence, "probes.run")
    assert (found.finding.reason, found.status) == (reason, status)
    assert str(error) in found.finding.detail
