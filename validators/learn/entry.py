"""Evidence in, draft out: what each key of an inventory entry can be learned from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Network, ip_address
from typing import Any
from urllib.parse import urlsplit

from gpuready.charts_values.errors import ApiError, UnreachableError

from ..checks.subjects import labels_of, name_of
from ..checks.versions import DRIVER
from ..evidence import Evidence, Object
from .draft import Draft
from .groups import GPU_DRIVER, SLICES, groups_of, has_gpus
from .rails import ATTACHMENTS, MACVLANS, POOLS
from .releases import INSTALLS, Seen, adopted, seen, without_helm

SERVICE_CIDRS = "servicecidrs.networking.k8s.io"
_POLICIES = "clusterpolicies.nvidia.com"
_NIC_POLICIES = "nicclusterpolicies.mellanox.com"
# What a draft is made from; whatever else could not be read does not matter here.
_SOURCES = {
    *("nodes", "namespaces", "configmaps", "services", "daemonsets.apps", "deployments.apps"),
    *(_POLICIES, _NIC_POLICIES, SLICES, SERVICE_CIDRS, INSTALLS, MACVLANS, ATTACHMENTS, POOLS),
}
_CONTROL_PLANE = ("node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master")
_SHOWN = 8


def entry_from(evidence: Evidence, name: str, *, kubeconfig: str | None = None, context: str | None = None) -> Draft:
    """The draft of an entry called ``name`` from what was collected. Pure.

    Raises ApiError or UnreachableError where the nodes could not be read, without which nothing can be learned.
    """
    failure = evidence.failures.get("nodes")
    if failure is not None:
        text = f"nothing can be learned without the nodes: {failure.message}"
        raise ApiError(text, 403) if failure.kind == "forbidden" else UnreachableError(text)
    nodes = evidence.objects("nodes")
    gpu_nodes = [node for node in nodes if has_gpus(node, evidence)]
    releases = seen(evidence)
    draft = Draft(name, notes=_notes(evidence, nodes, gpu_nodes, releases))
    draft.put("kubeconfig", kubeconfig)
    draft.put("context", context)
    uid = evidence.about.get("uid")
    draft.put(
        "cluster_uid", uid, "" if uid else f"fill in: the uid of namespace kube-system{_lost(evidence, 'namespaces')}"
    )
    draft.put("platform", *_platform(nodes))
    draft.put("pod_cidr", *_pod_cidr(evidence, nodes))
    draft.put("service_cidr", *_service_cidr(evidence))
    _places(draft, evidence, nodes)
    draft.put("driver_version", *_driver_version(evidence, gpu_nodes))
    draft.put("driver_owner", *_driver_owner(evidence, gpu_nodes))
    draft.put("dra", *_dra(evidence))
    draft.put("adopt", *adopted(evidence, releases))
    groups = groups_of(gpu_nodes, evidence)
    draft.entry["groups"] = {key: group for key, (group, _) in groups.items()}
    for key, (_, comments) in groups.items():
        draft.comments |= {("groups", key, field): text for field, text in comments.items()}
    if not groups:
        draft.comments["groups",] = "fill in: no node shows a GPU by resource, ResourceSlice or label of NFD or GFD"
    if any("rdma" in group for group, _ in groups.values()):
        draft.put("ofed_owner", *_ofed_owner(evidence))
        draft.put("rail_cidrs", None, "fill in: the networks of the rails, where they carry IP addresses")
    return draft


def _notes(
    evidence: Evidence, nodes: Sequence[Object], gpu_nodes: Sequence[Object], releases: Sequence[Seen]
) -> list[str]:
    kubelets = Counter(str(one.get("status", {}).get("nodeInfo", {}).get("kubeletVersion", "?")) for one in nodes)
    versions = ", ".join(f"{version} on {number}" for version, number in sorted(kubelets.items()))
    notes = [
        f"Drafted from {evidence.about.get('server')}. Review every line.",
        f"Kubernetes {evidence.server_version or 'of unknown version'}, kubelet {versions or 'unknown'}; "
        f"{len(nodes)} nodes, {len(gpu_nodes)} with GPUs.",
        *(f"Helm release {one.name} {one.version or 'of unknown version'} in {one.namespace}." for one in releases),
        *without_helm(evidence),
    ]
    failures = sorted(evidence.failures.items())
    lost = [key for key, failure in failures if failure.kind != "absent" and key in _SOURCES]
    return notes + ([f"Could not be read: {', '.join(lost)}."] if lost else [])


def _platform(nodes: Sequence[Object]) -> tuple[str, str]:
    versions = [str(one.get("status", {}).get("nodeInfo", {}).get("kubeletVersion", "")) for one in nodes]
    labels = {label for one in nodes for label in labels_of(one)}
    if any("+k3s" in version for version in versions):
        return "k3s", ""
    if any(label.startswith(("vcluster.loft.sh/", "vcluster.com/")) for label in labels):
        return "vcluster", "guess: nodes carry labels of vCluster"
    if labels.isdisjoint(_CONTROL_PLANE):
        return "hosted", "guess: no node of the control plane is to be seen"
    return "kubeadm", "guess: a node of the control plane is to be seen, and nothing of k3s or vCluster"


def _pod_cidr(evidence: Evidence, nodes: Sequence[Object]) -> tuple[str, str]:
    """Cilium's own pool; else the smallest network around what the nodes were given."""
    config = _cilium(evidence)
    ipam, pools = config.get("ipam", ""), config.get("cluster-pool-ipv4-cidr", "").split()
    if ipam == "cluster-pool" and pools:
        return pools[0], f"check: Cilium has more pools, {', '.join(pools[1:])}" if pools[1:] else ""
    if ipam not in ("", "kubernetes"):
        return "", f"fill in: Cilium takes pod addresses from elsewhere, ipam {ipam}"
    given = [
        IPv4Network(cidr)
        for node in nodes
        for cidr in node["spec"].get("podCIDRs") or [node["spec"].get("podCIDR")]
        if cidr and ":" not in cidr
    ]
    if not given:
        return "", f"fill in: the nodes have no podCIDR{_lost(evidence, 'configmaps')}"
    around = given[0]
    while not all(one.subnet_of(around) for one in given):
        around = around.supernet()
    return str(around), "guess: the smallest network around the nodes' podCIDRs; --cluster-cidr may be larger"


def _service_cidr(evidence: Evidence) -> tuple[str, str]:
    for one in evidence.objects(SERVICE_CIDRS):
        for cidr in one["spec"]["cidrs"]:
            if ":" not in cidr:
                return str(cidr), ""
    address = next((str(one["spec"].get("clusterIP")) for one in evidence.objects("services")), "")
    hint = f"; service default/kubernetes has {address}" if address else ""
    return "", f"fill in: --service-cluster-ip-range of the API server{_lost(evidence, SERVICE_CIDRS)}{hint}"


def _places(draft: Draft, evidence: Evidence, nodes: Sequence[Object]) -> None:
    """Where nodes and API server are, of which the API knows little."""
    addresses = sorted(
        ip_address(one["address"])
        for node in nodes
        for one in node.get("status", {}).get("addresses") or ()
        if one.get("type") == "InternalIP" and ":" not in one["address"]
    )
    seen = f"; addresses from {addresses[0]} to {addresses[-1]} are in use" if addresses else ""
    draft.put("node_cidrs", None, f"fill in: the networks of the nodes{seen}")
    server = urlsplit(str(evidence.about.get("server", "")))
    host = server.hostname or ""
    here = "this machine" if host == "localhost" or host.startswith("127.") else ""
    if why := here or ("a proxy before it" if server.path.strip("/") else ""):
        draft.put("api_server", None, f"fill in: host:port of the API server as nodes reach it; {host} is {why}")
    devices = _cilium(evidence).get("devices", "").split()
    comment = "" if devices else "fill in: the devices that Cilium shall use, where it must not find them itself"
    draft.put("management_nics", devices or None, comment)


def _cilium(evidence: Evidence) -> Mapping[str, str]:
    return (evidence.find("configmaps", "cilium-config") or {}).get("data") or {}


def _driver(evidence: Evidence) -> Mapping[str, Any]:
    """What the ClusterPolicy says of the driver; nothing without one."""
    policies = evidence.objects(_POLICIES)
    return {"enabled": True, **policies[0].get("spec", {}).get("driver", {})} if policies else {}


def _driver_version(evidence: Evidence, gpu_nodes: Sequence[Object]) -> tuple[str, str]:
    seen = {name_of(one): labels_of(one).get(DRIVER) for one in gpu_nodes}
    common = Counter(version for version in seen.values() if version).most_common(1)
    if common:
        others = [f"{name} has {version or 'no label'}" for name, version in seen.items() if version != common[0][0]]
        more = f" and {len(others) - _SHOWN} more" if others[_SHOWN:] else ""
        return common[0][0], f"check: {', '.join(others[:_SHOWN])}{more}" if others else ""
    asked = str(_driver(evidence).get("version") or "") if _driver(evidence).get("enabled") else ""
    if asked:
        return asked, "check: the ClusterPolicy asks for it; no node is labelled with its driver"
    return "", "fill in: no node is labelled with its driver"


def _driver_owner(evidence: Evidence, gpu_nodes: Sequence[Object]) -> tuple[str, str]:
    driver = _driver(evidence)
    if driver:
        return "operator" if driver["enabled"] else "host", ""
    if any(DRIVER in labels_of(one) for one in gpu_nodes):
        return "host", f"guess: there is a driver and no ClusterPolicy{_lost(evidence, _POLICIES)}"
    return "operator", f"fill in: operator or host; no driver is to be seen{_lost(evidence, _POLICIES)}"


def _ofed_owner(evidence: Evidence) -> tuple[str, str]:
    policies = evidence.objects(_NIC_POLICIES)
    if any(one.get("spec", {}).get("ofedDriver") for one in policies):
        return "operator", ""
    return "inbox", "fill in: inbox, or host where DOCA-OFED is installed on the machines"


def _dra(evidence: Evidence) -> tuple[str, str]:
    drivers = {one["spec"].get("driver") for one in evidence.objects(SLICES)}
    if GPU_DRIVER in drivers:
        return "gpus", ""
    if "compute-domain.nvidia.com" in drivers:
        return "compute-domains", ""
    lost = _lost(evidence, SLICES)
    return "off", f"fill in: off, compute-domains or gpus{lost}" if lost else ""


def _lost(evidence: Evidence, key: str) -> str:
    """Says that a read failed; nothing where it did not, or where there simply is no such kind."""
    failure = evidence.failures.get(key)
    return "" if failure is None or failure.kind == "absent" else f"; {key} could not be read ({failure.kind})"
