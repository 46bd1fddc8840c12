"""Helm and the API server in trouble: one line and an exit code; nothing is changed before the first write."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from gpuready.charts_values import bill, inventory
from gpuready.charts_values.errors import InputError, ToolError
from gpuready.charts_values.inventory import Cluster
from gpuready.charts_values.kube import Api
from gpuready.deploys import charts
from gpuready.deploys.helm import Helm
from gpuready.rehearsal import engine
from gpuready.rehearsal.state import State

from .commands import BIN, ROOT, environment
from .installer import footprint, own_values, pyinfra
from .installer import inventory as entry
from .test_install_charts import Quiet
from .test_install_refusals import refused

# A place at which nobody listens, for every way out of this machine.
NOWHERE = dict.fromkeys(("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"), "http://127.0.0.1:1")
NOWHERE |= dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost")
NFD = next(one for one in bill.load() if one.key == "node-feature-discovery")


# -- before the first write ---------------------------------------------------------------------------------------


def test_the_repository_is_unreachable(rehearsal: State, tmp_path: Path) -> None:
    api = Api.connect(rehearsal.kubeconfig)
    before = footprint(api)
    # The entry's folder of charts is taken out, so that they are downloaded.
    done = pyinfra(rehearsal.folder, file=entry(tmp_path, charts=None), TMPDIR=str(tmp_path), **NOWHERE)
    refused(done, "Cilium: chart cilium 1.19.6 cannot be had from https://helm.cilium.io: helm pull: ")
    assert "on a closed network name a folder of charts in $GPUREADY_CHARTS" in done.stderr
    assert footprint(api) == before
    assert list(tmp_path.glob("gpuready-charts-*")) == []


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        ("broken archive", "node-feature-discovery-0.19.0.tgz is no Helm chart"),
        ("no chart", "has neither node-feature-discovery/ nor node-feature-discovery-0.19.0.tgz; put the chart there"),
        ("needs newer Kubernetes", "takes Kubernetes >=1.99.0-0, the server has v"),
    ],
)
def test_the_folder_of_charts(rehearsal: State, tmp_path: Path, root: Path, spoil: str, line: str) -> None:
    api = Api.connect(rehearsal.kubeconfig)
    before = footprint(api)
    folder = tmp_path / "charts"
    shutil.copytree(root / "rehearsal" / "charts", folder)
    mine = folder / NFD.chart
    if spoil == "needs newer Kubernetes":
        with (mine / "Chart.yaml").open("a") as file:
            file.write('\nkubeVersion: ">=1.99.0-0"\n')
    else:
        shutil.rmtree(mine)
    if spoil == "broken archive":
        (folder / f"{NFD.chart}-{NFD.version}.tgz").write_bytes(b"\x1f\x8b torn")
    refused(pyinfra(rehearsal.folder, GPUREADY_CHARTS=str(folder)), line)
    assert footprint(api) == before


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("echo v3.2.0", "is helm 3.2.0; gpuready needs 3.8.0 or newer"),
        ("echo oops", "calls itself 'oops', which is no full version"),
        ("exit 3", "helm version: exit 3"),
        (None, "helm is not executable; make it so: chmod +x"),
    ],
)
def test_a_helm_that_does_not_serve(rehearsal: State, tmp_path: Path, body: str | None, line: str) -> None:
    binary = tmp_path / "helm"
    binary.write_text(f"#!/bin/sh\n{body}\n")
    binary.chmod(0o755 if body else 0o644)
    file = entry(tmp_path, state_dir=str(tmp_path))
    refused(pyinfra(rehearsal.folder, file=file, GPUREADY_BIN=str(tmp_path), PATH="/usr/bin:/bin"), line)


def test_a_helm_of_another_machine(rehearsal: State, tmp_path: Path) -> None:
    binary = tmp_path / "helm"
    binary.write_bytes(b"\x7fELF nothing of this machine")
    binary.chmod(0o755)
    file = entry(tmp_path, state_dir=str(tmp_path))
    done = pyinfra(rehearsal.folder, file=file, GPUREADY_BIN=str(tmp_path), PATH="/usr/bin:/bin")
    refused(done, f"{binary} cannot be run: Exec format error")


# -- the download -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def helm(binaries: engine.Binaries) -> Helm:
    return Helm(Path(binaries["helm"]), None, None)


@pytest.fixture(scope="module")
def repository(helm: Helm, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A served folder with an index and one chart; its file `url` holds the address."""
    folder = tmp_path_factory.mktemp("repository")
    source = folder / "source"
    shutil.copytree(root / "rehearsal" / "charts" / NFD.chart, source)
    # Incompressible, so that it does not fit where there is little room.
    (source / "noise").write_bytes(os.urandom(900_000))
    for command in (["package", source, "-d", folder], ["repo", "index", folder]):
        subprocess.run([helm.binary, *command], check=True, capture_output=True, timeout=60)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        (folder / "url").write_text(f"http://127.0.0.1:{server.server_port}")
        yield folder
        server.shutdown()
        thread.join()


@pytest.fixture
def downloading(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """A rehearsal entry that names no folder of charts."""
    monkeypatch.delenv(charts.VARIABLE, raising=False)
    group = {"nodes": ["gpu-0"], "gpu_product": "L40S", "resources": {"nvidia.com/gpu": 4}}
    networks = {"pod_cidr": "10.244.0.0/16", "service_cidr": "10.96.0.0/16"}
    return inventory.parse(
        "rehearsal", {"rehearsal": True, **networks, "driver_version": "580", "groups": {"g": group}}
    )


def from_repository(served: Path, **changes: str | None) -> bill.Release:
    return dataclasses.replace(NFD, **{"repository": (served / "url").read_text(), **changes})  # type: ignore[arg-type]


def test_a_repository_without_an_index(helm: Helm, repository: Path, downloading: Cluster, tmp_path: Path) -> None:
    release = from_repository(repository, repository=(repository / "url").read_text() + "/nothing")
    with pytest.raises(ToolError, match=r"cannot be had from http://127.*/nothing: .*404") as failed:
        charts.obtain(release, downloading, helm, tmp_path)
    assert "\n" not in str(failed.value)


def test_an_archive_that_broke_off(helm: Helm, repository: Path, downloading: Cluster, tmp_path: Path) -> None:
    (archive,) = repository.glob("*.tgz")
    whole = archive.read_bytes()
    digest = "sha256:" + hashlib.sha256(whole).hexdigest()
    archive.write_bytes(whole[: len(whole) // 2])
    try:
        with pytest.raises((InputError, ToolError)) as failed:
            charts.obtain(from_repository(repository, digest=None), downloading, helm, tmp_path)
    finally:
        archive.write_bytes(whole)
    assert "\n" not in str(failed.value)
    assert charts.obtain(from_repository(repository, digest=digest), downloading, helm, tmp_path / "again").stand_in


def test_no_room_for_the_download(helm: Helm, repository: Path, downloading: Cluster, tmp_path: Path) -> None:
    """On a file system of 256 KiB, which only a namespace of its own may mount."""
    small = tmp_path / "small"
    small.mkdir()
    script = f"mount -t tmpfs -o size=256k none {small} && exec {helm.binary} pull {NFD.chart} --version {NFD.version} "
    script += f"--repo {(repository / 'url').read_text()} --destination {small}"
    wrapped = tmp_path / "bin" / "helm"
    wrapped.parent.mkdir()
    wrapped.write_text(
        f'#!/bin/sh\nif [ "$1" = version ]; then exec {helm.binary} "$@"; fi\nexec unshare -rm sh -c {script!r}\n'
    )
    wrapped.chmod(0o755)
    if subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", small], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a small file system")
    with pytest.raises(ToolError, match="no space left on device") as failed:
        charts.obtain(from_repository(repository), downloading, Helm(wrapped, None, None), tmp_path)
    assert "\n" not in str(failed.value)


def test_no_folder_for_downloads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(ToolError, match=r"no folder for downloaded charts: .*gone.*; set \$TMPDIR to another"):
        charts.download_folder()


def test_folders_of_killed_runs_are_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dead, living = tmp_path / "gpuready-charts-4194305-x", tmp_path / f"gpuready-charts-{os.getpid()}-x"
    dead.mkdir()
    living.mkdir()
    made = charts.download_folder()
    assert {made, living} == set(tmp_path.iterdir())


# -- in the middle ------------------------------------------------------------------------------------------------


def test_helm_runs_out_of_time_or_permission(installed: State, tmp_path: Path) -> None:
    """The release before it is made, the ones after it are not, and the next run says what is left to do."""
    file = entry(tmp_path, state_dir=str(tmp_path))
    own_values(file, "node-feature-discovery", "gc:\n  enable: false\n")
    real = installed.bin / "helm"
    for complaint, line in (
        ("UPGRADE FAILED: context deadline exceeded", "helm upgrade: UPGRADE FAILED: context deadline exceeded"),
        (
            'secrets is forbidden: User "ci" cannot create resource "secrets" in API group ""',
            'helm upgrade: secrets is forbidden: User "ci" cannot create',
        ),
    ):
        binary = tmp_path / "helm"
        binary.write_text(
            f'#!/bin/sh\nif [ "$1" = upgrade ]; then echo \'Error: {complaint}\' >&2; exit 1; fi\nexec {real} "$@"\n'
        )
        binary.chmod(0o755)
        done = pyinfra(installed.folder, file=file, GPUREADY_BIN=str(tmp_path))
        assert done.returncode == 1, done.stderr
        assert "Traceback" not in done.stderr
        assert [one for one in done.stderr.splitlines() if line in one] != [], done.stderr
        assert "Starting operation: GPU Operator" not in done.stderr
    shown = pyinfra(installed.folder, "--dry", file=file, PYINFRA_YES="", GPUREADY_BIN=str(installed.bin)).stderr
    assert "NFD 0.19.0: gc.enable: (none) -> false" in shown


def test_the_api_goes_away_in_the_middle(installed: State, tmp_path: Path) -> None:
    """Everything answers until helm is to write; then nothing does."""
    file = entry(tmp_path, state_dir=str(tmp_path))
    own_values(file, "node-feature-discovery", "gc:\n  enable: false\n")
    gone = tmp_path / "kubeconfig"
    gone.write_text(installed.kubeconfig.read_text().replace(installed.server, "https://127.0.0.1:1"))
    binary = tmp_path / "helm"
    binary.write_text(
        f'#!/bin/sh\nif [ "$1" = upgrade ]; then\n'
        f'  exec {installed.bin / "helm"} "$@" --kubeconfig {gone}\nfi\nexec {installed.bin / "helm"} "$@"\n'
    )
    binary.chmod(0o755)
    done = subprocess.run(
        [BIN / "pyinfra", "-y", str(file), "deploys/gpu.py"],
        cwd=ROOT,
        env=environment(installed.folder, GPUREADY_BIN=str(tmp_path)),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    assert "127.0.0.1:1" in done.stderr
    assert "Traceback" not in done.stderr
