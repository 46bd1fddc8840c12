"""The API server: what everything else stands on."""

from __future__ import annotations

from collections.abc import Iterator

from ..evidence import Evidence, Object
from ..expected import Expected
from ..model import Finding, Status, Subject
from ..registry import check
from ..webhooks import ENDPOINTS, MUTATING, VALIDATING, answering, hooks, service
from .subjects import name_of, passed, skipped


@check(
    "cluster.reachable",
    title="the API server answers",
    proves="There is something to judge.",
    rule="GET /version is answered.",
    source="Kubernetes documentation, The Kubernetes API: /version tells the server's version",
    fix="Check the context and the network: kubectl version",
)
def reachable(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """The server's version is known."""
    subject = Subject("cluster", expected.cluster.name)
    failure = evidence.failures.get("version")
    if evidence.server_version:
        yield passed(subject, f"Kubernetes {evidence.server_version}")
    elif evidence.objects("nodes"):
        yield passed(subject, "it does not tell its version")
    elif failure is not None and failure.kind == "forbidden":
        cause = "the API server does not accept the credentials"
        yield Finding(
            Status.ERROR, subject, "CredentialsRefused", cause, failure.message,
            fix="Log in again, or give another --kubeconfig or --context.",
        )  # fmt: skip
    elif failure is not None and failure.kind == "invalid":
        cause = "gpuready cannot run as it was called"
        yield Finding(
            Status.ERROR, subject, "CannotRun", cause, failure.message,
            fix="Correct the option, the inventory or the kubeconfig that the detail names.",
        )  # fmt: skip
    elif failure is not None:
        cause = "the API server does not answer"
        yield Finding(Status.ERROR, subject, "Unreachable", cause, failure.message)
    else:
        yield skipped(subject, "the bundle names no API server")


@check(
    "cluster.identity",
    title="the API server is the one that inventory pins",
    proves="The report is about the cluster that was meant.",
    rule="The uid of namespace kube-system equals cluster_uid of the inventory entry, where it is pinned.",
    source="Kubernetes documentation, Object Names and IDs: a UID is one object's alone, while contexts get mixed up",
    fix="Choose the right context, or correct cluster_uid in inventory.",
    avoid="Do not install anything before this is settled.",
    needs=("namespaces",),
)
def identity(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """The right cluster answered."""
    subject = Subject("cluster", expected.cluster.name)
    seen = evidence.about.get("uid")
    pinned = expected.cluster.cluster_uid
    if pinned and pinned != seen:
        yield Finding(
            Status.FAIL,
            subject,
            "AnotherCluster",
            "this is another cluster than inventory pins",
            f"uid {seen} instead of {pinned}",
            expected=pinned,
            observed=str(seen),
            evidence=("cluster/namespaces.json",),
        )
    else:
        yield passed(subject, f"uid {seen}" + ("" if pinned else ", not pinned in inventory"))


@check(
    "cluster.webhooks",
    title="every admission webhook can be reached",
    proves="The API server can take new objects; a webhook that is down refuses them all.",
    rule="The Service of each admission webhook has a ready endpoint; without one failurePolicy Fail fails and "
    "Ignore warns.",
    source="Kubernetes documentation, Dynamic Admission Control, failure policy",
    fix="Look at the pods behind the Service; where its owner is gone, delete the webhook configuration.",
    avoid="Do not change failurePolicy to Ignore as a cure; the webhook is there for a reason.",
    needs=(VALIDATING, MUTATING, ENDPOINTS),
)
def webhooks(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """Webhooks by configuration."""
    alive = answering(evidence)
    dead: dict[str, list[Object]] = {}
    every = list(hooks(evidence))
    for item, hook in every:
        where = service(hook)
        if where is not None and where not in alive:
            # Charts like to call both kinds the same.
            dead.setdefault(f"{item['kind']}/{name_of(item)}", []).append(hook)
    for name, broken in dead.items():
        fatal = [hook for hook in broken if hook.get("failurePolicy", "Fail") == "Fail"]
        first = (fatal or broken)[0]
        place = "/".join(service(first) or ())
        yield Finding(
            Status.FAIL if fatal else Status.WARN,
            Subject("object", name),
            "WebhookDead",
            "an admission webhook cannot be reached" + ("" if fatal else "; it is passed over"),
            f"{first['name']} decides on {_asked(first)} through Service {place}, which has no ready endpoint",
            expected="a ready endpoint",
            observed="none",
            evidence=(f"cluster/{ENDPOINTS}.json",),
        )
    if not dead:
        yield passed(Subject("cluster", expected.cluster.name), f"{len(every)} webhooks")


def _asked(hook: Object) -> str:
    """What a webhook is asked about, such as ``create, update of pods``."""
    texts = [
        f"{', '.join(rule.get('operations') or ()).lower()} of {', '.join(rule.get('resources') or ())}"
        for rule in hook.get("rules") or ()
    ]
    return "; ".join(texts) or "nothing"
