"""Faults of the network and of feature discovery: Cilium, NFD and the Network Operator."""

from __future__ import annotations

import copy
import dataclasses
import json
from ipaddress import ip_network

import yaml
from gpuready.charts_values.errors import InputError
from gpuready.charts_values.kube import Object

from ..fleet import Hardware, Trouble
from .edits import Edit, bare, create, delete, patch
from .model import Fault, Site

_CILIUM = "/api/v1/namespaces/kube-system/configmaps/cilium-config"
_KUBE_PROXY = "/apis/apps/v1/namespaces/kube-system/daemonsets/kube-proxy"
_NFD = "/apis/apps/v1/namespaces/node-feature-discovery"
_NFD_MASTER = f"{_NFD}/deployments/node-feature-discovery-master"
_NFD_GC = f"{_NFD}/deployments/node-feature-discovery-gc"
_NFD_WORKER = f"{_NFD}/daemonsets/node-feature-discovery-worker"
_NFD_CONFIG = "/api/v1/namespaces/node-feature-discovery/configmaps/node-feature-discovery-worker-conf"
_NIC_POLICIES = "/apis/mellanox.com/v1alpha1/nicclusterpolicies"
_NIC_POLICY = f"{_NIC_POLICIES}/nic-cluster-policy"
_RDMA_PLUGINS = ("net.rdmaSharedDevicePlugin", "net.sriovDevicePlugin")
# Release and namespace of a second NFD, as the GPU Operator's chart brings one unless told not to.
_SECOND = "gpu-operator"


# -- Cilium -------------------------------------------------------------------------------------------------


def _exclusive(site: Site) -> list[Edit]:
    return [patch(_CILIUM, {"data": {"cni-exclusive": "true"}}, site.get(_CILIUM))]


def _overlap(site: Site) -> list[Edit]:
    """A pool around the nodes' network, sixteen times as large."""
    pool = ip_network(site.profile.network.nodes).supernet(4)
    return [patch(_CILIUM, {"data": {"cluster-pool-ipv4-cidr": str(pool)}}, site.get(_CILIUM))]


def _kube_proxy(site: Site) -> list[Edit]:
    site.get(_CILIUM)
    labels = {"k8s-app": "kube-proxy"}
    container = {"name": "kube-proxy", "image": "registry.k8s.io/kube-proxy:v1.35.4"}
    pod = {"hostNetwork": True, "tolerations": [{"operator": "Exists"}], "containers": [container]}
    body: Object = {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "kube-proxy", "namespace": "kube-system", "labels": labels},
        "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod}},
    }
    return [create(_KUBE_PROXY, body)]


# -- NFD ----------------------------------------------------------------------------------------------------


def _uninstall_nfd(site: Site) -> list[Edit]:
    return [delete(path, site.get(path)) for path in (_NFD_GC, _NFD_MASTER, _NFD_WORKER)]


def _second_nfd(site: Site) -> list[Edit]:
    """Worker and master once more, with the same configuration, under the GPU Operator's name."""
    site.get(f"/api/v1/namespaces/{_SECOND}")
    edits = []
    for path in (_NFD_CONFIG, _NFD_WORKER, _NFD_MASTER):
        body = _twin(site.get(path))
        collection = path.replace("/namespaces/node-feature-discovery/", f"/namespaces/{_SECOND}/").rpartition("/")[0]
        edits.append(create(f"{collection}/{body['metadata']['name']}", body))
    return edits


def _twin(body: Object) -> Object:
    """The same object of another release: nothing says that it belongs to the first."""
    twin = copy.deepcopy(bare(body))
    meta = twin["metadata"]
    for note in ("meta.helm.sh/release-name", "meta.helm.sh/release-namespace"):
        (meta.get("annotations") or {}).pop(note, None)
    meta |= {"name": f"{_SECOND}-{meta['name']}", "namespace": _SECOND}
    template = twin.get("spec", {}).get("template")
    if template:
        for labels in (meta["labels"], twin["spec"]["selector"]["matchLabels"], template["metadata"]["labels"]):
            labels["app.kubernetes.io/instance"] = _SECOND
        # The worker's configuration has its twin; the master does without.
        for volume in template["spec"].get("volumes") or ():
            if "configMap" in volume:
                volume["configMap"] |= {"name": f"{_SECOND}-{volume['configMap']['name']}", "optional": True}
    return twin


def _blind_nfd(site: Site) -> list[Edit]:
    before = site.get(_NFD_CONFIG)
    config = yaml.safe_load((before.get("data") or {}).get("nfd-worker.conf") or "") or {}
    pci = config.setdefault("sources", {}).setdefault("pci", {})
    pci["deviceClassWhitelist"] = ["0200", "0207"]
    return [patch(_NFD_CONFIG, {"data": {"nfd-worker.conf": yaml.safe_dump(config)}}, before)]


# -- Network Operator ---------------------------------------------------------------------------------------


def _no_policy(site: Site) -> list[Edit]:
    return [delete(_NIC_POLICY, site.get(_NIC_POLICY))]


def _other_name(site: Site) -> list[Edit]:
    before = site.get(_NIC_POLICY)
    body = bare(before)
    body["metadata"] = {"name": "nic-policy"}
    return [delete(_NIC_POLICY, before), create(f"{_NIC_POLICIES}/nic-policy", body)]


def _other_resource(site: Site) -> list[Edit]:
    before = site.get(_NIC_POLICY)
    section = before["spec"].get("rdmaSharedDevicePlugin") or {}
    try:
        config = json.loads(section["config"])
        config["configList"][0]["resourceName"] = "hca_shared_devices_a"
    except (KeyError, IndexError, TypeError, ValueError):
        raise InputError("rdma-misnamed needs a shared RDMA device plugin in the NicClusterPolicy") from None
    return [patch(_NIC_POLICY, {"spec": {"rdmaSharedDevicePlugin": {"config": json.dumps(config)}}}, before)]


def _crash_plugin(truth: Hardware) -> Hardware:
    trouble = Trouble("crash", "cannot listen on /var/lib/kubelet/plugins_registry: no space left on device")
    return truth.with_trouble(dict.fromkeys(_RDMA_PLUGINS, trouble))


def _lose_nics(truth: Hardware) -> Hardware:
    return dataclasses.replace(truth, nics=(), rdma=False, gdr=False)


def _wait_for_ofed(truth: Hardware) -> Hardware:
    return dataclasses.replace(truth, mofed_wait=True)


FAULTS = (
    Fault(
        name="cni-exclusive",
        title="Cilium removes other CNI configurations",
        breaks="cni-exclusive in cilium-config is true: Multus is moved aside without a word",
        finding="cilium.exclusive",
        scope="cluster",
        edits=_exclusive,
    ),
    Fault(
        name="pod-cidr-overlap",
        title="Cilium's pool swallows the nodes' network",
        breaks="cluster-pool-ipv4-cidr in cilium-config covers the addresses of the nodes",
        finding="cilium.cidr",
        scope="cluster",
        edits=_overlap,
    ),
    Fault(
        name="kube-proxy-beside",
        title="kube-proxy runs beside its replacement",
        breaks="a DaemonSet kube-proxy runs on every node, and Cilium replaces kube-proxy: both write Service rules",
        finding="cilium.kube_proxy",
        scope="cluster",
        edits=_kube_proxy,
    ),
    Fault(
        name="nfd-absent",
        title="NFD is uninstalled",
        breaks="the Deployments and the DaemonSet of NFD are deleted; its labels go, and with them every operand",
        finding="release.installed",
        follows=(
            "nfd.single",
            "nfd.labels",
            "gpu.policy",
            "gpu.operands",
            "gpu.allocatable",
            "gpu.product",
            "network.policy",
            "rdma.allocatable",
            "versions.driver",
            "dra.rules",
            "dra.slices",
            "release.version",
        ),
        scope="cluster",
        edits=_uninstall_nfd,
    ),
    Fault(
        name="nfd-twice",
        title="two NFDs label the same nodes",
        breaks="a second master and worker run in namespace gpu-operator, as its chart brings them by default",
        finding="nfd.single",
        scope="cluster",
        edits=_second_nfd,
    ),
    Fault(
        name="nfd-blind",
        title="NFD does not look at GPUs",
        breaks="the worker's deviceClassWhitelist has no 03xx: no GPU label, and a ClusterPolicy that says ready",
        finding="nfd.labels",
        follows=(
            "gpu.policy",
            "gpu.operands",
            "gpu.allocatable",
            "gpu.product",
            "versions.driver",
            "dra.rules",
            "dra.slices",
        ),
        scope="cluster",
        edits=_blind_nfd,
    ),
    Fault(
        name="nic-policy-absent",
        title="there is no NicClusterPolicy",
        breaks="nic-cluster-policy is deleted; what the Network Operator made for it goes",
        finding="network.policy",
        follows=("rdma.allocatable",),
        scope="cluster",
        needs=("rdma",),
        edits=_no_policy,
    ),
    Fault(
        name="nic-policy-misnamed",
        title="the NicClusterPolicy has another name",
        breaks="the policy is called nic-policy, which the Network Operator ignores",
        finding="network.policy",
        follows=("rdma.allocatable",),
        scope="cluster",
        needs=("rdma",),
        edits=_other_name,
    ),
    Fault(
        name="nic-policy-not-ready",
        title="one node's RDMA device plugin crashes",
        breaks="the plugin's pod on the node is in CrashLoopBackOff: its resource goes, the policy is notReady",
        finding="network.policy",
        follows=("rdma.allocatable",),
        needs=("rdma",),
        truth=_crash_plugin,
    ),
    Fault(
        name="rdma-missing",
        title="one node has lost its RDMA NICs",
        breaks="the NICs are gone from the PCI bus: label pci-15b3.present goes, and the rdma/* resource with it",
        finding="rdma.allocatable",
        needs=("rdma",),
        truth=_lose_nics,
    ),
    Fault(
        name="rdma-misnamed",
        title="the RDMA resource has another name",
        breaks="resourceName in the NicClusterPolicy is hca_shared_devices_a, which inventory does not promise",
        finding="rdma.allocatable",
        scope="cluster",
        needs=("rdma",),
        edits=_other_resource,
    ),
    Fault(
        name="mofed-wait",
        title="one node waits for OFED for ever",
        breaks="label network.nvidia.com/operator.mofed.wait is stuck at true: the RDMA device plugin leaves the node",
        finding="rdma.wait",
        follows=("rdma.allocatable",),
        needs=("rdma",),
        truth=_wait_for_ofed,
    ),
)
