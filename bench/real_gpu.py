"""Runs gpuready's own probes on the GPU at hand and keeps what they print, as fixtures with their provenance.

    .venv/bin/python bench/real_gpu.py OUT [--python P]

OUT is a new folder; nvidia-smi must be there and, for the all-reduce, a Python P that has PyTorch with CUDA.

No cluster takes part. OUT then holds: nvidia-smi.xml (`nvidia-smi -q -x`, serial numbers and UUIDs replaced), smi.log
and smi.json (the acceptance's script and its verdict), single.log and single.json (the all-reduce over the GPUs of this
machine), pair.log and pair.json (two pods that share one GPU, with P2P and SHM off and a host id each, so that NCCL
takes a network), and provenance.json, which also says what could not be run. Exit code 1 where gpuready cannot read
what came, 2 where there is no GPU.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpuready.validators import nccl
from gpuready.validators.acceptance import allreduce, manifests

SECONDS = 300
SCRIPT = Path(allreduce.__file__)
_UNIQUE = re.compile(
    r"(GPU-|MIG-)[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|(<(?:\w*serial\w*|\w*guid|pdi|board_id)>)[^<]*"
)


def main() -> int:
    """Run everything that this machine can; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--python", default=sys.executable, help="an interpreter that has PyTorch (default: this one)")
    args = parser.parse_args()
    out: Path = args.out
    if shutil.which("nvidia-smi") is None:
        print("real_gpu: nvidia-smi is not here; run this on a machine with an NVIDIA GPU", file=sys.stderr)
        return 2
    if out.exists():
        print(f"real_gpu: {out} exists; name a new folder", file=sys.stderr)
        return 2
    out.mkdir(parents=True)
    about: dict[str, Any] = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", "bench/real_gpu.py", "OUT"]),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "gpus": said("nvidia-smi", "--query-gpu=name,driver_version,vbios_version", "--format=csv,noheader"),
        "torch": said(args.python, "-c", "import torch; print(torch.__version__, torch.version.cuda)"),
        "not_run": [],
    }
    problems = smi(out)
    if not about["torch"]:
        about["not_run"].append("all-reduce: PyTorch is not installed")
    else:
        count = len(about["gpus"].splitlines())
        problems += all_reduce(args.python, out, "single", [{"GPUREADY_NODES": "1", "GPUREADY_GPUS": str(count)}])
        apart = {"NCCL_P2P_DISABLE": "1", "NCCL_SHM_DISABLE": "1", "GPUREADY_NODES": "2", "GPUREADY_GPUS": "1"}
        # Without a host id each, NCCL refuses two ranks on one GPU.
        pods = [{**apart, "NCCL_HOSTID": f"pod-{index}", "JOB_COMPLETION_INDEX": str(index)} for index in range(2)]
        problems += all_reduce(args.python, out, "pair", pods)
    about["problems"] = problems
    (out / "provenance.json").write_text(json.dumps(about, indent=1) + "\n")
    for one in [*problems, *about["not_run"]]:
        print(f"real_gpu: {one}", file=sys.stderr)
    print(f"kept in {out}: {', '.join(sorted(file.name for file in out.iterdir()))}")
    return 1 if problems else 0


def said(*command: str) -> str:
    """What a command prints; empty where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def redacted(text: str) -> str:
    """The text without what names this very board."""
    known: dict[str, str] = {}

    def stand_in(match: re.Match[str]) -> str:
        if match[2]:
            return f"{match[2]}0"
        number = known.setdefault(match[0], f"{len(known):012x}")
        return f"{match[1]}00000000-0000-0000-0000-{number}"

    return _UNIQUE.sub(stand_in, text)


def smi(out: Path) -> list[str]:
    """nvidia-smi as it is, and through the script of the acceptance; returns what was wrong."""
    done = subprocess.run(["nvidia-smi", "-q", "-x"], capture_output=True, text=True, timeout=SECONDS, check=False)
    (out / "nvidia-smi.xml").write_text(redacted(done.stdout))
    env = os.environ | {"GPUREADY_TERMINATION_LOG": str((out / "smi.json").absolute())}
    probe = subprocess.run(
        ["sh", "-c", manifests.smi_script()], env=env, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    (out / "smi.log").write_text(redacted(probe.stdout + probe.stderr))
    found = []
    if done.returncode or "<nvidia_smi_log>" not in done.stdout:
        found.append(f"nvidia-smi -q -x ended with {done.returncode}")
    if probe.returncode or not json.loads((out / "smi.json").read_text()).get("gpus"):
        found.append(f"the acceptance's nvidia-smi script ended with {probe.returncode}")
    return found


def all_reduce(python: str, out: Path, name: str, pods: Sequence[Mapping[str, str]]) -> list[str]:
    """The acceptance's all-reduce script as these pods; returns what was wrong with what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        running = []
        for number, pod in enumerate(pods):
            env = {
                "NCCL_DEBUG": "INFO",
                "NCCL_DEBUG_SUBSYS": "INIT,BOOTSTRAP,ENV,NET,GRAPH",
                "GPUREADY_MASTER": "127.0.0.1",
                "GPUREADY_PORT": str(manifests.RENDEZVOUS_PORT),
                "GPUREADY_MIN_BYTES": str(1 << 20),
                "GPUREADY_MAX_BYTES": str(1 << 28),
                "GPUREADY_START_SECONDS": "60",
                "GPUREADY_SECONDS": str(SECONDS - 30),
                "GPUREADY_TERMINATION_LOG": f"{folder}/verdict.{number}",
                **pod,
            }
            running.append(
                subprocess.Popen(
                    [python, str(SCRIPT)],
                    env=os.environ | env,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
        try:
            logs = [one.communicate(timeout=SECONDS)[0] for one in running]
        finally:
            for one in running:
                one.kill()
        files = sorted(Path(folder).glob("verdict.*"))
        verdicts = [json.loads(file.read_text()) for file in files]
    (out / f"{name}.log").write_text("".join(logs))
    (out / f"{name}.json").write_text(json.dumps(verdicts, indent=1) + "\n")
    report = nccl.read([io.StringIO(text) for text in logs])
    found = [f"{name}: pod {index} ended with {one.returncode}" for index, one in enumerate(running) if one.returncode]
    if report.ranks is None or report.benchmark is None:
        found.append(f"{name}: gpuready reads no ranks or no table in the log")
    elif not report.complete:
        found.append(f"{name}: gpuready calls the log incomplete: {'; '.join(report.incomplete)}")
    return found


if __name__ == "__main__":
    sys.exit(main())
