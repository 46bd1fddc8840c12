"""NCCL all-reduce over all GPUs of all pods of an Indexed Job. Needs PyTorch, no operator and no MPI.

The first process of a pod starts one process per GPU. Each writes its NCCL debug lines to a file of its own,
so that no line is torn by another; the pod prints the files at the end. Rank 0 prints a table in the format
of nccl-tests. The verdict is the termination message.

Runs inside the probe pod from a ConfigMap, so it imports nothing of gpuready.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WARMUP = 5
ITERATIONS = 20


def environment() -> dict[str, Any]:
    """The settings, from the variables that the manifest sets."""
    get = os.environ
    return {
        "index": int(get.get("JOB_COMPLETION_INDEX", "0")),
        "nodes": int(get["GPUREADY_NODES"]),
        "gpus": int(get["GPUREADY_GPUS"]),
        "master": get["GPUREADY_MASTER"],
        "port": get["GPUREADY_PORT"],
        "smallest": int(get["GPUREADY_MIN_BYTES"]),
        "largest": int(get["GPUREADY_MAX_BYTES"]),
        "backend": get.get("GPUREADY_BACKEND", "nccl"),
        "verdict": get.get("GPUREADY_TERMINATION_LOG", "/dev/termination-log"),
    }


def launch() -> int:
    """Start the ranks of this pod, print what they wrote, leave the verdict."""
    settings = environment()
    with tempfile.TemporaryDirectory() as folder:
        ranks = []
        for local in range(settings["gpus"]):
            env = os.environ | {"GPUREADY_LOCAL_RANK": str(local), "GPUREADY_RESULT": f"{folder}/result"}
            env["NCCL_DEBUG_FILE"] = f"{folder}/nccl.{local:03d}.log"
            ranks.append(subprocess.Popen([sys.executable, __file__], env=env))
        codes = [rank.wait() for rank in ranks]
        for log in sorted(Path(folder).glob("nccl.*.log")):
            sys.stdout.write(log.read_text(errors="replace"))
        result = Path(folder, "result")
        found = json.loads(result.read_text()) if result.exists() else {}
    code = next((code for code in codes if code), 0)
    verdict = {
        "index": settings["index"],
        "exit": code,
        "ranks": settings["nodes"] * settings["gpus"],
        **found,
    }
    Path(settings["verdict"]).write_text(json.dumps(verdict))
    return 1 if code else 0


def rank() -> None:
    """One GPU's part: join the group, measure each size, and on rank 0 print the table."""
    import torch
    import torch.distributed as dist

    settings = environment()
    local = int(os.environ["GPUREADY_LOCAL_RANK"])
    world = settings["nodes"] * settings["gpus"]
    me = settings["index"] * settings["gpus"] + local
    on_gpu = settings["backend"] == "nccl"
    if on_gpu:
        torch.cuda.set_device(local)
    device = torch.device("cuda", local) if on_gpu else torch.device("cpu")
    dist.init_process_group(
        settings["backend"],
        init_method=f"tcp://{settings['master']}:{settings['port']}",
        rank=me,
        world_size=world,
    )
    if me == 0:
        header(settings, world)
    size = settings["smallest"]
    rates: list[float] = []
    wrong_total = 0
    while size <= settings["largest"]:
        seconds, wrong = measure(dist, torch, device, size, world)
        algorithm = size / seconds / 1e9
        bus = algorithm * 2 * (world - 1) / world
        rates.append(bus)
        wrong_total += wrong
        if me == 0:
            print(
                f"{size:>13} {size // 4:>12}     float     sum      -1 "
                f"{seconds * 1e6:9.1f} {algorithm:7.2f} {bus:7.2f} {wrong:>6}",
                flush=True,
            )
        size *= 2
    if me == 0:
        print(f"# Out of bounds values : {wrong_total} {'OK' if wrong_total == 0 else 'FAILED'}")
        print(f"# Avg bus bandwidth    : {sum(rates) / len(rates):g}\n#", flush=True)
        Path(os.environ["GPUREADY_RESULT"]).write_text(json.dumps({"busbw_gbytes_s": round(rates[-1], 2)}))
    dist.destroy_process_group()


def header(settings: dict[str, Any], world: int) -> None:
    """The head of an nccl-tests table, out-of-place half only: PyTorch reduces in place."""
    print(
        f"# nThread 1 nGpus 1 minBytes {settings['smallest']} maxBytes {settings['largest']} step: 2(factor) "
        f"warmup iters: {WARMUP} iters: {ITERATIONS} agg iters: 1 validation: 1 graph: 0\n#\n"
        f"# gpuready all-reduce, {world} ranks\n"
        "#       size         count      type   redop    root     time   algbw   busbw #wrong\n"
        "#        (B)    (elements)                               (us)  (GB/s)  (GB/s)       ",
        flush=True,
    )


def measure(dist: Any, torch: Any, device: Any, size: int, world: int) -> tuple[float, int]:
    """Seconds per all-reduce of ``size`` bytes, and how many elements came out wrong on any rank."""
    count = size // 4
    data = torch.ones(count, dtype=torch.float32, device=device)
    dist.all_reduce(data)
    # Each rank gave ones, so every element must be the number of ranks, exactly.
    wrong = (data != float(world)).sum().to(torch.int64).reshape(1)
    dist.all_reduce(wrong, op=dist.ReduceOp.MAX)
    data.fill_(0.0)
    for _ in range(WARMUP):
        dist.all_reduce(data)
    finish(torch, device)
    dist.barrier()
    start = time.perf_counter()
    for _ in range(ITERATIONS):
        dist.all_reduce(data)
    finish(torch, device)
    spent = torch.tensor([(time.perf_counter() - start) / ITERATIONS], dtype=torch.float64, device=device)
    # The slowest rank is the one that a job waits for.
    dist.all_reduce(spent, op=dist.ReduceOp.MAX)
    return spent.item(), int(wrong.item())


def finish(torch: Any, device: Any) -> None:
    """Wait for the device: CUDA calls return before they are done."""
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    if "GPUREADY_LOCAL_RANK" in os.environ:
        rank()
    else:
        sys.exit(launch())
