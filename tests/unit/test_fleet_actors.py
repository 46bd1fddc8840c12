"""Rules of the actors that need no cluster."""

from __future__ import annotations

from typing import Any

import pytest
from gpuready.charts_values.kube import Object
from gpuready.rehearsal.actors import dra
from gpuready.rehearsal.actors.dra import DOMAINS, GPUS, Dra
from gpuready.rehearsal.actors.records import Node, Pod, progress_of
from gpuready.rehearsal.actors.scene import View, image_name, image_tag
from gpuready.rehearsal.actors.wishes import NodeWish
from gpuready.rehearsal.fleet import hardware, load_profile, nodes

PROFILE = load_profile("h100-ib")


def node(**labels: str) -> Node:
    body = nodes(PROFILE, 1, 10250)[1]
    body["metadata"] |= {"uid": "u", "resourceVersion": "1"}
    body["metadata"]["labels"] |= labels
    return Node.of(body)


def pod(status: Object, image: str = "image:1") -> Pod:
    meta = {"name": "p", "namespace": "n", "uid": "p", "resourceVersion": "1"}
    return Pod.of({"metadata": meta, "spec": {"containers": [{"name": "c", "image": image}]}, "status": status})


def running(ready: str = "True") -> Object:
    conditions = [{"type": "Ready", "status": ready}]
    return {"phase": "Running", "conditions": conditions, "containerStatuses": [{"ready": True, "state": {}}]}


def with_driver(version: str) -> View:
    driver = pod(running(), f"nvcr.io/nvidia/driver:{version}-ubuntu24.04")
    pods = {"gpu.driver": driver, dra.ROLE: pod({})}
    return View(node(), hardware(PROFILE, "gpu-0000"), pods)


@pytest.mark.parametrize(
    ("version", "drivers", "progress"),
    [
        ("580.173.02", (GPUS, DOMAINS), "ready"),
        ("565.57.01", (GPUS,), "ready"),
        ("550.163.01", (GPUS,), "crash"),
        ("570.158.01", (DOMAINS,), "ready"),
        ("570.133.20", (DOMAINS,), "crash"),
    ],
)
def test_an_old_driver_ends_the_dra_plugin(version: str, drivers: tuple[str, ...], progress: str) -> None:
    wish = dra.progress(Dra("/run/nvidia/driver", drivers), dra.ROLE, with_driver(version))
    assert wish is not None
    assert wish.progress == progress


@pytest.mark.parametrize("root", ["/", "", "/run/nvidia", "/home/kubernetes/bin/nvidia"])
def test_the_dra_plugin_looks_for_the_driver_under_its_root_alone(root: str) -> None:
    wish = dra.progress(Dra(root, (GPUS,)), dra.ROLE, with_driver("580.173.02"))
    assert wish is not None
    assert wish.waits


@pytest.mark.parametrize(
    ("status", "progress"),
    [
        ({}, "fresh"),
        ({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "True"}]}, "fresh"),
        (running(), "ready"),
        (running("False"), "marked"),
        ({"phase": "Running", "containerStatuses": [{"ready": False, "state": {}}]}, "running"),
        ({"phase": "Succeeded"}, "Succeeded"),
        (
            {"phase": "Running", "containerStatuses": [{"state": {"waiting": {"reason": "CrashLoopBackOff"}}}]},
            "crash",
        ),
        (
            {"phase": "Pending", "initContainerStatuses": [{"state": {"terminated": {}}}, {"state": {"running": {}}}]},
            "init:1",
        ),
    ],
)
def test_a_status_in_one_word(status: Object, progress: str) -> None:
    assert progress_of(status) == progress


def test_what_nobody_claims_is_left_alone() -> None:
    wish = NodeWish()
    wish.claim_labels("nvidia.com/gpu.")
    wish.labels["nvidia.com/gpu.count"] = "8"
    known = node(**{"nvidia.com/gpu.count": "7", "nvidia.com/gpu.product": "old", "mine": "1"})
    patch: Any = wish.patch(known)
    assert patch == {"metadata": {"labels": {"nvidia.com/gpu.count": "8", "nvidia.com/gpu.product": None}}}
    assert wish.status_patch(known) is None


def test_one_taint_goes_and_the_others_stay_as_they_are() -> None:
    """To the API server the taints are one value: a patch that names one of them replaces all."""
    soft = {"key": "agent-not-ready", "effect": "NoSchedule"}
    timed = {"key": "maintenance", "effect": "NoExecute", "timeAdded": "2026-11-01T00:00:00Z"}
    bare = node()
    bare.taints = (soft, timed)
    assert NodeWish(untaint={"agent-not-ready"}).patch(bare) == {
        "metadata": {"resourceVersion": "1"},
        "spec": {"taints": [timed]},
    }
    assert NodeWish(untaint={"agent-not-ready"}).patch(node()) is None


def test_a_wish_that_is_fulfilled_asks_for_nothing() -> None:
    wish = NodeWish()
    wish.claim_labels("nvidia.com/")
    wish.labels["nvidia.com/gpu.count"] = "8"
    assert wish.patch(node(**{"nvidia.com/gpu.count": "8"})) is None


@pytest.mark.parametrize(
    ("image", "name", "tag"),
    [
        ("nvcr.io/nvidia/gpu-operator:v26.7.0", "gpu-operator", "v26.7.0"),
        ("mirror:5000/gpu-operator", "gpu-operator", ""),
        ("registry.k8s.io/nfd/node-feature-discovery:v0.19.0@sha256:ab", "node-feature-discovery", "v0.19.0"),
    ],
)
def test_parts_of_an_image(image: str, name: str, tag: str) -> None:
    assert (image_name(image), image_tag(image)) == (name, tag)
