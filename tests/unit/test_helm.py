"""The edge to helm, the charts it is given, and the words for a difference: real files and real processes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
from gpuready.charts_values import bill, inventory
from gpuready.charts_values.errors import DeadlineError, InputError, RefusedError, ToolError
from gpuready.deploys import charts, helm
from gpuready.deploys.changes import differences
from gpuready.deploys.helm import Helm

ENTRY: dict[str, Any] = {
    "pod_cidr": "10.244.0.0/16",
    "service_cidr": "10.96.0.0/16",
    "driver_version": "580.173.02",
    "groups": {"g": {"nodes": ["gpu-0"], "gpu_product": "L40S", "resources": {"nvidia.com/gpu": 4}}},
}
CILIUM = next(one for one in bill.load() if one.name == "cilium")
NFD = next(one for one in bill.load() if one.name == "node-feature-discovery")


def cluster(folder: Path | None = None, **changes: Any) -> inventory.Cluster:
    return inventory.parse("lab", {**ENTRY, **changes}, folder)


def program(folder: Path, body: str) -> Path:
    """A program called helm that answers as `body` says."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "helm"
    file.write_text(f'#!/bin/sh\nif [ "$1" = version ]; then echo "${{V:-v4.2.3}}"; exit 0; fi\n{body}\n')
    file.chmod(0o755)
    return file


def chart(folder: Path, release: bill.Release, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    meta = {"apiVersion": "v2", "name": release.chart, "version": release.version, **changes}
    (folder / "Chart.yaml").write_text(json.dumps(meta))
    return folder


# -- which helm ---------------------------------------------------------------------------------------------------


def test_the_rehearsals_own_helm_goes_before_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, given, found = (program(tmp_path / name, "exit 0") for name in ("engine", "given", "path"))
    state = tmp_path / "state"
    state.mkdir()
    (state / "state.json").write_text(json.dumps({"bin": str(engine.parent)}))
    monkeypatch.setenv("GPUREADY_BIN", str(given.parent))
    monkeypatch.setenv("PATH", f"{found.parent}:/bin")
    assert helm.find(cluster(rehearsal=True, state_dir=str(state))) == engine
    assert helm.find(cluster()) == given
    monkeypatch.delenv("GPUREADY_BIN")
    assert helm.find(cluster()) == found


def test_missing_helm_is_one_line_that_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUREADY_BIN", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=rf"helm is missing \(looked in {tmp_path}, PATH\); install it"):
        helm.find(cluster())


@pytest.mark.parametrize(
    ("version", "line"), [("v4.2", "calls itself 'v4.2', which is no full version"), ("v3.2.0", "needs 3.8.0 or newer")]
)
def test_a_helm_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, line: str) -> None:
    monkeypatch.setenv("V", version)
    with pytest.raises(ToolError, match=line):
        Helm(program(tmp_path, "exit 0"), None, None)


def test_kubeconfig_and_context_are_given_and_the_environment_cannot_override(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HELM_KUBETOKEN", "someone else")
    monkeypatch.setenv("HELM_NAMESPACE", "elsewhere")
    binary = program(tmp_path, f'env > {tmp_path}/env; echo "$@" > {tmp_path}/words; echo "[]"')
    assert Helm(binary, "/some/kubeconfig", "lab").releases() == {}
    words = (tmp_path / "words").read_text()
    assert "--kubeconfig /some/kubeconfig --kube-context lab" in words
    assert "--all-namespaces" in words
    assert "--pending" in words
    assert "HELM_" not in (tmp_path / "env").read_text()


def test_what_helm_complains_of_is_one_line(tmp_path: Path) -> None:
    binary = program(
        tmp_path, 'echo "WARNING: old" >&2; echo "Error: INSTALLATION FAILED:" >&2; echo " no" >&2; exit 1'
    )
    with pytest.raises(ToolError) as failed:
        Helm(binary, None, None).releases()
    assert str(failed.value) == "helm list: INSTALLATION FAILED: no"


@pytest.mark.parametrize("head", ["I0115", "W0115", "E0731", "F1231", "W1121"])
def test_what_client_go_logs_is_no_complaint_in_any_month(tmp_path: Path, head: str) -> None:
    log = f"{head} 09:10:11.123456   42 warnings.go:70] spec.x: unknown field"
    binary = program(tmp_path, f'echo "{log}" >&2; echo "Error: I1 is no node" >&2; exit 1')
    with pytest.raises(ToolError) as failed:
        Helm(binary, None, None).releases()
    assert str(failed.value) == "helm list: I1 is no node"


def test_what_helm_prints_must_be_readable(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="cannot be read"):
        Helm(program(tmp_path, "echo hello"), None, None).releases()


@pytest.mark.parametrize("manner", ["", "trap '' TERM; "])
def test_a_hanging_helm_is_ended_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, manner: str
) -> None:
    monkeypatch.setattr(helm, "READ_LIMIT_S", 0.5)
    monkeypatch.setattr(helm, "GRACE_S", 0.2)
    binary = program(tmp_path, f"{manner}sleep 60 & echo $! > {tmp_path}/child; wait")
    tool = Helm(binary, None, None)
    with pytest.raises(DeadlineError, match=r"helm list did not end within 0\.5 s"):
        tool.releases()
    # A killed process closes its files a moment before it is gone.
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 10
    while _alive(child):
        assert time.monotonic() < deadline, "the child outlived helm"
        time.sleep(0.01)


def _alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


# -- which chart --------------------------------------------------------------------------------------------------


def test_the_folder_of_charts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(charts.VARIABLE, raising=False)
    (tmp_path / "mirror").mkdir()
    (tmp_path / "other").mkdir()
    assert charts.folder(cluster(tmp_path)) is None
    assert charts.folder(cluster(tmp_path, charts="mirror")) == tmp_path / "mirror"
    monkeypatch.setenv(charts.VARIABLE, str(tmp_path / "other"))
    assert charts.folder(cluster(tmp_path, charts="mirror")) == tmp_path / "other"
    monkeypatch.setenv(charts.VARIABLE, str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"\$GPUREADY_CHARTS names .*none, which is no folder of charts"):
        charts.folder(cluster(tmp_path))


def test_name_and_version_must_be_the_pinned_ones(tmp_path: Path) -> None:
    good = charts.verify(CILIUM, chart(tmp_path / "a", CILIUM, kubeVersion=">=1.21"), rehearsal=False)
    assert (good.kube_range, good.stand_in) == (">=1.21", False)
    wrong = chart(tmp_path / "b", CILIUM, version="1.0.0-devel")
    with pytest.raises(RefusedError, match=r"holds chart cilium 1\.0\.0-devel, charts\.yaml pins cilium 1\.19\.6"):
        charts.verify(CILIUM, wrong, rehearsal=False)
    with pytest.raises(RefusedError, match="holds chart cilium"):
        charts.verify(NFD, tmp_path / "a", rehearsal=False)


def test_stand_ins_are_for_rehearsals_only(tmp_path: Path, root: Path) -> None:
    for release in bill.load():
        path = root / "rehearsal" / "charts" / release.chart
        assert charts.verify(release, path, rehearsal=True).stand_in
        with pytest.raises(RefusedError, match="stand-in chart, which installs nothing real"):
            charts.verify(release, path, rehearsal=False)


def test_the_digest_of_an_archive_is_verified(tmp_path: Path) -> None:
    archive = tmp_path / "cilium-1.19.6.tgz"
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(chart(tmp_path / "cilium", CILIUM), "cilium")
    with pytest.raises(RefusedError, match=r"has digest sha256:\w+, charts.yaml records sha256:21c43cf5"):
        charts.verify(CILIUM, archive, rehearsal=False)
    right = "sha256:" + hashlib.sha256(archive.read_bytes()).hexdigest()
    assert charts.verify(dataclasses.replace(CILIUM, digest=right), archive, rehearsal=False).path == archive


def test_a_file_that_is_no_chart(tmp_path: Path) -> None:
    broken = tmp_path / "node-feature-discovery-0.19.0.tgz"
    broken.write_bytes(b"not an archive")
    with pytest.raises(InputError, match="is no Helm chart"):
        charts.verify(NFD, broken, rehearsal=False)


def test_a_chart_that_is_missing_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(charts.VARIABLE, str(tmp_path))
    tool = Helm(program(tmp_path / "bin", "exit 1"), None, None)
    with pytest.raises(InputError, match=r"neither node-feature-discovery/ nor node-feature-discovery-0\.19\.0\.tgz"):
        charts.obtain(NFD, cluster(), tool, tmp_path)


def test_an_unreachable_repository_names_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(charts.VARIABLE, raising=False)
    binary = program(tmp_path / "bin", f'pwd > {tmp_path}/cwd; echo "Error: no such host" >&2; exit 1')
    with pytest.raises(ToolError, match=r"had from oci://registry\.k8s\.io/nfd/charts: .*no such host; .*CHARTS"):
        charts.obtain(NFD, cluster(), Helm(binary, None, None), tmp_path / "download")
    # helm prefers a folder of the chart's name where it runs, so it runs in an empty one.
    assert list(Path((tmp_path / "cwd").read_text().strip()).iterdir()) == []


# -- words --------------------------------------------------------------------------------------------------------


def test_differences_name_the_path_and_both_values() -> None:
    old = {"a": {"b": 1, "same": [1]}, "gone": True}
    new = {"a": {"b": 2, "same": [1]}, "new": {"x": None}, "list": [1, 2]}
    assert differences(old, new) == [
        "a.b: 1 -> 2",
        "gone: true -> (none)",
        "list: (none) -> [1,2]",
        'new: (none) -> {"x":null}',
    ]
    assert differences(old, old) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            {},
            {"driver": {"env": [{"name": "HTTPS_PROXY", "value": "http://me:hunter2@proxy:3128"}]}},
            'driver: (none) -> {"env":[{"name":"HTTPS_PROXY","value":"(hidden)"}]}',
        ),
        (
            {"env": [{"name": "A", "value": "hunter1"}]},
            {"env": [{"name": "A", "value": "hunter2"}]},
            "env: changed",
        ),
        (
            {"env": [{"name": "A", "value": "hunter1"}]},
            {"env": [{"name": "B", "value": "hunter2"}]},
            'env: [{"name":"A","value":"(hidden)"}] -> [{"name":"B","value":"(hidden)"}]',
        ),
        ({"hubble": {"tls": {"ca": {"key": "hunter1"}}}}, {"hubble": {"tls": {"ca": {"key": "hunter2"}}}}, "changed"),
        ({}, {"tls": {"ca": {"cert": "hunter2"}}}, 'tls: (none) -> {"ca":{"cert":"(hidden)"}}'),
        ({"hubble": {"tls": {"enabled": True}}}, {"hubble": {"tls": {"enabled": False}}}, "true -> false"),
        ({}, {"server": {"clientKey": "hunter2"}}, 'server: (none) -> {"clientKey":"(hidden)"}'),
        ({}, {"auth": {"user": "me", "password": "hunter2"}}, '{"user":"me","password":"(hidden)"}'),
        ({}, {"proxy": "http://me:hunter@2@proxy:3128/x"}, "proxy: (none) -> http://(hidden)@proxy:3128/x"),
        ({"a": "http://me:hunter1@p"}, {"a": "http://me:hunter2@p"}, "a: changed"),
        ({}, {"args": ["--api-token=hunter2", "--v=4"]}, 'args: (none) -> ["--api-token=(hidden)","--v=4"]'),
        ({}, {"extra": "-----BEGIN RSA KEY-----\nhunter2"}, "extra: (none) -> (hidden)"),
        ({}, {"config": '{"password": "hunter2 too", "x": 1}'}, '{"password": (hidden), "x": 1}'),
        ({}, {"driver": {"env": {"PGPASS": "hunter2"}}}, 'driver: (none) -> {"env":{"PGPASS":"(hidden)"}}'),
        ({"env": {"A": "hunter1"}}, {"env": {"A": "hunter2"}}, "env.A: changed"),
    ],
)
def test_differences_hide_what_opens_a_door(old: dict[str, Any], new: dict[str, Any], said: str) -> None:
    (found,) = differences(old, new)
    assert said in found
    assert "hunter" not in found


def test_differences_show_what_is_no_secret() -> None:
    toleration = {"key": "nvidia.com/gpu", "operator": "Exists"}
    assert differences({}, {"tolerations": [toleration], "agentNotReadyTaintKey": "k", "image": "a/b:1@sha256:0"}) == [
        "agentNotReadyTaintKey: (none) -> k",
        "image: (none) -> a/b:1@sha256:0",
        'tolerations: (none) -> [{"key":"nvidia.com/gpu","operator":"Exists"}]',
    ]


def test_differences_hide_secrets_and_long_text() -> None:
    found = differences({}, {"imagePullSecret": "hunter2", "text": "x" * 500, "tokens": {"t": 1}})
    assert found[0] == "imagePullSecret: changed"
    assert len(found[1]) < 100
    assert "hunter2" not in "".join(found)
    assert differences({}, {str(number): 1 for number in range(9)})[-1] == "and 3 more"
