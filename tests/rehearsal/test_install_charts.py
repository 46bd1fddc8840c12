"""Charts from a repository, by the real helm: a real HTTP server on loopback."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from gpuready.charts_values import bill, inventory
from gpuready.charts_values.bill import Release
from gpuready.charts_values.errors import RefusedError, ToolError
from gpuready.charts_values.inventory import Cluster
from gpuready.deploys import charts
from gpuready.deploys.helm import Helm
from gpuready.rehearsal import engine


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder without a word."""

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def helm(binaries: engine.Binaries) -> Helm:
    """The engine's helm; no cluster is needed to pull a chart."""
    return Helm(Path(binaries["helm"]), None, None)


@pytest.fixture(scope="module")
def repository(helm: Helm, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The URL of a repository with one chart, and the digest of that chart."""
    folder = tmp_path_factory.mktemp("repository")
    for command in (["package", root / "rehearsal" / "charts" / "cilium", "-d", folder], ["repo", "index", folder]):
        subprocess.run([helm.binary, *command], check=True, capture_output=True, timeout=60)
    (archive,) = folder.glob("*.tgz")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", "sha256:" + hashlib.sha256(archive.read_bytes()).hexdigest()
        server.shutdown()
        thread.join()


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """A rehearsal entry that names no folder of charts."""
    monkeypatch.delenv(charts.VARIABLE, raising=False)
    group = {"nodes": ["gpu-0"], "gpu_product": "L40S", "resources": {"nvidia.com/gpu": 4}}
    entry = {
        "rehearsal": True,
        "pod_cidr": "10.244.0.0/16",
        "service_cidr": "10.96.0.0/16",
        "driver_version": "580.173.02",
        "groups": {"g": group},
    }
    return inventory.parse("rehearsal", entry)


def cilium(repository: tuple[str, str], **changes: str | None) -> Release:
    pinned = next(one for one in bill.load() if one.name == "cilium")
    return dataclasses.replace(pinned, **{"repository": repository[0], "digest": repository[1], **changes})


def test_a_chart_is_pulled_and_verified(
    helm: Helm, repository: tuple[str, str], cluster: Cluster, tmp_path: Path
) -> None:
    found = charts.obtain(cilium(repository), cluster, helm, tmp_path)
    assert found.path.name == "cilium-1.19.6.tgz"
    assert found.path.is_relative_to(tmp_path)


def test_another_digest_is_refused(helm: Helm, repository: tuple[str, str], cluster: Cluster, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=r"charts\.yaml records sha256:00"):
        charts.obtain(cilium(repository, digest="sha256:" + "0" * 64), cluster, helm, tmp_path)


def test_a_version_that_the_repository_has_not(
    helm: Helm, repository: tuple[str, str], cluster: Cluster, tmp_path: Path
) -> None:
    with pytest.raises(ToolError, match=r"chart cilium 9\.9\.9 cannot be had from http://127.* not found") as failed:
        charts.obtain(cilium(repository, version="9.9.9"), cluster, helm, tmp_path)
    assert "\n" not in str(failed.value)
