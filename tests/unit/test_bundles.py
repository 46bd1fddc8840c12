"""Bundles that people made or mended by hand, and calls that cannot be followed: one line, and no stale report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gpuready.charts_values.errors import InputError
from gpuready.validators import cli
from gpuready.validators.evidence import Evidence
from gpuready.validators.expected import Expected


@pytest.fixture
def bundle(healthy: Evidence, expected: Expected, tmp_path: Path) -> Path:
    """A healthy cluster as `check --save` keeps it."""
    healthy.save(tmp_path / "bundle", expected.to_json())
    return tmp_path / "bundle"


def put(file: Path, data: Any) -> None:
    file.write_text(json.dumps(data))


def gauges(file: Path) -> dict[str, str]:
    """The numbers of a Prometheus file by their series."""
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    return {series: number for series, _, number in (line.rpartition(" ") for line in lines)}


def test_a_list_as_kubectl_prints_it_is_evidence(bundle: Path, healthy: Evidence) -> None:
    put(bundle / "cluster" / "nodes.json", {"kind": "List", "apiVersion": "v1", "items": healthy.cluster["nodes"]})
    loaded, _ = Evidence.load(bundle)
    assert loaded.cluster["nodes"] == healthy.cluster["nodes"]


def test_a_list_as_the_api_sends_it_lends_its_items_their_kind(bundle: Path, healthy: Evidence) -> None:
    items = [{key: one[key] for key in one if key != "kind"} for one in healthy.cluster["daemonsets.apps"]]
    put(bundle / "cluster" / "daemonsets.apps.json", {"kind": "DaemonSetList", "items": items})
    loaded, _ = Evidence.load(bundle)
    assert loaded.cluster["daemonsets.apps"] == healthy.cluster["daemonsets.apps"]


def test_what_a_later_version_adds_is_passed_over(bundle: Path) -> None:
    put(bundle / "collection.json", {"pods": {"kind": "forbidden", "message": "no", "since": "tomorrow"}})
    loaded, _ = Evidence.load(bundle)
    assert (loaded.failures["pods"].kind, loaded.failures["pods"].message) == ("forbidden", "no")


@pytest.mark.parametrize(
    ("file", "data"),
    [
        ("cluster/nodes.json", {"kind": "Status"}),
        ("cluster/nodes.json", {"items": {}}),
        ("cluster/nodes.json", "nodes"),
        ("cluster/nodes.json", ["gpu-0"]),
        ("cluster/nodes.json", [{"metadata": {}}]),
        ("cluster/nodes.json", [{"metadata": {"name": "gpu-0", "labels": ["a=b"]}}]),
        ("cluster/nodes.json", [{"metadata": {"name": "gpu-0"}, "spec": "none"}]),
        ("cluster/daemonsets.apps.json", [{"metadata": {"name": "cilium", "namespace": "kube-system"}}]),
        ("cluster/daemonsets.apps.json", [{"metadata": {"name": "cilium"}, "spec": {}, "status": {}}]),
        ("collection.json", ["nodes"]),
        ("collection.json", {"nodes": "forbidden"}),
        ("collection.json", {"nodes": {"kind": "forbidden"}}),
        ("bundle.json", []),
        ("bundle.json", "today"),
        ("expected.json", []),
        ("expected.json", {"cluster": "lab", "entry": [], "releases": []}),
        ("expected.json", {"cluster": "lab", "entry": {}, "releases": {"name": "cilium"}}),
    ],
)
def test_a_damaged_bundle_is_one_line(bundle: Path, file: str, data: Any, capsys: pytest.CaptureFixture[str]) -> None:
    put(bundle / file, data)
    assert cli.main(["check", "--from", str(bundle)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("gpuready: ")


def test_empty_files_are_no_evidence_and_no_traceback(bundle: Path) -> None:
    put(bundle / "cluster" / "nodes.json", [])
    put(bundle / "bundle.json", {})
    loaded, _ = Evidence.load(bundle)
    assert (loaded.objects("nodes"), loaded.about) == ([], {})
    (bundle / "bundle.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read as JSON"):
        Evidence.load(bundle)


@pytest.mark.parametrize("name", ["gpu-0", "gpu-1"])
def test_a_node_that_somebody_knows_may_be_asked_for(bundle: Path, name: str) -> None:
    nodes = json.loads((bundle / "cluster" / "nodes.json").read_text())
    put(bundle / "cluster" / "nodes.json", [one for one in nodes if one["metadata"]["name"] == "gpu-0"])
    # gpu-1 is promised and missing, which is a failure and no typo.
    assert cli.main(["check", "--from", str(bundle), "--node", name]) == (0 if name == "gpu-0" else 1)


def test_a_node_of_the_bundles_own_files_may_be_asked_for(tmp_path: Path) -> None:
    (tmp_path / "nodes" / "gpu-7").mkdir(parents=True)
    (tmp_path / "nodes" / "gpu-7" / "kmsg.txt").touch()
    assert cli.main(["check", "--from", str(tmp_path), "--node", "gpu-7"]) == 2


def test_a_mistyped_node_is_refused(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "--from", str(bundle), "--node", "gpu-O"]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", "gpuready: --node gpu-O: inventory and cluster know no such node; did you mean gpu-1?\n")


def test_where_the_nodes_could_not_be_read_any_name_may_be_right(bundle: Path) -> None:
    (bundle / "cluster" / "nodes.json").unlink()
    put(bundle / "collection.json", {"nodes": {"kind": "forbidden", "message": "no"}})
    put(bundle / "expected.json", None)
    loaded = cli.main(["check", "--from", str(bundle), "--node", "gpu-9"])
    assert loaded == 2


@pytest.mark.parametrize(
    "wrong",
    [
        ("--kubeconfig", "missing"),
        ("--inventory", "missing"),
        ("--only", "gpu.alocatable"),
        ("--from", "missing"),
    ],
)
def test_a_call_that_cannot_be_followed_leaves_no_stale_report(
    bundle: Path, tmp_path: Path, wrong: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLUSTER", "lab")
    monkeypatch.chdir(tmp_path)
    entry = json.loads((bundle / "expected.json").read_text())["entry"]
    (tmp_path / "inventory").write_text(f"_CLUSTERS = {{'lab': {entry!r}}}\n")
    file = tmp_path / "gpuready.prom"
    output = ("-o", "prometheus", "--output-file", str(file))
    assert cli.main(["check", "--from", str(bundle), *output]) == 0
    assert gauges(file)['gpuready_exit_code{cluster="lab",kind="check"}'] == "0"
    assert cli.main(["check", *wrong, *output]) == 2
    assert gauges(file) == {
        'gpuready_result{cluster="lab",check="cluster.reachable",kind="cluster",subject="lab"}': "4",
        'gpuready_exit_code{cluster="lab",kind="check"}': "2",
    }
    text = tmp_path / "gpuready.txt"
    assert cli.main(["check", *wrong, "--output-file", str(text)]) == 2
    assert text.read_text().startswith("INCOMPLETE cluster.reachable: gpuready cannot run as it was called (lab)")
