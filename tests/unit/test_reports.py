"""Reports: the answer first, the same facts in every format, nothing lost on the way."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from gpuready.charts_values.errors import InputError
from gpuready.validators import comparison
from gpuready.validators.model import ClusterIdentity, Finding, Result, Run, Status, Subject
from gpuready.validators.report import html, junit, markdown, output, prometheus, text
from gpuready.validators.report.names import fold
from rich.console import Console


def result(check: str, status: Status, name: str = "gpu-0003", detail: str = "", **more: object) -> Result:
    cause = "fewer GPUs allocatable than expected" if status is Status.FAIL else "as expected"
    finding = Finding(status, Subject("node", name), "Reason", cause, detail, **more)  # type: ignore[arg-type]
    bad = status.rank >= Status.WARN.rank
    return Result(check, finding, "run this" if bad else "", "not that" if bad else "", "api")


def make(*results: Result, rehearsal: bool = False, strict: bool = False) -> Run:
    identity = ClusterIdentity("lab", "https://192.0.2.1:6443", "u-1", rehearsal)
    return Run("check", identity, "2026-01-02T03:04:05Z", 3.21, 17, results, strict)


@pytest.fixture
def failed() -> Run:
    return make(
        result("gpu.allocatable", Status.FAIL, detail="7 of 8", expected="8", observed="7"),
        dataclasses.replace(
            result("smi.gpus", Status.UNPROVEN, required=True), caused_by="gpu.allocatable/node/gpu-0003"
        ),
        result("nodes.ready", Status.PASS, "gpu-0001"),
        result("nodes.ready", Status.PASS, "gpu-0002"),
    )


def plain(run: Run) -> list[str]:
    return [line.plain for line in text.lines(run)]


def test_the_answer_comes_first_then_the_remedy(failed: Run) -> None:
    lines = plain(failed)
    assert lines[0] == "FAIL gpu.allocatable: fewer GPUs allocatable than expected (gpu-0003)"
    assert lines[1].split() == ["fix", "run", "this"]
    assert lines[2].split() == ["avoid", "not", "that"]
    assert lines[3] == "1 fail, 1 unproven, 2 pass; 3 checks, 3.2 s, 17 API calls"


def test_a_rehearsal_says_so_in_its_first_word(failed: Run) -> None:
    assert failed.cluster is not None
    twin = dataclasses.replace(failed, cluster=dataclasses.replace(failed.cluster, rehearsal=True))
    assert plain(twin)[0].startswith("REHEARSAL FAIL ")


def test_a_pass_counts_what_it_stands_on() -> None:
    run = make(result("nodes.ready", Status.PASS, "gpu-0"), result("nodes.ready", Status.PASS, "gpu-1"))
    assert plain(run)[0] == "PASS check: 1 checks on 2 nodes"


def test_nothing_judged_is_no_pass() -> None:
    run = make()
    assert (run.verdict, plain(run)[0]) == ("incomplete", "INCOMPLETE nothing was judged")


def test_text_from_the_cluster_is_not_taken_for_markup() -> None:
    run = make(result("a.b", Status.FAIL, detail="mount [/dev/nvidia0] :warning: [bus 0000:81]"))
    out = io.StringIO()
    text.write(run, Console(file=out, width=40))
    assert "mount [/dev/nvidia0] :warning: [bus 0000:81]" in out.getvalue()


def test_json_comes_back_whole(failed: Run) -> None:
    data = json.loads(json.dumps(failed.to_json()))
    assert Run.from_json(data).to_json() == data
    assert (data["schema"], data["verdict"], data["exit_code"]) == (1, "fail", 1)
    first = data["results"][0]
    assert first["id"] == "gpu.allocatable/node/gpu-0003"
    assert (first["expected"], first["observed"], first["detail"]) == ("8", "7", "7 of 8")
    assert data["results"][1]["caused_by"] == first["id"]


def test_strict_survives_the_file() -> None:
    run = make(result("a.b", Status.WARN), strict=True)
    assert run.exit_code == 1
    assert Run.from_json(run.to_json()).exit_code == 1


def test_junit_counts_and_carries_the_reason(failed: Run) -> None:
    root = ET.fromstring(junit.render(failed))
    assert (root.get("tests"), root.get("failures"), root.get("errors")) == ("4", "1", "1")
    failure = root.find(".//failure")
    assert failure is not None and failure.get("message") == "fewer GPUs allocatable than expected: 7 of 8"
    assert failure.text is not None and "fix: run this" in failure.text


def test_junit_survives_control_characters() -> None:
    ET.fromstring(junit.render(make(result("a.b", Status.FAIL, detail="\x1b[31mred\x00"))))


def test_markdown_keeps_the_table_whole() -> None:
    page = markdown.render(make(result("a.b", Status.FAIL, detail="x|y")))
    row = next(line for line in page.splitlines() if line.startswith("| fail"))
    assert "x\\|y" in row
    assert page.startswith("# FAIL a.b: ")


def test_prometheus_has_a_gauge_per_subject(failed: Run) -> None:
    lines = prometheus.render(failed).splitlines()
    assert 'gpuready_result{cluster="lab",check="gpu.allocatable",kind="node",subject="gpu-0003"} 5' in lines
    assert 'gpuready_exit_code{cluster="lab",kind="check"} 1' in lines


def test_prometheus_keeps_clusters_apart(failed: Run) -> None:
    assert failed.cluster is not None
    other = dataclasses.replace(failed, cluster=dataclasses.replace(failed.cluster, name='west "1"'))
    alone = dataclasses.replace(failed, cluster=None)
    series = [
        {line.rpartition(" ")[0] for line in prometheus.render(run).splitlines() if not line.startswith("#")}
        for run in (failed, other, alone)
    ]
    assert not series[0] & series[1] and len(series[0]) == len(failed.results) + 1
    assert 'gpuready_exit_code{cluster="west \\"1\\"",kind="check"}' in series[1]
    assert 'gpuready_exit_code{kind="check"}' in series[2]


def test_html_and_picture_show_the_answer(failed: Run) -> None:
    assert "gpu.allocatable" in html.render(failed)
    svg = html.picture(failed, "gpuready")
    assert svg.startswith("<svg") and "@font-face" not in svg


def test_a_file_appears_whole_or_not_at_all(failed: Run, tmp_path: Path) -> None:
    output.write(failed, "json", tmp_path / "run.json")
    assert json.loads((tmp_path / "run.json").read_text())["verdict"] == "fail"
    with pytest.raises(InputError, match="cannot write"):
        output.write(failed, "json", tmp_path / "missing" / "run.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.json"]


@pytest.mark.parametrize(
    ("names", "folded"),
    [
        (["gpu-0003"], "gpu-0003"),
        (["gpu-0003", "gpu-0001", "gpu-0002", "gpu-0007"], "gpu-[0001-0003,0007]"),
        (["n9", "n10"], "n9 n10"),
        (["cp", "b1"], "b1 cp"),
    ],
)
def test_fold(names: list[str], folded: str) -> None:
    assert fold(names) == folded


def test_diff_shows_what_got_worse_and_what_vanished(failed: Run) -> None:
    before = make(result("gpu.allocatable", Status.PASS), result("a.gone", Status.PASS))
    changed = {one.check: one for one in comparison.compare(before, failed).results}
    assert changed["gpu.allocatable"].status is Status.FAIL
    assert changed["gpu.allocatable"].finding.detail == "was pass: as expected"
    assert changed["a.gone"].status is Status.UNPROVEN


def test_diff_of_the_same_run_is_a_pass(failed: Run) -> None:
    assert comparison.compare(failed, failed).exit_code == 0
