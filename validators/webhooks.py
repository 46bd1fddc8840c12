"""Admission webhooks: what the API server asks before it takes an object, and through which Service."""

from __future__ import annotations

from collections.abc import Iterator

from .evidence import Evidence, Object

VALIDATING = "validatingwebhookconfigurations.admissionregistration.k8s.io"
MUTATING = "mutatingwebhookconfigurations.admissionregistration.k8s.io"
ENDPOINTS = "endpointslices.discovery.k8s.io"
SERVICE_LABEL = "kubernetes.io/service-name"


def services(evidence: Evidence) -> set[tuple[str, str]]:
    """Namespace and name of each Service that a webhook is called through."""
    return {where for _, hook in hooks(evidence) if (where := service(hook)) is not None}


def hooks(evidence: Evidence) -> Iterator[tuple[Object, Object]]:
    """Each configuration, with each of its webhooks."""
    for key in (VALIDATING, MUTATING):
        for item in evidence.objects(key):
            for hook in item.get("webhooks") or ():
                yield item, hook


def service(hook: Object) -> tuple[str, str] | None:
    """Namespace and name of a webhook's Service; None where it is called at a URL."""
    found = hook.get("clientConfig", {}).get("service")
    return (found["namespace"], found["name"]) if found else None


def answering(evidence: Evidence) -> set[tuple[str, str]]:
    """Namespace and name of the Services that have a ready endpoint."""
    return {
        (item["metadata"]["namespace"], item["metadata"]["labels"][SERVICE_LABEL])
        for item in evidence.objects(ENDPOINTS)
        # Unknown counts as ready, as it does for kube-proxy.
        if any(one.get("conditions", {}).get("ready") is not False for one in item.get("endpoints") or ())
    }
