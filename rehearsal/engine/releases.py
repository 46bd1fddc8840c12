"""The projects' official release downloads, each verified against its published SHA-256."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tarfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit

from gpuready.charts_values.errors import DeadlineError, GpureadyError, ToolError, UnreachableError

from ..progress import Say
from .parts import Part

# Where the projects publish. Tests, and mirrors, put others in their place.
OFFICIAL: Mapping[str, str] = {
    "kubernetes": "https://dl.k8s.io",
    "etcd": "https://github.com/etcd-io/etcd/releases/download",
    "kwok": "https://github.com/kubernetes-sigs/kwok/releases/download",
    # kwok publishes no checksum files; GitHub computes and publishes one for every release file.
    "kwok-checksums": "https://api.github.com/repos/kubernetes-sigs/kwok/releases/tags",
    "helm": "https://get.helm.sh",
}
ARCHITECTURES = ("amd64", "arm64")

# All hosts together get this many seconds to show that they can be reached.
_REACH_SECONDS = 4.0
_READ_SECONDS = 30.0
_FETCH_SECONDS = 1800.0
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Asset:
    """A file of a release; ``member`` is the program in it where it is an archive."""

    program: str
    url: str
    checksums: str
    member: str | None = None

    @property
    def name(self) -> str:
        """The file's name in the release."""
        return self.url.rpartition("/")[2]

    @property
    def checksums_host(self) -> str:
        """Where its checksum is published."""
        return urlsplit(self.checksums).netloc


def assets(part: Part, arch: str, bases: Mapping[str, str] = OFFICIAL) -> list[Asset]:
    """The release files that make up a part on Linux; none for an architecture without releases."""
    if arch not in ARCHITECTURES:
        return []
    if part.name == "kwok":
        url = f"{bases['kwok']}/v{part.version}/kwok-linux-{arch}"
        return [Asset("kwok", url, f"{bases['kwok-checksums']}/v{part.version}")]
    if part.name == "helm":
        url = f"{bases['helm']}/helm-v{part.version}-linux-{arch}.tar.gz"
        return [Asset("helm", url, f"{url}.sha256sum", f"linux-{arch}/helm")]
    folder = f"{bases['etcd']}/v{part.versions['etcd']}"
    etcd = f"etcd-v{part.versions['etcd']}-linux-{arch}"
    found = [Asset("etcd", f"{folder}/{etcd}.tar.gz", f"{folder}/SHA256SUMS", f"{etcd}/etcd")]
    for name in part.names:
        if name != "etcd":
            url = f"{bases['kubernetes']}/v{part.version}/bin/linux/{arch}/{name}"
            found.append(Asset(name, url, f"{url}.sha256"))
    return found


def checksums(wanted: Iterable[Asset]) -> dict[Asset, str | GpureadyError]:
    """The published SHA-256 of each asset, or why there is none.

    All are asked at once and get a few seconds together: this also tells whether the hosts can be reached.
    """
    wanted = list(wanted)
    answers: dict[str, str | GpureadyError] = {}
    # Threads that nobody waits for: a name lookup cannot be interrupted, and has a patience of its own.
    threads = [
        threading.Thread(target=lambda url=url: answers.__setitem__(url, _text(url)), daemon=True)
        for url in dict.fromkeys(asset.checksums for asset in wanted)
    ]
    deadline = time.monotonic() + _REACH_SECONDS
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    found: dict[Asset, str | GpureadyError] = {}
    for asset in wanted:
        late = DeadlineError(f"no answer within {_REACH_SECONDS:.0f} s")
        answer = answers.get(asset.checksums, late)
        found[asset] = answer if isinstance(answer, GpureadyError) else _checksum(answer, asset)
    return found


def fetch(wanted: Mapping[Asset, str], folder: Path, detail: Say) -> None:
    """Download assets, verify each against its SHA-256, and leave their programs in ``folder``, executable.

    Raises UnreachableError, DeadlineError, ToolError where a checksum differs.
    """
    deadline = time.monotonic() + _FETCH_SECONDS
    for asset, sha256 in wanted.items():
        _fetch(asset, sha256, folder, detail, deadline)


def _fetch(asset: Asset, sha256: str, folder: Path, detail: Say, deadline: float) -> None:
    file = folder / f"{asset.name}.part"
    digest = hashlib.sha256()
    done = 0
    try:
        with urllib.request.urlopen(asset.url, timeout=_READ_SECONDS) as response, file.open("wb") as out:
            size = int(response.headers.get("Content-Length") or 0)
            while chunk := response.read(_CHUNK):
                out.write(chunk)
                digest.update(chunk)
                done += len(chunk)
                detail(f"{asset.name}, {done >> 20}{f' of {size >> 20}' if size else ''} MiB")
                if time.monotonic() > deadline:
                    raise DeadlineError(f"{asset.url} was not fetched within {_FETCH_SECONDS:.0f} s")
    except (OSError, HTTPException, ValueError) as error:
        raise UnreachableError(f"{asset.url} cannot be fetched: {_reason(error)}") from error
    if digest.hexdigest() != sha256:
        raise ToolError(f"{asset.url} does not have its published SHA-256 {sha256}, so it is not used")
    program = folder / asset.program
    if asset.member is None:
        file.rename(program)
    else:
        _extract(file, asset.member, program)
        file.unlink()
    program.chmod(0o755)


def _extract(archive: Path, member: str, program: Path) -> None:
    try:
        with tarfile.open(archive) as tar:
            source = tar.extractfile(member)
            if source is None:
                raise KeyError(member)
            with source, program.open("wb") as out:
                shutil.copyfileobj(source, out)
    except (KeyError, tarfile.TarError, OSError, EOFError) as error:
        raise ToolError(f"{archive.name} holds no {member}: {error}") from error


def _text(url: str) -> str | GpureadyError:
    try:
        with urllib.request.urlopen(url, timeout=_REACH_SECONDS) as response:
            data: bytes = response.read(_CHUNK)
    except urllib.error.HTTPError as error:
        return UnreachableError(f"HTTP {error.code} for {url}")
    except (OSError, HTTPException, ValueError) as error:
        return UnreachableError(_reason(error))
    return data.decode("utf-8", errors="replace")


def _checksum(text: str, asset: Asset) -> str | GpureadyError:
    """Read a checksum file (bare, or lines of checksum and name) or GitHub's description of a release."""
    found = ""
    if text.lstrip().startswith("{"):
        try:
            files = {one["name"]: one.get("digest") or "" for one in json.loads(text)["assets"]}
        except (ValueError, KeyError, TypeError):
            files = {}
        found = files.get(asset.name, "").removeprefix("sha256:")
    else:
        lines = [line.split() for line in text.splitlines() if line.strip()]
        if len(lines) == 1 and len(lines[0]) == 1:
            found = lines[0][0]
        for line in lines:
            if len(line) == 2 and line[1].lstrip("*") == asset.name:
                found = line[0]
    if not re.fullmatch(r"[0-9a-f]{64}", found):
        return ToolError(f"no SHA-256 of {asset.name} in {asset.checksums}")
    return found


def _reason(error: BaseException) -> str:
    reason = getattr(error, "reason", None) or error
    return " ".join(str(getattr(reason, "strerror", None) or reason).split())
