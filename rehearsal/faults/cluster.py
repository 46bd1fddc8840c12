"""Faults of the cluster that refuse or hold up what is asked of it."""

from __future__ import annotations

from gpuready.charts_values.kube import Object
from gpuready.validators.acceptance import manifests

from .edits import Edit, create
from .model import Fault, Site

_WEBHOOK = "kueue-validating-webhook-configuration"
_SERVICE = "kueue-webhook-service"
PROBES = f"/api/v1/namespaces/{manifests.NAMESPACE}"


def _dead_webhook(site: Site) -> list[Edit]:
    """Kueue was removed, its webhook stayed. It would refuse no other pods than those of a queue."""
    service: Object = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": _SERVICE, "namespace": "kube-system"},
        "spec": {"selector": {"control-plane": "kueue"}, "ports": [{"port": 443, "targetPort": 9443}]},
    }
    webhook = {
        "name": "vpod.kb.io",
        "clientConfig": {"service": {"namespace": "kube-system", "name": _SERVICE, "path": "/validate--v1-pod"}},
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
        "objectSelector": {"matchExpressions": [{"key": "kueue.x-k8s.io/queue-name", "operator": "Exists"}]},
        "failurePolicy": "Fail",
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
    }
    configuration: Object = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": _WEBHOOK},
        "webhooks": [webhook],
    }
    return [
        create(f"/api/v1/namespaces/kube-system/services/{_SERVICE}", service),
        create(f"/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/{_WEBHOOK}", configuration),
    ]


def probe_namespace(site: Site) -> list[Edit]:
    """The namespace that an acceptance makes once and keeps: where it is not there yet, it comes and goes."""
    return [create(PROBES, manifests.namespace())] if site.api.find(PROBES) is None else []


def _fill_quota(site: Site) -> list[Edit]:
    quota: Object = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "team-quota", "namespace": manifests.NAMESPACE},
        "spec": {"hard": {"pods": "0"}},
    }
    return [*probe_namespace(site), create(f"{PROBES}/resourcequotas/team-quota", quota)]


FAULTS = (
    Fault(
        name="webhook-dead",
        title="an admission webhook has nobody behind it",
        breaks="a ValidatingWebhookConfiguration with failurePolicy Fail names a Service without ready endpoints",
        finding="cluster.webhooks",
        scope="cluster",
        edits=_dead_webhook,
    ),
    Fault(
        name="quota-full",
        title="a quota refuses the acceptance's pods",
        breaks=f"a ResourceQuota allows no pods in namespace {manifests.NAMESPACE}",
        finding="probes.admitted",
        phase="accept",
        follows=("smi.pod", "smi.gpus", "nccl.run"),
        scope="cluster",
        edits=_fill_quota,
    ),
)
