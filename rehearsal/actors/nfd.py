"""Node Feature Discovery: the labels that workers find and the master writes.

What a worker labels follows from its configuration (PCI classes and label fields) and from the
NodeFeatureRules; a class that is not listed yields no label.
"""

from __future__ import annotations

from dataclasses import dataclass

import yaml
from gpuready.charts_values.kube import Object

from ..fleet import CONTROL_PLANE
from ..profile import Profile
from .cache import Cache
from .scene import View, available, containers, image_name, roles
from .wishes import NodeWish

PREFIX = "feature.node.kubernetes.io/"
# NFD's own defaults, where the configuration says nothing.
_CLASSES = ("03", "0b40", "12")
_FIELDS = ("class", "vendor")


@dataclass(frozen=True)
class Rule:
    """One rule of a NodeFeatureRule that is about PCI devices: labels, and the vendors and classes it wants."""

    labels: tuple[tuple[str, str], ...]
    vendors: frozenset[str]
    classes: frozenset[str]


@dataclass(frozen=True)
class Nfd:
    """What the installed objects say. ``master`` tells whether anybody writes labels now."""

    master: bool
    classes: tuple[str, ...] = _CLASSES
    fields: tuple[str, ...] = _FIELDS
    rules: tuple[Rule, ...] = ()


def read(cache: Cache) -> Nfd | None:
    """None where no worker DaemonSet is installed."""
    workers = [one for one in cache.objects("daemonsets") if "nfd-worker" in roles([one]).values()]
    if not workers:
        return None
    pci = _pci(cache, workers[0])
    rules = tuple(rule for one in cache.objects("nodefeaturerules") for rule in _rules(one))
    return Nfd(
        master=any(_is_master(one) and available(one) for one in cache.objects("deployments")),
        classes=tuple(str(one) for one in pci.get("deviceClassWhitelist") or _CLASSES),
        fields=tuple(str(one) for one in pci.get("deviceLabelFields") or _FIELDS),
        rules=rules,
    )


def node(nfd: Nfd | None, view: View, wish: NodeWish, profile: Profile) -> None:
    """The labels of a node whose worker has reported; they stay while the DaemonSet does."""
    if nfd is None:
        # The chart's post-delete job takes the labels back.
        wish.claim_labels(PREFIX)
        return
    if not nfd.master:
        return
    seen = any(label.startswith(PREFIX) for label in view.node.labels)
    if view.ready("nfd-worker") or seen:
        wish.claim_labels(PREFIX)
        wish.labels |= _labels(nfd, view, profile)


def _labels(nfd: Nfd, view: View, profile: Profile) -> dict[str, str]:
    system, machine = profile.os, profile.machine
    version = system.kernel.partition("-")[0].split(".")
    release = system.version.split(".")
    found = {
        "kernel-version.full": system.kernel,
        "kernel-version.major": version[0],
        "kernel-version.minor": version[1],
        "kernel-version.revision": version[2],
        "system-os_release.ID": system.id,
        "system-os_release.VERSION_ID": system.version,
        "system-os_release.VERSION_ID.major": release[0],
        "system-os_release.VERSION_ID.minor": release[-1],
        "cpu-model.vendor_id": machine.cpu_vendor,
        "cpu-hardware_multithreading": str(machine.arch == "amd64").lower(),
    }
    if machine.cpu_family is not None and machine.cpu_model is not None:
        found |= {"cpu-model.family": str(machine.cpu_family), "cpu-model.id": str(machine.cpu_model)}
    if any(gpu.numa for gpu in view.hardware.gpus):
        found["memory-numa"] = "true"
    devices = _devices(view, profile)
    for pci_class, vendor, device in devices:
        if pci_class.startswith(nfd.classes):
            parts = {"class": pci_class, "vendor": vendor, "device": device}
            found[f"pci-{'_'.join(parts[field] for field in nfd.fields if field in parts)}.present"] = "true"
    labels = {PREFIX + key: value for key, value in found.items()}
    for rule in nfd.rules:
        if any(vendor in rule.vendors and pci_class in rule.classes for pci_class, vendor, _ in devices):
            labels |= {key if "/" in key else PREFIX + key: value for key, value in rule.labels}
    return labels


def _devices(view: View, profile: Profile) -> list[tuple[str, str, str]]:
    """The PCI devices of a node as (class, vendor, device)."""
    found = [(profile.management.pci_class, profile.management.vendor, "0000")]
    if view.node.name == CONTROL_PLANE:
        return found
    if view.hardware.gpus:
        found.append((profile.gpus.pci_class, "10de", "0000"))
    if view.hardware.nics and profile.nics:
        found.append((profile.nics.pci_class, profile.nics.vendor, profile.nics.device))
    return found


def _pci(cache: Cache, worker: Object) -> Object:
    """The section sources.pci of the worker's configuration; a broken one is no configuration."""
    namespace = worker["metadata"]["namespace"]
    for volume in worker["spec"]["template"]["spec"].get("volumes") or ():
        name = volume.get("configMap", {}).get("name")
        config = cache.object("configmaps", name, namespace) if name else None
        text = ((config or {}).get("data") or {}).get("nfd-worker.conf")
        if text is None:
            continue
        try:
            data = yaml.safe_load(text)
        except yaml.YAMLError:
            return {}
        sources = data.get("sources") if isinstance(data, dict) else None
        pci = sources.get("pci") if isinstance(sources, dict) else None
        return pci if isinstance(pci, dict) else {}
    return {}


def _rules(body: Object) -> list[Rule]:
    found = []
    for rule in body.get("spec", {}).get("rules") or ():
        for feature in rule.get("matchFeatures") or ():
            if feature.get("feature") != "pci.device":
                continue
            match = feature.get("matchExpressions") or {}
            found.append(
                Rule(
                    tuple(sorted((rule.get("labels") or {}).items())),
                    frozenset(match.get("vendor", {}).get("value") or ()),
                    frozenset(match.get("class", {}).get("value") or ()),
                )
            )
    return found


def _is_master(deployment: Object) -> bool:
    labels = deployment["spec"]["template"]["metadata"].get("labels") or {}
    image = any(image_name(one.get("image", "")) == "node-feature-discovery" for one in containers(deployment))
    named = "feature-discovery" in labels.get("app.kubernetes.io/name", "")
    return labels.get("role") == "master" and (image or named)
