"""The bill of materials and the version rules."""

from __future__ import annotations

import re

import pytest
from gpuready.charts_values import bill, inventory, values
from gpuready.charts_values.errors import InputError
from gpuready.charts_values.versions import dra_shortfalls, parts, satisfies, within
from gpuready.deploys import observed


def test_every_release_says_where_it_is_from() -> None:
    found = bill.load()
    assert [one.name for one in found] == [
        "cilium",
        "node-feature-discovery",
        "network-operator",
        "gpu-operator",
        "dra-driver-nvidia-gpu",
    ]
    for one in found:
        assert one.repository.startswith(("https://", "oci://"))
        assert one.source
        assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", one.seen_on)
        assert one.digest is None or re.fullmatch(r"sha256:[0-9a-f]{64}", one.digest)
        assert one.deadline_s >= 60


@pytest.mark.parametrize(
    ("server", "name", "problem"),
    [
        ("v1.35.4", "network-operator", None),
        ("v1.31.0", "network-operator", None),
        ("v1.36.2", "network-operator", "Network Operator 26.4.1 is documented for Kubernetes 1.31 to 1.35"),
        ("v1.30.9", "network-operator", "is documented for Kubernetes 1.31 to 1.35, the server has v1.30.9"),
        ("v1.31.9", "dra-driver-nvidia-gpu", "DRA driver 0.4.0 takes Kubernetes >=1.32.0-0, the server has v1.31.9"),
        ("v1.37.1", "gpu-operator", None),
        ("v1.20.0", "node-feature-discovery", None),
    ],
)
def test_kubernetes_range_of_a_release(server: str, name: str, problem: str | None) -> None:
    release = next(one for one in bill.load() if one.name == name)
    found = bill.unsupported(release, server)
    assert (found is None) == (problem is None)
    assert problem is None or problem in str(found)


@pytest.mark.parametrize(
    ("version", "constraint", "meets"),
    [
        ("v1.35.4", ">= 1.21.0-0", True),
        ("v1.35.4", ">=1.36", False),
        ("v1.35.4", ">=1.32.0-0 <1.36.0-0", True),
        ("v1.36.0", ">=1.32.0-0, <1.36.0-0", False),
        ("v1.36.0", "<1.30 || >=1.36", True),
        ("v1.35.0", "<1.30 || >=1.36", False),
        ("v1.33.5-gke.100", ">=1.32.0-0", True),
        ("v1.33.5-gke.100", ">=1.32.0", False),
        ("v1.35.4+k3s1", ">=1.35.4", True),
        ("v1.35.4", "!= 1.35.4", False),
        ("v1.35.4", "1.35.4", True),
        ("v1.35.4", "> 1.35.4", False),
        ("v1.35.4", "<= 1.35.4", True),
    ],
)
def test_kube_version_is_read_as_helm_reads_it(version: str, constraint: str, meets: bool) -> None:
    assert satisfies(version, constraint) is meets


@pytest.mark.parametrize("constraint", ["~1.30", "^1.30", "1.x", ">=1.30 <abc", ""])
def test_what_it_cannot_read_it_does_not_guess(constraint: str) -> None:
    with pytest.raises(InputError, match="no comparison"):
        satisfies("v1.35.4", constraint)


def test_a_server_without_a_version_is_an_error() -> None:
    with pytest.raises(InputError, match="calls itself 'unknown'"):
        satisfies("unknown", ">=1.30")


def test_within_takes_both_ends() -> None:
    assert [within(f"v1.{minor}.9", "1.31", "1.35") for minor in (30, 31, 35, 36)] == [False, True, True, False]
    assert parts("v1.35.4+k3s1") == (1, 35, 4)
    assert parts("?") == ()


@pytest.mark.parametrize(
    ("mode", "kubernetes", "driver", "missed"),
    [
        ("gpus", "v1.35.4", "580.173.02", []),
        ("gpus", "v1.31.9", "580.173.02", [("1.32", True)]),
        ("gpus", "v1.34.1", "580.173.02", [("1.34.2", False)]),
        ("gpus", "v1.35.4", "550.54", [("565", True)]),
        ("gpus", "v1.35.4", "570.124.06", [("580", False)]),
        ("compute-domains", "v1.35.4", "570.124.06", [("570.158.01", True)]),
        ("compute-domains", "v1.35.4", "570.158.01", [("580", False)]),
        ("compute-domains", "v1.33.0", "560.1", [("1.34.2", False), ("565", True)]),
    ],
)
def test_dra_bounds(mode: str, kubernetes: str, driver: str, missed: list[tuple[str, bool]]) -> None:
    assert [(bound.below, bound.refuse) for bound in dra_shortfalls(mode, kubernetes, driver)] == missed


# -- releases of others, and of one's own -------------------------------------------------------------------------

GROUPS = {"g": {"nodes": ["gpu-0"], "gpu_product": "L40S", "resources": {"nvidia.com/gpu": 4}}}


def adopting(*adopt: str) -> list[bill.Release]:
    entry = {"pod_cidr": "10.244.0.0/16", "service_cidr": "10.96.0.0/16", "driver_version": "580", "groups": GROUPS}
    return bill.releases(inventory.parse("lab", {**entry, "adopt": list(adopt)}))


def test_an_adopted_release_is_looked_for_where_it_is() -> None:
    found = {one.key: one for one in adopting("cilium", "gpu-operator=gpus@nvidia:v25.3.0")}
    assert [one.adopted for one in found.values()] == [True, False, True]
    assert (found["cilium"].name, found["cilium"].version) == ("cilium", "1.19.6")
    gpus = found["gpu-operator"]
    assert (gpus.name, gpus.namespace, gpus.version, gpus.chart) == ("gpus", "nvidia", "v25.3.0", "gpu-operator")
    # What is recorded of the pinned chart does not hold for another.
    assert (gpus.digest, gpus.chart_range, gpus.documented) == (None, None, None)


@pytest.mark.parametrize("text", ["istio", "cilium=net", "cilium@net", "=a@b", "cilium:"])
def test_what_cannot_be_adopted(text: str) -> None:
    with pytest.raises(InputError, match=r"`adopt` holds .*; it takes cilium, .*, nic-cluster-policy, each as NAME"):
        adopting(text)


def test_a_release_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = bill.packaged("charts.yaml")
    row = {"version": "1.2", "repository": "https://e.org", "namespace": "n", "source": "s", "seen_on": "2026-11-21"}
    rows["releases"]["exporter"] = row
    packaged = bill.packaged
    monkeypatch.setattr(bill, "packaged", lambda name: rows if name == "charts.yaml" else packaged(name))
    bill.load.cache_clear()
    try:
        *_, last = adopting()
        assert (last.key, last.title, last.chart, last.privileged) == ("exporter", "exporter", "exporter", False)
        assert (last.digest, last.deadline_s, bill.unsupported(last, "v1.35.4")) == (None, 600, None)
        entry = {"pod_cidr": "10.244.0.0/16", "service_cidr": "10.96.0.0/16", "driver_version": "580", "groups": GROUPS}
        assert values.values(last, inventory.parse("lab", entry)) == {}
        assert observed.goal(last).title == "exporter"
        del row["namespace"]
        bill.load.cache_clear()
        with pytest.raises(InputError, match="release 'exporter' has no 'namespace'"):
            bill.load()
    finally:
        bill.load.cache_clear()
