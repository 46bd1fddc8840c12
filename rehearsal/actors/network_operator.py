"""The Network Operator: what a NicClusterPolicy asks for, and the RDMA devices that follow.

Only the policy named nic-cluster-policy counts. Components that are not asked for are in state ignore; a
DaemonSet that no node wants is never ready. Rules: Network Operator source 26.4.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gpuready.charts_values.kube import Object

from ..profile import Nic, Profile
from .cache import Cache
from .daemonsets import bring, owner, remove, rolled_out, upgrade
from .informers import PATHS
from .nfd import PREFIX
from .pods import ALL_READY, Wish, crashing
from .records import GATE
from .scene import ACTOR, View, available, operator
from .wishes import NodeWish
from .writes import Writer

NAME = "nic-cluster-policy"
NICS = f"{PREFIX}pci-15b3.present"
WAIT = "network.nvidia.com/operator.mofed.wait"
# Nodes with this label keep their OFED.
SKIP = "nvidia.com/ofed-driver-upgrade.skip"
_MANAGER = "network-operator"
_ALL = "kubernetes.io/os"
_ON_NICS = ((NICS, "true"),)
_AFTER_OFED = (*_ON_NICS, (WAIT, "false"))
_EVERYWHERE = ((_ALL, "linux"),)


@dataclass(frozen=True)
class Component:
    """One component: where the policy asks for it, its state's name and its DaemonSet.

    ``nodes`` is the node selector. Without ``daemonset`` the rehearsal does not play it, and says so.
    """

    key: str
    state: str
    daemonset: str = ""
    nodes: tuple[tuple[str, str], ...] = _EVERYWHERE

    @property
    def role(self) -> str:
        """The role of its pods."""
        return f"net.{self.key}"


# In the order of the policy's appliedStates.
COMPONENTS = (
    Component("secondaryNetwork.multus", "state-multus-cni", "kube-multus-ds"),
    Component("secondaryNetwork.cniPlugins", "state-container-networking-plugins", "cni-plugins-ds"),
    Component("secondaryNetwork.ipoib", "state-ipoib-cni", "kube-ipoib-cni-ds"),
    Component("ofedDriver", "state-OFED", "mofed", _ON_NICS),
    Component("sriovDevicePlugin", "state-SRIOV-device-plugin", "network-operator-sriov-device-plugin", _AFTER_OFED),
    Component("rdmaSharedDevicePlugin", "state-RDMA-device-plugin", "rdma-shared-dp-ds", _AFTER_OFED),
    Component("ibKubernetes", "state-ib-kubernetes"),
    Component("nvIpam", "state-nv-ipam-cni", "nv-ipam-node"),
    Component("nicFeatureDiscovery", "state-nic-feature-discovery", "nic-feature-discovery-ds", _ON_NICS),
    Component("docaTelemetryService", "state-doca-telemetry-service", "doca-telemetry-service", _ON_NICS),
    Component("nicConfigurationOperator", "state-nic-configuration-operator"),
    Component("spectrumXOperator", "state-spectrum-x-operator"),
)
_BY_ROLE = {one.role: one for one in COMPONENTS}
_OFED = "net.ofedDriver"
_RDMA = "net.rdmaSharedDevicePlugin"
_SRIOV = "net.sriovDevicePlugin"


@dataclass(frozen=True)
class NetworkOperator:
    """What the installed objects say. ``policy`` is the one that counts, ``ignored`` names the others."""

    policy: Object | None
    ignored: tuple[str, ...]
    namespace: str
    running: bool

    def section(self, component: str) -> Object | None:
        """What the policy says about a component, None where it does not ask for it."""
        found: object = self.policy["spec"] if self.policy else None
        for key in component.split("."):
            found = found.get(key) if isinstance(found, dict) else None
        return found if isinstance(found, dict) else None

    def pools(self, component: str, key: str) -> list[Object] | None:
        """The resource lists in a device plugin's JSON ``config``; None where it cannot be read."""
        text = (self.section(component) or {}).get("config") or "{}"
        try:
            found = json.loads(text)[key]
        except (ValueError, KeyError, TypeError):
            return None
        return found if isinstance(found, list) and all(isinstance(one, dict) for one in found) else None


def read(cache: Cache) -> NetworkOperator:
    """The policy of the one name that counts."""
    policies = [one for one in cache.objects("nicclusterpolicies") if "deletionTimestamp" not in one["metadata"]]
    deployment = operator(cache.objects("deployments"), "network-operator")
    policy = None
    for one in policies:
        if one["metadata"]["name"] == NAME:
            # The status must not count as a change of what the policy says.
            policy = {key: one[key] for key in ("apiVersion", "kind")} | {"spec": one.get("spec") or {}}
            policy["metadata"] = {key: one["metadata"][key] for key in ("name", "uid", "generation")}
    return NetworkOperator(
        policy=policy,
        ignored=tuple(sorted(one["metadata"]["name"] for one in policies if one["metadata"]["name"] != NAME)),
        namespace=deployment["metadata"]["namespace"] if deployment else "",
        running=available(deployment),
    )


def cluster(net: NetworkOperator, cache: Cache, writer: Writer) -> None:
    """DaemonSets, and the status of every NicClusterPolicy."""
    made = {
        one["metadata"]["labels"][ACTOR]: one
        for one in cache.objects("daemonsets")
        if (one["metadata"].get("labels") or {}).get(ACTOR) in _BY_ROLE
    }
    if net.policy is None:
        for one in made.values():
            remove(one, writer)
    if not net.running:
        return
    for name in net.ignored:
        _write_status(cache, writer, name, {"state": "ignore", "reason": f"only {NAME} is acted on"})
    if net.policy is None:
        return
    states = [_component(net, net.policy, one, made.get(one.role), cache, writer) for one in COMPONENTS]
    ready = all(one["state"] in ("ready", "ignore") for one in states)
    _write_status(cache, writer, NAME, {"state": "ready" if ready else "notReady", "appliedStates": states})


def node(net: NetworkOperator, view: View, wish: NodeWish, profile: Profile) -> None:
    """The wait label, and the devices that the device plugins offer."""
    if net.policy is None or net.running:
        wish.claim_labels(WAIT)
        if net.policy is not None and wish.label(view.node, NICS) == "true":
            ofed = net.section("ofedDriver") is not None and not view.ready(_OFED)
            waits = ofed or view.hardware.mofed_wait
            wish.labels[WAIT] = str(waits).lower()
    wish.claim_resources("rdma/")
    if view.ready(_RDMA):
        for pool in net.pools("rdmaSharedDevicePlugin", "configList") or ():
            if _selected(pool.get("selectors") or {}, view, profile):
                name = f"{pool.get('resourcePrefix') or 'rdma'}/{pool.get('resourceName')}"
                wish.resources[name] = int(pool.get("rdmaHcaMax") or 0)
    if view.ready(_SRIOV):
        for pool in net.pools("sriovDevicePlugin", "resourceList") or ():
            count = len(_selected(pool.get("selectors") or {}, view, profile))
            wish.resources[f"{pool.get('resourcePrefix') or 'nvidia.com'}/{pool.get('resourceName')}"] = count


def offered(net: NetworkOperator, view: View, profile: Profile, asked: Callable[[str], bool]) -> tuple[Nic, ...]:
    """The rails behind those resources of the device plugins that are asked for by name, in order."""
    found: set[str] = set()
    for component, key, prefix in (
        ("rdmaSharedDevicePlugin", "configList", "rdma"),
        ("sriovDevicePlugin", "resourceList", "nvidia.com"),
    ):
        for pool in net.pools(component, key) or ():
            if asked(f"{pool.get('resourcePrefix') or prefix}/{pool.get('resourceName')}"):
                found |= {nic.name for nic in _selected(pool.get("selectors") or {}, view, profile)}
    return tuple(nic for nic in view.hardware.nics if nic.name in found)


def progress(net: NetworkOperator, role: str) -> Wish | None:
    """How far a component's pod can be; None where the pod is none of its."""
    if role not in _BY_ROLE:
        return None
    for plugin, component, key in (
        (_RDMA, "rdmaSharedDevicePlugin", "configList"),
        (_SRIOV, "sriovDevicePlugin", "resourceList"),
    ):
        if role == plugin and net.policy is not None and net.pools(component, key) is None:
            return crashing(f"the configuration holds no JSON with a list {key}")
    return ALL_READY


# -- inside -------------------------------------------------------------------------------------------------


def _component(
    net: NetworkOperator, policy: Object, component: Component, known: Object | None, cache: Cache, writer: Writer
) -> Object:
    """Bring one component in line; returns its applied state."""
    section = net.section(component.key)
    if section is None:
        if known is not None:
            remove(known, writer)
        return {"name": component.state, "state": "ignore"}
    if not component.daemonset:
        return {"name": component.state, "state": "error", "message": "the rehearsal does not play this component"}
    wanted = _daemonset(net, policy, component, section, cache)
    if known is not None and known["metadata"]["name"] != wanted["metadata"]["name"]:
        remove(known, writer)
    current = bring(known, wanted, writer, _MANAGER)
    ready = current and known is not None and rolled_out(known, empty_is_fine=False)
    if component.key == "ofedDriver" and current and known is not None and not ready:
        upgrade(section.get("upgradePolicy") or {}, known, wanted, SKIP, cache, writer)
    return {"name": component.state, "state": "ready" if ready else "notReady"}


def _daemonset(net: NetworkOperator, policy: Object, component: Component, section: Object, cache: Cache) -> Object:
    spec = policy["spec"]
    name, selector = component.daemonset, dict(component.nodes)
    if component.key == "ofedDriver":
        name, more = _ofed(cache)
        selector |= more
    image = "/".join(str(section[key]) for key in ("repository", "image") if section.get(key)) or name
    if section.get("version"):
        image = f"{image}:{section['version']}"
    labels = {"app": name, "app.kubernetes.io/part-of": "network-operator"}
    tolerations = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    pod: Object = {
        "nodeSelector": selector,
        "priorityClassName": "system-node-critical",
        "tolerations": tolerations + [one for one in spec.get("tolerations") or () if one not in tolerations],
        "hostNetwork": True,
        "automountServiceAccountToken": False,
        "containers": [
            {
                "name": name.removesuffix("-ds").replace(".", "-"),
                "image": image,
                "env": section.get("env") or [],
                # The plugins read their configuration when they start.
                "args": [section["config"]] if section.get("config") else [],
                "securityContext": {"privileged": True},
            }
        ],
    }
    if spec.get("nodeAffinity"):
        pod["affinity"] = {"nodeAffinity": spec["nodeAffinity"]}
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {
            "name": name,
            "namespace": net.namespace,
            "labels": {**labels, ACTOR: component.role},
            "ownerReferences": [owner(policy)],
        },
        "spec": {
            "selector": {"matchLabels": {"app": name}},
            "updateStrategy": {"type": "OnDelete" if component.key == "ofedDriver" else "RollingUpdate"},
            "template": {"metadata": {"labels": labels, "annotations": {GATE: component.role}}, "spec": pod},
        },
    }


def _ofed(cache: Cache) -> tuple[str, dict[str, str]]:
    """Name and node selector of the OFED DaemonSet: one per OS and kernel, of which a profile has one."""
    for one in cache.nodes.values():
        if one.labels.get(NICS) == "true":
            keys = ("kernel-version.full", "system-os_release.ID", "system-os_release.VERSION_ID")
            found = {PREFIX + key: one.labels.get(PREFIX + key, "") for key in keys}
            kernel, system, version = found.values()
            digest = hashlib.sha256(kernel.encode()).hexdigest()[:10]
            return f"mofed-{system}{version}-{digest}-ds", found
    return "mofed-ds", {}


def _selected(selectors: Mapping[str, list[str] | bool], view: View, profile: Profile) -> list[Nic]:
    """The rails of a node that a pool selects: any value of a selector, and every selector.

    Both device plugins' names for the selectors are understood; one that is unknown selects nothing.
    """
    model = profile.nics
    if model is None:
        return []
    found = []
    for nic in view.hardware.nics:
        facts = {
            "vendors": model.vendor,
            "deviceIDs": model.device,
            "devices": model.device,
            "drivers": model.driver,
            "ifNames": nic.interface,
            "pfNames": nic.interface,
            "rootDevices": nic.bus_id,
            "linkTypes": "infiniband" if model.link == "IB" else "ether",
            "isRdma": True,
        }
        if all(
            facts.get(key) == wanted if isinstance(wanted, bool) else facts.get(key) in wanted
            for key, wanted in selectors.items()
            if wanted
        ):
            found.append(nic)
    return found


def _write_status(cache: Cache, writer: Writer, name: str, status: Object) -> None:
    known = cache.object("nicclusterpolicies", name)
    if known is None or known.get("status", {}) | status == known.get("status"):
        return
    path = f"{PATHS['nicclusterpolicies']}/{name}/status"
    writer.patch("nicclusterpolicies", path, {"status": status}, how="merge")
