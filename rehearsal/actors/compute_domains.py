"""ComputeDomains of the DRA driver: the claim template that pods take a channel from, and the domain's status.

A pod with a channel reaches the GPUs of other pods in the domain over NVLink, as far as their nodes share a
clique.
"""

from __future__ import annotations

from gpuready.charts_values.kube import Object

from .cache import Cache
from .dra import DOMAINS, ROLE, Dra
from .scene import View, available, operator
from .writes import Writer

CLIQUE = "nvidia.com/gpu.clique"
# The driver's own mark on what belongs to a domain: the domain's uid.
_OF = "resource.nvidia.com/computeDomain"
_CHANNELS = "compute-domain-default-channel.nvidia.com"
_TEMPLATES = "/apis/resource.k8s.io/v1/namespaces/{}/resourceclaimtemplates"
_STATUS = "/apis/resource.nvidia.com/v1beta1/namespaces/{}/computedomains/{}/status"


def cluster(dra: Dra | None, cache: Cache, writer: Writer) -> None:
    """The controller's part: a template for each domain, and the nodes whose pods have joined it."""
    if dra is None or DOMAINS not in dra.drivers:
        return
    if not available(operator(cache.objects("deployments"), "dra-driver-nvidia-gpu")):
        return
    domains = cache.objects("computedomains")
    known = {domain["metadata"]["uid"] for domain in domains}
    for template in cache.objects("resourceclaimtemplates"):
        meta = template["metadata"]
        if (meta.get("labels") or {}).get(_OF, "") not in ("", *known):
            writer.delete("resourceclaimtemplates", f"{_TEMPLATES.format(meta['namespace'])}/{meta['name']}")
    for domain in domains:
        if "deletionTimestamp" not in domain["metadata"]:
            _template(domain, cache, writer)
            _conclude(domain, cache, writer)


def clique(view: View, devices: set[tuple[str, str]]) -> str:
    """The NVLink domain that a pod may use: its node's, where the pod has a channel; ``devices`` are its claims'."""
    has_channel = any(driver == DOMAINS and name.startswith("channel-") for driver, name in devices)
    return view.node.labels.get(CLIQUE, "") if has_channel and view.ready(ROLE) else ""


# -- inside -------------------------------------------------------------------------------------------------


def _template_name(domain: Object) -> str:
    return str(domain["spec"]["channel"]["resourceClaimTemplate"]["name"])


def _template(domain: Object, cache: Cache, writer: Writer) -> None:
    meta, name = domain["metadata"], _template_name(domain)
    if cache.object("resourceclaimtemplates", name, meta["namespace"]) is not None:
        return
    parameters: Object = {
        "apiVersion": "resource.nvidia.com/v1beta1",
        "kind": "ComputeDomainChannelConfig",
        "domainID": meta["uid"],
    }
    devices: Object = {
        "requests": [{"name": "channel", "exactly": {"deviceClassName": _CHANNELS}}],
        "config": [{"requests": ["channel"], "opaque": {"driver": DOMAINS, "parameters": parameters}}],
    }
    body: Object = {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaimTemplate",
        "metadata": {"name": name, "labels": {_OF: meta["uid"]}},
        "spec": {"spec": {"devices": devices}},
    }
    writer.create("resourceclaimtemplates", _TEMPLATES.format(meta["namespace"]), body)


def _conclude(domain: Object, cache: Cache, writer: Writer) -> None:
    meta, name = domain["metadata"], _template_name(domain)
    members = {
        pod.node
        for pod in cache.pods.values()
        if pod.body is not None
        and pod.namespace == meta["namespace"]
        and pod.node in cache.nodes
        and any(one.get("resourceClaimTemplateName") == name for one in pod.body["spec"].get("resourceClaims") or ())
    }
    nodes = [
        {
            "name": one,
            "ipAddress": cache.nodes[one].address,
            "cliqueID": cache.nodes[one].labels.get(CLIQUE, ""),
            "index": index,
            "status": "Ready",
        }
        for index, one in enumerate(sorted(members))
    ]
    status: Object = {"status": "Ready" if nodes else "NotReady", "nodes": nodes}
    if domain.get("status") != status:
        path = _STATUS.format(meta["namespace"], meta["name"])
        writer.patch("computedomains", path, {"status": status}, how="merge")
