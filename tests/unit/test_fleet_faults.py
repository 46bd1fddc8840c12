"""The catalogue of faults and the file that says what is broken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gpuready.charts_values.errors import InputError
from gpuready.rehearsal import faults
from gpuready.rehearsal.fleet import hardware, load_profile


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    """A state folder of five nodes."""
    names = [f"gpu-{index:04d}" for index in range(5)]
    (tmp_path / "state.json").write_text(json.dumps({"nodes": names}))
    return tmp_path


def test_every_fault_says_what_it_breaks_and_what_finds_it() -> None:
    names = [fault.name for fault in faults.catalogue()]
    assert names == ["gpu-missing", "tcp-fallback"]
    for fault in faults.catalogue():
        assert fault.title
        assert fault.breaks
        assert "." in fault.finding


@pytest.mark.parametrize("fault", faults.catalogue(), ids=lambda fault: fault.name)
def test_a_fault_changes_the_truth_of_its_node_alone(fault: faults.Fault) -> None:
    profile = load_profile("h100-ib")
    hit, other = hardware(profile, "gpu-0001"), hardware(profile, "gpu-0002")
    now = {fault.name: "gpu-0001"}
    assert faults.broken(hit, now) != hit
    assert faults.broken(other, now) == other
    assert faults.broken(hit, {}) == hit


def test_gpu_missing_takes_one_gpu() -> None:
    truth = faults.broken(hardware(load_profile("h100-ib"), "gpu-0001"), {"gpu-missing": "gpu-0001"})
    assert [gpu.index for gpu in truth.gpus] == list(range(7))


def test_inject_and_heal(state_dir: Path) -> None:
    assert faults.active(state_dir) == {}
    assert faults.inject(state_dir, "gpu-missing") == "gpu-0003"
    assert faults.inject(state_dir, "tcp-fallback", "gpu-0001") == "gpu-0001"
    assert faults.active(state_dir) == {"gpu-missing": "gpu-0003", "tcp-fallback": "gpu-0001"}
    assert json.loads((state_dir / "faults.json").read_text())["gpu-missing"] == {"node": "gpu-0003"}
    assert faults.heal(state_dir, "gpu-missing") == "gpu-0003"
    assert faults.active(state_dir) == {"tcp-fallback": "gpu-0001"}
    assert [file.name for file in state_dir.iterdir() if file.name.endswith(".new")] == []


def test_injecting_twice_is_fine_on_one_node_and_refused_on_another(state_dir: Path) -> None:
    faults.inject(state_dir, "gpu-missing", "gpu-0001")
    assert faults.inject(state_dir, "gpu-missing", "gpu-0001") == "gpu-0001"
    with pytest.raises(InputError, match="gpu-missing is injected on gpu-0001 already; heal it first"):
        faults.inject(state_dir, "gpu-missing", "gpu-0002")


def test_a_small_fleet_is_hit_on_its_last_node(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(json.dumps({"nodes": ["gpu-0000", "gpu-0001"]}))
    assert faults.inject(tmp_path, "gpu-missing") == "gpu-0001"


def test_mistakes_are_named(state_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no fault 'gpu-misssing'; there are gpu-missing, tcp-fallback"):
        faults.inject(state_dir, "gpu-misssing")
    with pytest.raises(InputError, match="no GPU node 'gpu-9999' in this rehearsal; it has gpu-0000 to gpu-0004"):
        faults.inject(state_dir, "gpu-missing", "gpu-9999")
    with pytest.raises(InputError, match="gpu-missing is not injected; injected now: nothing"):
        faults.heal(state_dir, "gpu-missing")
    with pytest.raises(InputError, match="no rehearsal cluster is up in"):
        faults.inject(tmp_path / "elsewhere", "gpu-missing")


@pytest.mark.parametrize("text", ["{", "[]", '{"gpu-missing": {}}', '{"no-such-fault": {"node": "gpu-0000"}}'])
def test_a_damaged_file_is_named(state_dir: Path, text: str) -> None:
    (state_dir / "faults.json").write_text(text)
    with pytest.raises(InputError):
        faults.active(state_dir)
