"""The probe pods themselves: could they be started, were they admitted, is anything left of them."""

from __future__ import annotations

from collections.abc import Iterator

from ..acceptance.verdicts import cut_short, refusals
from ..evidence import Evidence
from ..expected import Expected
from ..model import Finding, Status, Subject
from ..registry import check
from .subjects import passed


@check(
    "probes.run",
    title="the probes could be started, and nothing of them is left",
    proves="What the probe pods say comes from this run, and the cluster is as it was before.",
    rule="Every object of the run was accepted by the API server, and is gone at the end.",
    source="Kubernetes documentation, Jobs and Garbage Collection: deadline, TTL and owner references",
    fix="Read the API server's words in the detail: quota, admission and Pod Security speak there.",
    phase="accept",
)
def probes_run(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """The run itself."""
    subject = Subject("cluster", expected.cluster.name)
    failure = evidence.failures.get("acceptance")
    left = ", ".join(evidence.about.get("leftovers") or ()) or str(evidence.about.get("cleanup_failed") or "")
    stays = f"; its objects may still be there: {left}" if left else ""
    if failure is not None and failure.kind == "forbidden":
        yield Finding(
            Status.UNPROVEN, subject, "PermissionMissing", "the identity may not start probes",
            failure.message + stays, fix="Grant the role that `gpuready rbac accept` prints.",
        )  # fmt: skip
    elif failure is not None and failure.kind == "unreachable":
        yield Finding(
            Status.ERROR, subject, "Unreachable", "the API stopped answering while the probes ran",
            failure.message + stays, fix="Run gpuready accept again.",
        )  # fmt: skip
    elif failure is not None:
        cause = "the probes could not be run"
        yield Finding(Status.FAIL, subject, "ProbesRefused", cause, failure.message + stays)
    elif cut_short(evidence):
        yield Finding(
            Status.UNPROVEN, subject, "CutShort", "the probes were cut short", cut_short(evidence) + stays,
            fix="Run gpuready accept again, with a longer --timeout where the time was up.",
        )  # fmt: skip
    elif left:
        yield Finding(
            Status.WARN, subject, "Leftovers", "objects of the run are still there", left,
            fix="They go with the run's anchor Job; look again in a minute: kubectl -n gpuready get jobs,pods",
        )  # fmt: skip
    else:
        yield passed(subject)


@check(
    "probes.admitted",
    title="the cluster admits the probe pods",
    proves="Neither quota nor Pod Security nor a webhook stands between the probes and the nodes.",
    rule="No event FailedCreate of a Job of the run stands for a pod that is missing at the end.",
    source="kubernetes/kubernetes 1.35, pkg/controller/controller_utils.go: a Job whose pods are refused says so in "
    "events alone",
    fix="Give namespace gpuready what it lacks: kubectl -n gpuready get resourcequota,limitrange; its Pod Security "
    "label must be privileged.",
    after=("cluster.webhooks", "probes.run"),
    phase="accept",
)
def probes_admitted(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """Refusals of the Jobs' pods."""
    refused = refusals(evidence)
    subject = Subject("cluster", expected.cluster.name)
    if not refused:
        yield passed(subject)
        return
    reasons = sorted(set(refused.values()))
    more = f" (and {len(reasons) - 1} other reasons)" if len(reasons) > 1 else ""
    yield Finding(
        Status.FAIL,
        subject,
        "PodsRefused",
        "the cluster refuses the probe pods",
        f"{reasons[0]}{more}; {len(refused)} Jobs got no pod",
        expected="pods in namespace gpuready",
        observed=reasons[0],
    )
