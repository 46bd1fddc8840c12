"""Test machines on paper: names, addresses, what a host lacks, and the registry's answers."""

from __future__ import annotations

import json
import os
from ipaddress import ip_network
from pathlib import Path

import pytest
from gpuready.rehearsal.machines import host, plan, registry
from gpuready.rehearsal.machines.plan import Plan


def test_names_follow_from_the_folder_and_fit_the_kernel() -> None:
    one, other = Path("/a"), Path("/b")
    assert plan.link(one) != plan.link(other) and plan.group(one) != plan.group(other)
    assert plan.link(one) == plan.link(Path("/a"))
    assert len(plan.link(one)) <= 15


def test_addresses_differ_and_pods_end_the_range() -> None:
    drawn = Plan(Path("/a"), "198.18.7.0/24", "10.64.0.0/12", 3)
    addresses = [drawn.gateway, drawn.host, *(one.address for one in drawn.machines)]
    assert len(set(addresses)) == 5
    assert [one.pods for one in drawn.machines] == ["10.79.255.0/24", "10.79.254.0/24", "10.79.253.0/24"]
    assert all(ip_network(one.pods).subnet_of(ip_network("10.64.0.0/12")) for one in drawn.machines)


def test_a_record_gives_the_plan_back() -> None:
    drawn = Plan(Path("/a"), "198.18.7.0/24", "10.64.0.0/12", 2)
    assert Plan.of(Path("/a"), json.loads(json.dumps(drawn.record()))) == drawn


def test_a_network_in_use_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_routes", list)
    first = plan.draw(Path("/a"), "10.64.0.0/12", 1)
    monkeypatch.setattr(plan, "_routes", lambda: [ip_network(first.network)])
    second = plan.draw(Path("/a"), "10.64.0.0/12", 1)
    assert not ip_network(first.network).overlaps(ip_network(second.network))


def test_two_rehearsals_that_start_together_have_two_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    # Neither has an interface yet, and both begin to look at the same place.
    monkeypatch.setattr(plan, "_routes", list)
    drawn = [plan.draw(Path("/b"), "10.64.0.0/12", 1).network for _ in range(2)]
    assert len(set(drawn)) == 2


def test_what_the_host_lacks_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", str(tmp_path))
    said = host.lacking(2, ("mmdebstrap", "mmdebstrap"))
    assert said.startswith("systemd-nspawn, ip, nsenter, mount, mmdebstrap are not on this host; apt install ")
    assert said.endswith("systemd-container iproute2 util-linux mount mmdebstrap")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert host.lacking(2) == "machines need root; run it with sudo"


def test_too_few_inotify_instances_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    limit = tmp_path / "max_user_instances"
    limit.write_text("1\n")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(host, "_TOOLS", {})
    monkeypatch.setattr(host, "hierarchies", lambda: [tmp_path])
    monkeypatch.setattr(host, "_INSTANCES", limit)
    assert host.lacking(2).endswith("2 machines need 40; sysctl -w fs.inotify.max_user_instances=1024")
    limit.write_text("100000\n")
    assert host.lacking(2) == ""


def test_the_registry_has_one_image_under_every_name() -> None:
    image = registry.Image(b"a program", "amd64")
    for name in ("library/busybox/manifests/1.36", "nvidia/gpu-operator/manifests/v26.7.0"):
        found = image.answer(f"/v2/{name}")
        assert found and found[0].endswith("manifest.v1+json")
        manifest = json.loads(found[1])
        for blob in (manifest["config"], *manifest["layers"]):
            there = image.answer(f"/v2/any/blobs/{blob['digest']}")
            assert there and len(there[1]) == blob["size"]
    assert image.answer(f"/v2/any/manifests/{image.manifest}")
    # What is asked for by its digest is another image.
    assert image.answer("/v2/any/manifests/sha256:0") is None
    assert image.answer("/v2/any/blobs/sha256:0") is None
    assert image.answer("/etc/passwd") is None
