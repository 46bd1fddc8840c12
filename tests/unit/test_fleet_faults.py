"""The catalogue of faults and the file that says what is broken."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from gpuready.charts_values.errors import DeadlineError, InputError
from gpuready.rehearsal import faults
from gpuready.rehearsal.actors import dra, network_operator, operands
from gpuready.rehearsal.faults import edits, record
from gpuready.rehearsal.fleet import Hardware, hardware, load_profile
from gpuready.rehearsal.state import State

ON_NODES = [fault for fault in faults.catalogue() if fault.truth]
FITTING = [
    pytest.param(fault, profile, id=f"{fault.name}-{profile}")
    for fault in ON_NODES
    for profile in ("h100-ib", "cloud-vm")
    if fault.lacks(load_profile(profile)) is None
]


def state_of(folder: Path, nodes: int, profile: str = "h100-ib") -> Path:
    """A state folder as `up` leaves it; nothing runs."""
    folder.mkdir(exist_ok=True)
    names = tuple(f"gpu-{index:04d}" for index in range(nodes))
    State(folder, profile, names, {"kube-apiserver": 1, "kwok": 2}, folder / "data", entry={"rehearsal": True}).save()
    return folder


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    """A state folder of five nodes."""
    return state_of(tmp_path / "state", 5)


# -- the catalogue ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", faults.catalogue(), ids=lambda fault: fault.name)
def test_every_fault_says_what_it_breaks_and_what_finds_it(fault: faults.Fault) -> None:
    assert len(fault.name) <= 21 and len(fault.title) <= 51, "the list of faults has these columns"
    assert fault.breaks and "\n" not in fault.breaks
    assert all("." in check for check in (fault.finding, *fault.follows))
    assert fault.finding not in fault.follows
    assert (fault.truth is None) != (fault.edits is None)
    assert fault.scope == "node" or fault.truth is None


def test_names_are_unique_and_every_subject_has_some() -> None:
    rows = [fault.name for faults_of_one in faults.SUBJECTS.values() for fault in faults_of_one]
    assert rows == [fault.name for fault in faults.catalogue()]
    assert len(set(rows)) == len(rows) > 30
    assert all(faults.SUBJECTS.values())


@pytest.mark.parametrize(("fault", "profile"), FITTING)
def test_a_fault_changes_the_truth_of_its_node_alone(fault: faults.Fault, profile: str) -> None:
    model = load_profile(profile)
    hit, other = hardware(model, "gpu-0001"), hardware(model, "gpu-0002")
    now = {fault.name: "gpu-0001"}
    assert faults.broken(hit, now) != hit
    assert faults.broken(other, now) == other
    assert faults.broken(hit, {}) == hit


def test_pods_in_trouble_are_pods_that_the_actors_play() -> None:
    played = {*operands.BY_ROLE, *(one.role for one in network_operator.COMPONENTS), dra.ROLE}
    truth = hardware(load_profile("h100-ib"), "gpu-0001")
    roles = {role for fault in ON_NODES for role in faults.broken(truth, {fault.name: truth.node}).broken}
    assert roles and roles <= played


def test_gpu_missing_takes_one_gpu() -> None:
    truth = faults.broken(hardware(load_profile("h100-ib"), "gpu-0001"), {"gpu-missing": "gpu-0001"})
    assert [gpu.index for gpu in truth.gpus] == list(range(7))


def test_faults_of_one_node_add_up() -> None:
    truth = hardware(load_profile("h100-ib"), "gpu-0001")
    both = faults.broken(truth, {"gfd-broken": truth.node, "image-pull": truth.node, "mofed-wait": truth.node})
    assert set(both.broken) == {"gpu.gfd", "gpu.dcgmExporter"} and both.mofed_wait
    assert truth == Hardware(truth.node, truth.gpus, truth.nics, rdma=True, gdr=True, product=truth.product)


# -- inject and heal ----------------------------------------------------------------------------------------


def test_inject_and_heal(state_dir: Path) -> None:
    assert faults.active(state_dir) == {}
    before = (state_dir / "state.json").read_bytes()
    assert faults.inject(state_dir, "gpu-missing") == "gpu-0003"
    assert faults.inject(state_dir, "tcp-fallback", "gpu-0001") == "gpu-0001"
    assert faults.active(state_dir) == {"gpu-missing": "gpu-0003", "tcp-fallback": "gpu-0001"}
    assert json.loads((state_dir / "faults.json").read_text())["gpu-missing"] == {"node": "gpu-0003"}
    assert faults.heal(state_dir, "gpu-missing") == "gpu-0003"
    assert faults.active(state_dir) == {"tcp-fallback": "gpu-0001"}
    assert [file.name for file in state_dir.iterdir() if file.name.endswith(".new")] == []
    assert (state_dir / "state.json").read_bytes() == before


def test_injecting_twice_is_fine_on_one_node_and_refused_on_another(state_dir: Path) -> None:
    faults.inject(state_dir, "gpu-missing", "gpu-0001")
    assert faults.inject(state_dir, "gpu-missing", "gpu-0001") == "gpu-0001"
    with pytest.raises(InputError, match="gpu-missing is injected on gpu-0001 already; heal it first"):
        faults.inject(state_dir, "gpu-missing", "gpu-0002")


def test_a_small_fleet_is_hit_on_its_last_node(tmp_path: Path) -> None:
    assert faults.inject(state_of(tmp_path, 2), "gpu-missing") == "gpu-0001"


def test_mistakes_are_named(state_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no fault 'gpu-misssing'; there are node-missing, .*gpu-missing, "):
        faults.inject(state_dir, "gpu-misssing")
    with pytest.raises(InputError, match="no GPU node 'gpu-9999' in this rehearsal; it has gpu-0000 to gpu-0004"):
        faults.inject(state_dir, "gpu-missing", "gpu-9999")
    with pytest.raises(InputError, match="nfd-absent breaks the whole cluster; leave --node out"):
        faults.inject(state_dir, "nfd-absent", "gpu-0001")
    with pytest.raises(InputError, match="gpu-missing is not injected; injected now: nothing"):
        faults.heal(state_dir, "gpu-missing")
    with pytest.raises(InputError, match="no rehearsal cluster is up in"):
        faults.inject(tmp_path / "elsewhere", "gpu-missing")


@pytest.mark.parametrize(
    ("name", "lacks"), [("tcp-fallback", "RDMA rails"), ("rdma-missing", "RDMA rails"), ("dra-too-old", "DRA")]
)
def test_what_the_profile_has_not_cannot_be_broken(tmp_path: Path, name: str, lacks: str) -> None:
    with pytest.raises(InputError, match=f"{name} needs {lacks}, which profile cloud-vm has not"):
        faults.inject(state_of(tmp_path, 2, "cloud-vm"), name)
    assert faults.active(tmp_path) == {}


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"gpu-missing": {}}',
        '{"no-such-fault": {"node": "gpu-0000"}}',
        '{"nfd-absent": {"node": "", "undo": [{"action": "explode", "path": "/", "body": {}}]}}',
        '{"nfd-absent": {"node": "", "undo": {"0": 1}}}',
    ],
)
def test_a_damaged_file_is_named(state_dir: Path, text: str) -> None:
    (state_dir / "faults.json").write_text(text)
    with pytest.raises(InputError, match=r"faults\.json is damaged .*; gpuready rehearse down, then up, starts afresh"):
        faults.active(state_dir)


# -- changes that can be taken back -------------------------------------------------------------------------


def test_a_patch_is_taken_back_field_by_field() -> None:
    before = {"metadata": {"name": "a", "labels": {"kept": "1", "old": "2"}}, "spec": {"list": [1, 2]}}
    body = {"metadata": {"labels": {"old": "3", "new": "4"}}, "spec": {"list": [5], "flag": {"deep": True}}}
    edit = edits.patch("/a", body, before)
    assert edit.undo is not None
    assert edit.undo.body == {"metadata": {"labels": {"old": "2", "new": None}}, "spec": {"list": [1, 2], "flag": None}}


def test_a_deleted_object_comes_back_as_a_client_would_send_it() -> None:
    meta = {"name": "a", "namespace": "b", "uid": "1", "resourceVersion": "2", "labels": {"c": "d"}, "generation": 3}
    edit = edits.delete("/a", {"kind": "A", "metadata": meta, "spec": {"e": 1}, "status": {"ready": True}})
    assert edit.undo is not None and edit.undo.action == "create"
    kept = {"name": "a", "namespace": "b", "labels": {"c": "d"}}
    assert edit.undo.body == {"kind": "A", "metadata": kept, "spec": {"e": 1}}


def test_the_record_keeps_what_takes_a_fault_back(state_dir: Path) -> None:
    undo = (edits.Edit("patch", "/a", {"spec": None}), edits.Edit("delete", "/b", {}))
    written = {"nfd-absent": record.Injected("", undo, half=True), "gpu-missing": record.Injected("gpu-0001")}
    record.write(state_dir, written)
    assert record.read(state_dir) == written
    assert faults.active(state_dir) == {"nfd-absent": "", "gpu-missing": "gpu-0001"}


# -- settle -------------------------------------------------------------------------------------------------


def test_settle_returns_once_the_cluster_rests_and_shows_it(state_dir: Path) -> None:
    faults.inject(state_dir, "gpu-missing")
    with pytest.raises(DeadlineError, match=r"the simulated fleet did not take it up in 0\.2 s"):
        faults.settle(state_dir, 0.2)
    long_ago = time.monotonic() - 60
    for said in (
        faults.Shown({}, long_ago),
        faults.Shown({"gpu-missing": "gpu-0003"}, None),
        faults.Shown({"gpu-missing": "gpu-0003"}, long_ago, moving=True),
    ):
        faults.acknowledge(state_dir, said)
        with pytest.raises(DeadlineError):
            faults.settle(state_dir, 1.0)
    faults.acknowledge(state_dir, faults.Shown({"gpu-missing": "gpu-0003"}, long_ago))
    began = time.monotonic()
    faults.settle(state_dir, 5.0)
    # What was quiet before says nothing of what the command has changed.
    assert time.monotonic() - began >= 0.5
