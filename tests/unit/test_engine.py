"""The engine: what is found where, what is refused, and that a broken cache never serves."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator, Mapping
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import pytest
from gpuready.charts_values.errors import InputError, ToolError
from gpuready.rehearsal import engine
from gpuready.rehearsal.engine import cache, gobuild, parts, releases

NAMES = tuple(program.name for program in parts.PROGRAMS)
# Nothing listens on port 1: the answer is a refusal, at once.
NOWHERE = dict.fromkeys(releases.OFFICIAL, "http://127.0.0.1:1")
ANSWERS = """#!/bin/sh
case "${0##*/}" in
etcd) echo 'etcd Version: 3.6.5' ;;
kube*) echo 'Kubernetes v1.35.4' ;;
kwok) echo 'kwok version v0.8.0 go1.26.8 (linux/amd64)' ;;
helm) echo 'v4.2.3' ;;
esac
"""
FAKE_GO = """#!/bin/sh
echo "$@" >> '{log}'
if [ "$1" = env ]; then echo '{version}'; exit 0; fi
while [ "$1" != -o ]; do shift; done
/bin/cp '{answers}' "$2"
"""


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with an empty cache and an empty PATH."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.delenv("GPUREADY_BIN", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "path").mkdir()


@pytest.fixture
def said() -> list[str]:
    return []


def program(path: Path, text: str = ANSWERS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def fill(folder: Path, names: tuple[str, ...] = NAMES) -> Path:
    for name in names:
        program(folder / name)
    return folder


def fake_go(tmp_path: Path, version: str = "go1.26.8") -> Path:
    """Put a `go` on PATH that logs its calls and "builds" a program that reports the right versions."""
    log, answers = tmp_path / "go.log", program(tmp_path / "answers")
    log.touch()
    program(tmp_path / "path" / "go", FAKE_GO.format(log=log, version=version, answers=answers))
    return log


def cached(said: list[str]) -> Mapping[str, Path]:
    """Fill the cache by a build, and return what is in there."""
    return engine.find(said.append, sources=NOWHERE)


# -- where things are found ----------------------------------------------------------------------------------


def test_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUREADY_BIN", str(fill(tmp_path / "own")))
    assert engine.find() == {name: tmp_path / "own" / name for name in NAMES}


def test_own_folder_with_a_wrong_version_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = fill(tmp_path / "own")
    program(own / "kubelet", "#!/bin/sh\necho Kubernetes v1.34.9\n")
    monkeypatch.setenv("GPUREADY_BIN", str(own))
    with pytest.raises(InputError, match=r"\$GPUREADY_BIN: .*kubelet is 1\.34\.9, and >= 1\.35, < 1\.36"):
        engine.find()


def test_own_folder_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUREADY_BIN", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="is no folder"):
        engine.find()


def test_own_folder_may_hold_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = fill(tmp_path / "own", ("etcd", "helm"))
    monkeypatch.setenv("GPUREADY_BIN", str(own))
    fake_go(tmp_path)
    found = engine.find(sources=NOWHERE)
    assert {name for name, path in found.items() if path.parent == own} == {"etcd", "helm"}
    assert engine.find(make=False) == found


def test_path_is_used_where_versions_suit(tmp_path: Path) -> None:
    fill(tmp_path / "path")
    assert engine.find() == {name: tmp_path / "path" / name for name in NAMES}


@pytest.mark.parametrize(
    ("name", "answer", "reason"),
    [
        ("helm", "echo v3.19.0+g3d8990f", "is 3.19.0"),
        ("etcd", "echo etcd Version: 3.5.16", "is 3.5.16"),
        ("kube-apiserver", "echo Kubernetes v1.36.0", "is 1.36.0"),
        ("kwok", "echo kwok version unknown", "reports no version"),
        ("kube-scheduler", "echo Kubernetes v1.35.4; exit 3", "reports no version (exit 3)"),
    ],
)
def test_path_is_passed_over_where_a_version_does_not_suit(
    tmp_path: Path, said: list[str], name: str, answer: str, reason: str
) -> None:
    fill(tmp_path / "path")
    program(tmp_path / "path" / name, f"#!/bin/sh\n{answer}\n")
    fake_go(tmp_path)
    found = engine.find(said.append, sources=NOWHERE)
    assert tmp_path / "cache" in found[name].parents
    assert all(found[other].parent == tmp_path / "path" for other in set(NAMES) - {name})
    assert [line for line in said if line.startswith("passed over") and reason in line]


def test_without_make_nothing_is_made(tmp_path: Path) -> None:
    log = fake_go(tmp_path)
    with pytest.raises(ToolError, match="get them with: make engine"):
        engine.find(make=False)
    assert log.read_text() == ""


def test_link(tmp_path: Path) -> None:
    binaries = {name: fill(tmp_path / "own") / name for name in NAMES}
    engine.link(binaries, tmp_path / "bin")
    assert {path.name: path.readlink() for path in (tmp_path / "bin").iterdir()} == binaries


# -- the build -----------------------------------------------------------------------------------------------


def test_build_once_then_cached(tmp_path: Path, said: list[str]) -> None:
    log = fake_go(tmp_path)
    first = cached(said)
    calls = [line.split() for line in log.read_text().splitlines()]
    assert [call[0] for call in calls] == ["env", "build", "build", "build"]
    assert all("-trimpath" in call for call in calls[1:])
    assert cached(said) == first
    assert len(log.read_text().splitlines()) == 4
    assert {path.parent.parent for path in first.values()} == {tmp_path / "cache" / "gpuready"}


def test_two_processes_build_once(tmp_path: Path) -> None:
    log = fake_go(tmp_path)
    code = f"from gpuready.rehearsal import engine; engine.find(print, sources={NOWHERE!r})"
    both = [subprocess.Popen([sys.executable, "-P", "-c", code], stdout=subprocess.PIPE, text=True) for _ in "12"]
    assert [(process.communicate(timeout=60), process.returncode)[1] for process in both] == [0, 0]
    assert [line.split()[0] for line in log.read_text().splitlines()].count("build") == 3


def test_a_build_of_the_wrong_version_is_not_kept(tmp_path: Path) -> None:
    fake_go(tmp_path)
    program(tmp_path / "answers", ANSWERS.replace("v0.8.0", "v0.7.0"))
    with pytest.raises(ToolError, match=r"kwok is 0\.7\.0"):
        engine.find(sources=NOWHERE)
    assert not [path for path in (tmp_path / "cache" / "gpuready").iterdir() if path.name.startswith("kwok")]


def test_a_failing_build_says_why(tmp_path: Path) -> None:
    fails = "#!/bin/sh\nif [ $1 = env ]; then echo go1.26.8; exit; fi\necho 'disk is full' >&2; exit 1\n"
    program(tmp_path / "path" / "go", fails)
    with pytest.raises(ToolError, match=r"go build of kubernetes failed \(exit 1\): disk is full"):
        engine.find(sources=NOWHERE)


def test_neither_network_nor_go_is_one_line(said: list[str]) -> None:
    with pytest.raises(ToolError) as caught:
        engine.find(said.append, sources=NOWHERE)
    message = str(caught.value)
    assert "\n" not in message
    assert "etcd" in message and "helm" in message
    assert "Connection refused" in message and "go is not installed; install Go 1.26 or newer" in message
    assert said == ["no download: 127.0.0.1:1: Connection refused"]


def test_go_too_old(tmp_path: Path) -> None:
    fake_go(tmp_path, version="go1.24.13")
    with pytest.raises(ToolError, match=r"go is go1\.24\.13; install Go 1\.26 or newer"):
        engine.find(sources=NOWHERE)


def test_versions_agree_with_the_go_modules() -> None:
    wanted = {
        "kubernetes": ("k8s.io/kubernetes", parts.KUBERNETES.version),
        "etcd": ("go.etcd.io/etcd/server/v3", parts.KUBERNETES.versions["etcd"]),
        "kwok": ("sigs.k8s.io/kwok", parts.KWOK.version),
        "helm": ("helm.sh/helm/v4", parts.HELM.version),
    }
    required = {}
    for file in gobuild.MODULES.glob("*/go.mod"):
        required |= dict(re.findall(r"^\s+(\S+) v(\S+)", file.read_text(), re.MULTILINE))
    assert {name: required[module] for name, (module, _) in wanted.items()} == {
        name: version for name, (_, version) in wanted.items()
    }
    for part in parts.PARTS:
        assert any(value.removeprefix("v") == part.version for value in part.stamps.values())


# -- the cache -----------------------------------------------------------------------------------------------


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def change(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"#")


def lock_up(path: Path) -> None:
    path.chmod(0o644)


def remove(path: Path) -> None:
    path.unlink()


def remove_manifest(path: Path) -> None:
    (path.parent / "manifest.json").unlink()


def spoil_manifest(path: Path) -> None:
    (path.parent / "manifest.json").write_text("{")


@pytest.mark.parametrize("damage", [shorten, change, lock_up, remove, remove_manifest, spoil_manifest])
def test_a_broken_entry_is_noticed_and_made_again(tmp_path: Path, said: list[str], damage: object) -> None:
    log = fake_go(tmp_path)
    found = cached(said)["kwok"]
    assert callable(damage)
    damage(found)
    said.clear()
    assert cached(said)["kwok"] == found
    assert found.read_text() == ANSWERS and os.access(found, os.X_OK)
    assert "is broken" in said[0] and "kwok" in said[0]
    assert log.read_text().count("build") == 4


def test_a_copied_entry_is_still_good(tmp_path: Path, said: list[str]) -> None:
    """Another time stamp alone does not make an entry broken."""
    log = fake_go(tmp_path)
    os.utime(cached(said)["helm"], (0, 0))
    cached(said)
    assert log.read_text().count("build") == 3


def test_what_a_killed_build_left_is_removed(tmp_path: Path, said: list[str]) -> None:
    root = tmp_path / "cache" / "gpuready"
    fill(root / ".unfinished-abc")
    fake_go(tmp_path)
    cached(said)
    assert not (root / ".unfinished-abc").exists()


def test_the_key_follows_the_recipe() -> None:
    keys = {part.name: engine.key(part) for part in parts.PARTS}
    assert keys["kubernetes"].startswith("kubernetes-1.35.4-linux-")
    assert len(set(keys.values())) == 3


def test_a_relative_cache_home_is_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.folder() == tmp_path / ".cache" / "gpuready"


# -- downloads -----------------------------------------------------------------------------------------------


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A web server with every release file, laid out as the projects do, on this machine."""
    root = tmp_path / "site"
    root.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(root)))
    sources = {name: f"http://127.0.0.1:{server.server_port}/{name}" for name in releases.OFFICIAL}
    for part in parts.PARTS:
        for asset in releases.assets(part, parts.machine(), sources):
            publish(root, asset)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield sources
    server.shutdown()
    thread.join()
    server.server_close()


def publish(root: Path, asset: releases.Asset) -> None:
    data = archive(asset.member) if asset.member else ANSWERS.encode()
    file, sums = (root / url.split("/", 3)[3] for url in (asset.url, asset.checksums))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    sums.parent.mkdir(parents=True, exist_ok=True)
    if asset.program.startswith("kube"):
        sums.write_text(digest)
    elif asset.program == "kwok":
        others = {"name": "kwok.yaml", "digest": None}
        sums.write_text(json.dumps({"assets": [others, {"name": asset.name, "digest": f"sha256:{digest}"}]}))
    else:
        sums.write_text(f"{'0' * 64}  another.tar.gz\n{digest}  {asset.name}\n")


def archive(member: str) -> bytes:
    out = BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        info = tarfile.TarInfo(member)
        info.size = len(ANSWERS)
        tar.addfile(info, BytesIO(ANSWERS.encode()))
    return out.getvalue()


def test_download(tmp_path: Path, said: list[str], site: dict[str, str]) -> None:
    log = fake_go(tmp_path)
    found = engine.find(said.append, sources=site)
    assert set(found) == set(NAMES)
    assert log.read_text() == ""
    assert all(os.access(path, os.X_OK) and path.read_text() == ANSWERS for path in found.values())
    assert engine.find(make=False) == found
    assert sorted(path.name for path in found["etcd"].parent.iterdir()) == sorted(
        (*parts.KUBERNETES.names, "manifest.json")
    )


def test_a_wrong_checksum_is_never_used(tmp_path: Path, said: list[str], site: dict[str, str]) -> None:
    [changed] = (tmp_path / "site").rglob("kwok-linux-*")
    changed.write_text(ANSWERS + "# changed\n")
    with pytest.raises(ToolError, match="does not have its published SHA-256"):
        engine.find(said.append, sources=site)
    entries = [path.name for path in (tmp_path / "cache" / "gpuready").iterdir()]
    assert not [name for name in entries if name.startswith(("kwok", ".unfinished"))]


def test_what_cannot_be_downloaded_is_built(tmp_path: Path, said: list[str], site: dict[str, str]) -> None:
    log = fake_go(tmp_path)
    found = engine.find(said.append, sources={**site, "helm": NOWHERE["helm"]})
    assert set(found) == set(NAMES)
    builds = [line for line in log.read_text().splitlines() if line.startswith("build")]
    assert len(builds) == 1 and builds[0].endswith("helm.sh/helm/v4/cmd/helm")


@pytest.mark.parametrize(
    ("sums", "reason"),
    [("not a checksum\n", "no SHA-256 of kube-scheduler"), (None, "HTTP 404")],
    ids=["damaged", "absent"],
)
def test_no_checksum_no_download(
    tmp_path: Path, said: list[str], site: dict[str, str], sums: str | None, reason: str
) -> None:
    [file] = (tmp_path / "site").rglob("kube-scheduler.sha256")
    file.write_text(sums) if sums else file.unlink()
    with pytest.raises(ToolError, match=re.escape(reason)):
        engine.find(said.append, sources=site)


def test_an_archive_without_the_program(tmp_path: Path, site: dict[str, str]) -> None:
    [file] = (tmp_path / "site").rglob("helm-*.tar.gz")
    file.write_bytes(archive("linux/other"))
    Path(f"{file}.sha256sum").write_text(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n")
    with pytest.raises(ToolError, match=r"holds no linux-\w+/helm"):
        engine.find(sources=site)


def test_no_releases_for_this_architecture() -> None:
    assert all(releases.assets(part, "riscv64") == [] for part in parts.PARTS)
    assert releases.checksums([]) == {}


def test_official_addresses() -> None:
    urls = {asset.program: asset.url for part in parts.PARTS for asset in releases.assets(part, "arm64")}
    assert set(urls) == set(NAMES)
    assert urls["kubelet"] == "https://dl.k8s.io/v1.35.4/bin/linux/arm64/kubelet"
    assert urls["helm"] == "https://get.helm.sh/helm-v4.2.3-linux-arm64.tar.gz"
    assert all(url.startswith("https://") for url in urls.values())
