"""Cilium: an agent per node, an address range of its own, and one way to serve Services."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network, ip_network

from ..evidence import Evidence
from ..expected import Expected
from ..model import Finding, Status, Subject
from ..registry import check
from ..workloads import counts
from .subjects import NODES, name_of, node, passed, skipped

CONFIG = "kube-system/cilium-config"
_WHERE = ("cluster/configmaps.json",)
Network = IPv4Network | IPv6Network


@check(
    "cilium.nodes",
    title="Cilium knows every node",
    proves="The agent runs on every node and has an address range for its pods.",
    rule="Each node has a CiliumNode object.",
    source="Cilium documentation, IPAM: each agent keeps the CiliumNode object of its node",
    fix="Look at the agent on that node: kubectl -n kube-system get pods -l k8s-app=cilium -o wide",
    needs=("nodes", "ciliumnodes.cilium.io"),
    after=(*NODES, "release.installed/*/cilium"),
)
def cilium_nodes(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """CiliumNode per node."""
    if not _uses_cilium(expected, evidence):
        yield skipped(Subject("cluster", expected.cluster.name), "Cilium is not part of this cluster")
        return
    known = {name_of(one) for one in evidence.objects("ciliumnodes.cilium.io")}
    for one in evidence.objects("nodes"):
        if name_of(one) in known:
            yield passed(node(name_of(one)))
        else:
            yield Finding(
                Status.FAIL,
                node(name_of(one)),
                "NoCiliumNode",
                "Cilium does not know the node",
                expected="a CiliumNode object",
                observed="none",
                evidence=("cluster/ciliumnodes.cilium.io.json",),
            )


@check(
    "cilium.exclusive",
    title="Cilium leaves other CNI files alone",
    proves="Multus and secondary networks keep working.",
    rule="cni-exclusive in ConfigMap kube-system/cilium-config is false.",
    source="cilium/cilium 1.19, install/kubernetes/cilium/values.yaml, cni.exclusive: true renames the CNI files of "
    "others",
    fix="Set cni.exclusive=false in the Cilium values, run the installer, then restart Multus.",
    needs=("configmaps",),
    after=("release.installed/*/cilium",),
)
def cilium_exclusive(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """cni-exclusive."""
    subject = Subject("object", CONFIG)
    config = _config(evidence)
    if config is None:
        yield _without_config(expected, evidence)
        return
    value = config.get("cni-exclusive", "true")
    if value == "false":
        yield passed(subject)
    else:
        yield Finding(
            Status.FAIL,
            subject,
            "CniExclusive",
            "Cilium removes other CNI configurations",
            f"cni-exclusive is {value}",
            expected="false",
            observed=value,
            evidence=("cluster/configmaps.json",),
        )


@check(
    "cilium.cidr",
    title="pods have addresses of their own",
    proves="No pod address is also the address of a node, a rail or a Service.",
    rule="The pool that Cilium hands out is pod_cidr of inventory, and overlaps neither a node's InternalIP nor "
    "node_cidrs, rail_cidrs and service_cidr.",
    source="Cilium documentation, IPAM, Cluster Scope: a pool over the nodes' own network cuts them off",
    fix="Set a free pod_cidr in inventory; a live pool is changed by building the cluster's network anew.",
    avoid="Do not edit the pool under running pods; they keep their old addresses.",
    needs=("configmaps", "nodes"),
    after=("release.installed/*/cilium",),
)
def cilium_cidr(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """The live pool against everything else that has addresses."""
    config, subject = _config(evidence), Subject("object", CONFIG)
    if config is None:
        yield _without_config(expected, evidence)
        return
    mode = config.get("ipam", "cluster-pool")
    pools = _pools(config, evidence)
    if pools is None:
        yield skipped(subject, f"IPAM mode {mode} takes pod addresses from elsewhere")
        return
    if not pools:
        yield Finding(Status.UNPROVEN, subject, "NoPool", "Cilium's configuration names no pool", evidence=_WHERE)
        return
    text = ", ".join(map(str, pools))
    cluster = expected.cluster
    taken = [(f"node {name} ({ip})", ip_network(ip)) for name, ip in _addresses(evidence)]
    for key, cidrs in (
        ("node_cidrs", cluster.node_cidrs),
        ("rail_cidrs", cluster.rail_cidrs),
        ("service_cidr", (cluster.service_cidr,) if cluster.service_cidr else ()),
    ):
        taken += [(f"{key} {cidr}", ip_network(cidr)) for cidr in cidrs]
    clashes = [name for name, other in taken if any(_overlap(pool, other) for pool in pools)]
    promised = ip_network(cluster.pod_cidr) if cluster.pod_cidr else None
    exact = mode.startswith("cluster-pool")
    if clashes:
        more = f" and {len(clashes) - 1} more" if len(clashes) > 1 else ""
        yield Finding(
            Status.FAIL, subject, "PoolOverlaps", "pods get addresses that others have",
            f"pool {text} overlaps {clashes[0]}{more}", expected="no overlap", observed=text, evidence=_WHERE,
        )  # fmt: skip
    elif promised and not (
        _alike(pools, promised) == [promised] if exact else all(_within(pool, promised) for pool in pools)
    ):
        yield Finding(
            Status.FAIL, subject, "PoolDiffers", "Cilium's pool is not the pod network of inventory",
            f"pool {text}, pod_cidr {promised}", expected=str(promised), observed=text, evidence=_WHERE,
            fix="Correct pod_cidr in inventory, if nothing else has these addresses.",
        )  # fmt: skip
    else:
        yield passed(subject, text if exact else f"{len(pools)} node ranges within {promised}")


@check(
    "cilium.kube_proxy",
    title="one proxy serves the Services",
    proves="Services are translated once: by Cilium or by kube-proxy.",
    rule="DaemonSet kube-system/kube-proxy is absent where kube-proxy-replacement is on; with kubeadm it is there "
    "where the replacement is off.",
    source="Cilium documentation, Kubernetes Without kube-proxy",
    fix="Where Cilium replaces it: kubectl -n kube-system delete daemonset kube-proxy, then flush its rules on each "
    "node: kube-proxy --cleanup",
    avoid="Do not delete kube-proxy while kube-proxy-replacement is off; every Service would stop.",
    needs=("configmaps", "daemonsets.apps"),
    after=("release.installed/*/cilium",),
)
def cilium_kube_proxy(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
    """kube-proxy beside, or instead of, its replacement."""
    config = _config(evidence)
    if config is None:
        yield _without_config(expected, evidence)
        return
    value = config.get("kube-proxy-replacement", "false")
    replaced = value in ("true", "strict")
    daemonset = evidence.find("daemonsets.apps", "kube-proxy", "kube-system")
    runs = daemonset is not None and counts(daemonset)[1] > 0
    subject = Subject("object", "kube-system/kube-proxy")
    where = ("cluster/daemonsets.apps.json", *_WHERE)
    detail = f"kube-proxy-replacement is {value}"
    if replaced and runs:
        yield Finding(
            Status.FAIL, subject, "TwoProxies", "kube-proxy runs beside Cilium's replacement",
            detail, expected="no kube-proxy", observed="kube-proxy", evidence=where,
        )  # fmt: skip
    elif value in ("false", "disabled") and not runs and expected.cluster.platform == "kubeadm":
        yield Finding(
            Status.FAIL, subject, "NoProxy", "nothing serves the Services", detail,
            expected="kube-proxy", observed="none", evidence=where, avoid="",
            fix="Run the installer, which turns the replacement on where it sees no kube-proxy; or deploy kube-proxy.",
        )  # fmt: skip
    else:
        yield passed(subject, "replaced by Cilium" if replaced else detail)


def _config(evidence: Evidence) -> dict[str, str] | None:
    """Cilium's settings in force; None where there are none."""
    found = evidence.find("configmaps", "cilium-config")
    data: dict[str, str] = (found.get("data") or {}) if found else {}
    return data if found else None


def _without_config(expected: Expected, evidence: Evidence) -> Finding:
    subject = Subject("object", CONFIG)
    if not _uses_cilium(expected, evidence):
        return skipped(subject, "Cilium is not part of this cluster")
    return Finding(Status.UNPROVEN, subject, "NoConfig", "Cilium's configuration is not there")


def _pools(config: dict[str, str], evidence: Evidence) -> list[Network] | None:
    """What pods get their addresses from; None where another keeps them."""
    mode = config.get("ipam", "cluster-pool")
    if mode == "kubernetes":
        texts = [cidr for one in evidence.objects("nodes") for cidr in one["spec"].get("podCIDRs") or ()]
    elif mode.startswith("cluster-pool"):
        keys = ("cluster-pool-ipv4-cidr", "cluster-pool-ipv6-cidr")
        texts = [text for key in keys for text in config.get(key, "").replace(",", " ").split()]
    else:
        return None
    return [ip_network(text, strict=False) for text in texts]


def _addresses(evidence: Evidence) -> Iterator[tuple[str, str]]:
    for one in evidence.objects("nodes"):
        for address in one.get("status", {}).get("addresses") or ():
            if address["type"] == "InternalIP":
                yield name_of(one), address["address"]


def _alike(pools: list[Network], one: Network) -> list[Network]:
    """Those of the same IP version: inventory promises one network."""
    return [pool for pool in pools if pool.version == one.version]


def _overlap(one: Network, other: Network) -> bool:
    return one.version == other.version and one.overlaps(other)


def _within(one: Network, whole: Network) -> bool:
    return one.version != whole.version or one.subnet_of(whole)  # type: ignore[arg-type]


def _uses_cilium(expected: Expected, evidence: Evidence) -> bool:
    planned = expected.release("cilium") is not None
    return planned or evidence.find("daemonsets.apps", "cilium", "kube-system") is not None
