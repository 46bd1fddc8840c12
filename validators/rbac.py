"""The least roles: what `check`, `accept` and the installer may do, as the objects that grant it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .acceptance.manifests import NAMESPACE, PRIORITY_CLASS
from .evidence import Object

ROLES = ("check", "accept", "install")
_READ = ("get", "list")
SYSTEM = "kube-system"


def objects(role: str) -> list[Object]:
    """Namespace, ServiceAccount, roles and bindings for ``gpuready-<role>``."""
    name = f"gpuready-{role}"
    out: list[Object] = [
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {
                "name": NAMESPACE,
                "labels": {
                    "app.kubernetes.io/name": "gpuready",
                    "pod-security.kubernetes.io/enforce": "privileged",
                },
            },
        },
        _object("v1", "ServiceAccount", name, namespace=NAMESPACE),
    ]
    if role == "install":
        # Charts create roles of their own, and nobody may grant what he does not hold.
        return [*out, _binding(name, "cluster-admin")]
    rules = _check_rules()
    if role == "accept":
        rules += _accept_cluster_rules()
    out += [_role("ClusterRole", name, rules), _binding(name, name)]
    # Cilium's settings and the installer's record lie among those of others.
    config = _rule("", ("configmaps",), ("get",), ("cilium-config", "gpuready-installs"))
    out += [_role("Role", name, [config], namespace=SYSTEM), _binding(name, name, namespace=SYSTEM)]
    if role == "accept":
        out += [
            _role("Role", name, _accept_namespace_rules(), namespace=NAMESPACE),
            _binding(name, name, namespace=NAMESPACE),
        ]
    return out


def _check_rules() -> list[Object]:
    return [
        _rule("", ("nodes", "pods"), _READ),
        _rule("", ("namespaces",), _READ),
        # `gpuready learn` takes the service network from them.
        _rule("networking.k8s.io", ("servicecidrs",), ("get",), ("kubernetes",)),
        _rule("", ("services",), ("get",), ("kubernetes",)),
        _rule("apps", ("daemonsets", "deployments"), _READ),
        _rule("cilium.io", ("ciliumnodes",), _READ),
        _rule("nvidia.com", ("clusterpolicies",), _READ),
        _rule("mellanox.com", ("nicclusterpolicies", "macvlannetworks"), _READ),
        _rule("nv-ipam.nvidia.com", ("ippools",), _READ),
        _rule("k8s.cni.cncf.io", ("network-attachment-definitions",), _READ),
        _rule("resource.k8s.io", ("resourceslices", "deviceclasses", "resourceclaims"), _READ),
        _rule("discovery.k8s.io", ("endpointslices",), _READ),
        _rule(
            "admissionregistration.k8s.io",
            ("validatingwebhookconfigurations", "mutatingwebhookconfigurations"),
            _READ,
        ),
    ]


def _accept_cluster_rules() -> list[Object]:
    return [
        _rule("scheduling.k8s.io", ("priorityclasses",), ("get",), (PRIORITY_CLASS,)),
        # A name cannot be held against a create; both objects are made once and kept.
        _rule("", ("namespaces",), ("create",)),
        _rule("scheduling.k8s.io", ("priorityclasses",), ("create",)),
    ]


def _accept_namespace_rules() -> list[Object]:
    change = ("get", "list", "create", "delete")
    return [
        _rule("batch", ("jobs",), change),
        # Owner references of a Job's children are checked against its finalizers sub-resource.
        _rule("batch", ("jobs/finalizers",), ("update",)),
        # What a search knows and what this cluster reached are brought up to date.
        _rule("", ("configmaps",), (*change, "patch")),
        _rule("", ("services",), change),
        _rule("", ("pods", "pods/log", "events"), _READ),
        _rule("resource.k8s.io", ("resourceclaimtemplates",), change),
        _rule("resource.nvidia.com", ("computedomains",), change),
    ]


def _rule(group: str, resources: Sequence[str], verbs: Sequence[str], names: Sequence[str] = ()) -> dict[str, Any]:
    rule: dict[str, Any] = {"apiGroups": [group], "resources": list(resources), "verbs": list(verbs)}
    return rule | {"resourceNames": list(names)} if names else rule


def _object(version: str, kind: str, name: str, *, namespace: str | None = None) -> Object:
    meta = {"name": name, "labels": {"app.kubernetes.io/name": "gpuready"}}
    if namespace:
        meta["namespace"] = namespace
    return {"apiVersion": version, "kind": kind, "metadata": meta}


def _role(kind: str, name: str, rules: list[Object], *, namespace: str | None = None) -> Object:
    return _object("rbac.authorization.k8s.io/v1", kind, name, namespace=namespace) | {"rules": rules}


def _binding(name: str, role: str, *, namespace: str | None = None) -> Object:
    kind = "Role" if namespace else "ClusterRole"
    out = _object("rbac.authorization.k8s.io/v1", f"{kind}Binding", name, namespace=namespace)
    out["roleRef"] = {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role}
    out["subjects"] = [{"kind": "ServiceAccount", "name": f"gpuready-{_role_of(name)}", "namespace": NAMESPACE}]
    return out


def _role_of(name: str) -> str:
    return name.removeprefix("gpuready-")
