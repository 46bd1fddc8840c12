"""Where a chart comes from, and whether it is the one that charts.yaml pins."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from gpuready.charts_values.bill import Release
from gpuready.charts_values.errors import InputError, RefusedError, ToolError
from gpuready.charts_values.inventory import Cluster

from .helm import Helm

STAND_IN = "gpuready.io/stand-in"
VARIABLE = "GPUREADY_CHARTS"
_DOWNLOADS = "gpuready-charts-"


@dataclass(frozen=True)
class Chart:
    """A chart on this machine that has the pinned name and version."""

    path: Path
    kube_range: str | None
    stand_in: bool


def folder(cluster: Cluster) -> Path | None:
    """The folder of charts: $GPUREADY_CHARTS, else the entry's `charts`; None means the upstream repositories.

    Raises InputError where it does not exist.
    """
    if given := os.environ.get(VARIABLE):
        where, said = Path(given), f"${VARIABLE}"
    elif cluster.charts:
        where, said = (cluster.folder or Path()) / cluster.charts, "`charts` in inventory"
    else:
        return None
    if not where.is_dir():
        raise InputError(f"{said} names {where}, which is no folder of charts")
    return where.resolve()


def download_folder() -> Path:
    """A new folder for charts; raises ToolError. Those of runs that were killed are removed."""
    try:
        for old in Path(tempfile.gettempdir()).glob(f"{_DOWNLOADS}*-*"):
            pid = old.name.removeprefix(_DOWNLOADS).partition("-")[0]
            if pid.isdigit() and not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists():
                shutil.rmtree(old, ignore_errors=True)
        return Path(tempfile.mkdtemp(prefix=f"{_DOWNLOADS}{os.getpid()}-"))
    except OSError as error:
        where = error.filename or tempfile.tempdir or "the folder for temporary files"
        raise ToolError(
            f"no folder for downloaded charts: {where}: {error.strerror}; set $TMPDIR to another"
        ) from error


def obtain(release: Release, cluster: Cluster, helm: Helm, download: Path) -> Chart:
    """The chart of a release, verified: from the folder of charts, else downloaded into ``download``.

    Raises InputError where it is not there, RefusedError where it is not what is pinned.
    """
    here = folder(cluster)
    if here is not None:
        path = _locate(release, here)
    else:
        place = download / release.name
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ToolError(f"{place}: {error.strerror}; set $TMPDIR to another folder") from error
        path = helm.pull(release, place)
    return verify(release, path, rehearsal=cluster.rehearsal)


def verify(release: Release, path: Path, *, rehearsal: bool) -> Chart:
    """Hold a chart against its pin: name, version and, of an archive, the digest where one is recorded.

    A source tree often carries a development version; it is refused, since what it renders is not what the
    pinned chart renders. So is a stand-in chart on anything but a rehearsal cluster.
    """
    if path.is_file() and release.digest:
        found = "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
        if found != release.digest:
            raise RefusedError(
                f"{release.title}: {path} has digest {found}, charts.yaml records {release.digest}; "
                "get the chart again from its repository"
            )
    meta = _metadata(path)
    seen = f"{meta.get('name')} {meta.get('version')}"
    if seen != f"{release.chart} {release.version}":
        raise RefusedError(
            f"{release.title}: {path} holds chart {seen}, charts.yaml pins {release.chart} {release.version}; "
            "use the packaged chart of that version"
        )
    stand_in = (meta.get("annotations") or {}).get(STAND_IN) == "true"
    if stand_in and not rehearsal:
        raise RefusedError(
            f"{release.title}: {path} is a stand-in chart, which installs nothing real; "
            "it serves rehearsal clusters only"
        )
    return Chart(path, meta.get("kubeVersion"), stand_in)


def _locate(release: Release, here: Path) -> Path:
    plain = release.version.removeprefix("v")
    archives = [here / f"{release.chart}-{version}.tgz" for version in (release.version, plain, f"v{plain}")]
    if (here / release.chart / "Chart.yaml").is_file():
        return here / release.chart
    for archive in archives:
        if archive.is_file():
            return archive
    raise InputError(
        f"{release.title}: {here} has neither {release.chart}/ nor {archives[0].name}; put the chart there"
    )


def _metadata(path: Path) -> dict[str, Any]:
    """Chart.yaml of a folder or an archive; raises InputError where it has none."""
    try:
        if path.is_dir():
            text = (path / "Chart.yaml").read_bytes()
        else:
            with tarfile.open(path) as archive:
                tops = [name for name in archive.getnames() if name.count("/") == 1 and name.endswith("/Chart.yaml")]
                member = archive.extractfile(tops[0])
                text = member.read() if member else b""
        found = yaml.safe_load(text)
    except (OSError, EOFError, zlib.error, tarfile.TarError, IndexError, yaml.YAMLError) as error:
        raise InputError(f"{path} is no Helm chart: {' '.join(str(error).split())}") from error
    return found if isinstance(found, dict) else {}
