"""The command that keeps what a real GPU prints, as far as it runs without one."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from gpuready.rehearsal.outputs import smi

SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "real_gpu.py"


@pytest.fixture(scope="module")
def real_gpu() -> ModuleType:
    """The script, which is in no package."""
    spec = importlib.util.spec_from_file_location("bench_real_gpu", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def xml() -> str:
    """What nvidia-smi prints of one board."""
    gpu = smi.Gpu(
        0, "GPU-6a2f41d0-1b7c-4c1e-9d9f-2f4f5a0b7c11", "NVIDIA H200", "00000000:1B:00.0", 143771, "1653223004711"
    )
    return smi.xml([gpu], "580.173.02", "13.0")


@pytest.fixture
def shim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An nvidia-smi of one GPU."""
    (tmp_path / "xml").write_text(xml())
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(
        '#!/bin/sh\ncase "$*" in\n'
        f"*-x*) cat '{tmp_path}/xml';;\n*query-gpu=index*) echo 0;;\n"
        "*query-gpu=name*) echo NVIDIA H200;;\n*query-gpu=driver*) echo 580.173.02;;\n*) echo table;;\nesac\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


def test_what_names_this_very_board_is_replaced(real_gpu: ModuleType) -> None:
    more = "<pdi>0x5a</pdi><chassis_serial_number>77</chassis_serial_number><gpu_fabric_guid>0x1</gpu_fabric_guid>"
    text = real_gpu.redacted(xml() + xml() + more)
    assert text.endswith(
        "<pdi>0</pdi><chassis_serial_number>0</chassis_serial_number><gpu_fabric_guid>0</gpu_fabric_guid>"
    )
    assert "6a2f41d0" not in text and "1653223004711" not in text
    assert text.count("GPU-00000000-0000-0000-0000-000000000000") == 2
    assert "<product_name>NVIDIA H200</product_name>" in text


def test_nvidia_smi_and_its_probe_are_kept(real_gpu: ModuleType, shim: None, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert real_gpu.smi(out) == []
    assert json.loads((out / "smi.json").read_text()) == {
        "exit": 0, "gpus": 1, "product": "NVIDIA H200", "driver": "580.173.02",
    }  # fmt: skip
    for name in ("nvidia-smi.xml", "smi.log"):
        assert "<nvidia_smi_log>" in (out / name).read_text()


def test_without_a_gpu_it_says_so_in_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path / "out")],
        env={"PATH": str(tmp_path)}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "real_gpu: nvidia-smi is not here; run this on a machine with an NVIDIA GPU\n"
    assert not (tmp_path / "out").exists()
