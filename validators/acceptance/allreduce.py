"""NCCL all-reduce over all GPUs of all pods of an Indexed Job. Needs PyTorch, no operator and no MPI.

The first process of a pod waits for the other pods, and names those that do not come. Then it starts one process
per GPU. Each writes its NCCL debug lines to a file of its own, so that no line is torn by another; the pod prints the
files at the end, also where a rank fails or hangs. Rank 0 prints a table in the format of nccl-tests. The verdict is
the termination message.

Where GPUREADY_RAILS names NICs, each of them is measured by itself instead, all at once: one process in each pod,
on the GPU next to the NIC, with NCCL_IB_HCA set to that NIC alone.

Runs inside the probe pod from a ConfigMap, so it imports nothing of gpuready.
"""

from __future__ import annotations

import datetime
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WARMUP = 5
ITERATIONS = 20


# Exit codes beside those of the ranks: other pods did not come, and the time was up.
NOT_STARTED = 3
HUNG = 124
# How long ranks may go on when one of them has failed: to say what they saw of it.
_LAST_WORDS_SECONDS = 10
# Pods meet on the port below the ranks' own.
_ROLL_CALL = -1


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
        "repeats": int(get.get("GPUREADY_REPEATS", "1")),
        "rails": [name for name in get.get("GPUREADY_RAILS", "").split(",") if name],
        "backend": get.get("GPUREADY_BACKEND", "nccl"),
        "start": float(get.get("GPUREADY_START_SECONDS", "300")),
        "seconds": float(get.get("GPUREADY_SECONDS", "840")),
        "verdict": get.get("GPUREADY_TERMINATION_LOG", "/dev/termination-log"),
    }


def launch() -> int:
    """Start the ranks of this pod, print what they wrote, leave the verdict."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    settings = environment()
    end = time.monotonic() + settings["seconds"]
    missing = roll_call(settings) if settings["nodes"] > 1 else []
    if missing:
        print(f"# {absent(settings, missing)}", flush=True)
        return finished(settings, NOT_STARTED, {"missing": missing})
    with tempfile.TemporaryDirectory() as folder:
        ranks = []
        parts = rails(settings) or [{"GPUREADY_LOCAL_RANK": str(gpu)} for gpu in range(settings["gpus"])]
        for number, part in enumerate(parts):
            env = os.environ | {"GPUREADY_RESULT": f"{folder}/result.{number:03d}"} | part
            env["NCCL_DEBUG_FILE"] = f"{folder}/nccl.{number:03d}.log"
            ranks.append(subprocess.Popen([sys.executable, __file__], env=env))
        try:
            code, hung = waited(ranks, end)
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
            for log in sorted(Path(folder).glob("nccl.*.log")):
                sys.stdout.write(log.read_text(errors="replace"))
        # Only a whole run has a result; a rank that was killed may have left half of one.
        results = [] if code else [json.loads(file.read_text()) for file in sorted(Path(folder).glob("result.*"))]
    more: dict[str, Any] = {"ranks": settings["nodes"] * len(parts), **gathered(results)}
    if hung:
        more["hung"] = [settings["index"] * len(parts) + one for one in hung]
        print(f"# no end within {settings['seconds']:g} s: ranks {', '.join(map(str, more['hung']))}", flush=True)
    return finished(settings, code, more)


def finished(settings: dict[str, Any], code: int, more: dict[str, Any]) -> int:
    """Leave the verdict; returns the exit code of the pod."""
    verdict = {"index": settings["index"], "exit": code, **more}
    Path(settings["verdict"]).write_text(json.dumps(verdict))
    return 1 if code else 0


def waited(ranks: list[Any], end: float) -> tuple[int, list[int]]:
    """The first exit code that is not 0, and the ranks that were still running when the time was up.

    Where a rank fails the others are not waited for much longer: they may never hear of it.
    """
    code = 0
    while True:
        codes = [rank.poll() for rank in ranks]
        if not code and any(codes):
            code = next(one for one in codes if one)
            end = min(end, time.monotonic() + _LAST_WORDS_SECONDS)
        if None not in codes:
            return code, []
        if time.monotonic() > end:
            left = [number for number, one in enumerate(codes) if one is None]
            return (code, []) if code else (HUNG, left)
        time.sleep(0.2)


def roll_call(settings: dict[str, Any]) -> list[int]:
    """Wait until every pod is there; returns the indices of those that are not when the start deadline passes."""
    end = time.monotonic() + settings["start"]
    port = int(settings["port"]) + _ROLL_CALL
    if settings["index"]:
        return reported(settings["master"], port, settings["index"], end)
    return called(port, settings["nodes"], end)


def called(port: int, nodes: int, end: float) -> list[int]:
    """What the pod with index 0 does: take the others' reports, and tell each of them who is missing."""
    present: dict[int, socket.socket] = {}
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    with socket.create_server(("", port), family=family, backlog=nodes, dualstack_ipv6=dual) as server:
        while len(present) < nodes - 1 and time.monotonic() < end:
            server.settimeout(max(0.01, min(1.0, end - time.monotonic())))
            try:
                one, _ = server.accept()
                one.settimeout(5.0)
                index = int(one.makefile().readline() or -1)
            except (OSError, ValueError):
                continue
            if 0 < index < nodes:
                # A pod that lost its connection reports again.
                present[index] = one
    missing = [index for index in range(1, nodes) if index not in present]
    for one in present.values():
        try:
            one.sendall(json.dumps(missing).encode() + b"\n")
            one.close()
        except OSError:
            pass
    return missing


def reported(master: str, port: int, index: int, end: float) -> list[int]:
    """What every other pod does: report, and hear who is missing; the master itself where it cannot be reached."""
    # The master may have started later, and its word is what counts.
    limit = end + 30.0
    while time.monotonic() < limit:
        try:
            with socket.create_connection((master, port), timeout=5.0) as one:
                one.sendall(f"{index}\n".encode())
                one.settimeout(max(1.0, limit - time.monotonic()))
                return [int(other) for other in json.loads(one.makefile().readline())]
        except (OSError, ValueError):
            if time.monotonic() > end:
                break
            time.sleep(0.5)
    return [0]


def absent(settings: dict[str, Any], missing: list[int]) -> str:
    """Which ranks did not come, in words."""
    each = len(settings["rails"]) or settings["gpus"]
    ranges = {index: (index * each, index * each + each - 1) for index in missing}
    ranks = ", ".join(
        f"{first}-{last} (pod {index})" if each > 1 else f"{first}" for index, (first, last) in ranges.items()
    )
    return f"no start within {settings['start']:g} s: ranks {ranks} of {settings['nodes'] * each}"


def gathered(results: list[dict[str, Any]]) -> dict[str, Any]:
    """What the pod with rank 0 measured; by rail where each was measured by itself."""
    by_rail = {one["rail"]: one["series"] for one in results if one["rail"]}
    if by_rail:
        return {"rails": by_rail, "wrong": sum(one["wrong"] for one in results)}
    return {key: value for one in results for key, value in one.items() if key != "rail"}


def rails(settings: dict[str, Any]) -> list[dict[str, str]]:
    """What tells the process of each rail from the others: its NIC alone, the GPU next to it, a port of its own."""
    names = settings["rails"]
    gpus = settings["gpus"]
    places = gpu_places() if names and settings["backend"] == "nccl" else []
    return [
        {
            "GPUREADY_RAIL": name,
            "GPUREADY_LOCAL_RANK": str(nearest(nic_place(name), places, number * gpus // len(names))),
            "GPUREADY_PORT": str(int(settings["port"]) + 1 + number),
            # "=" asks for this very name, where mlx5_1 alone would mean mlx5_10, too.
            "NCCL_IB_HCA": f"={name}",
        }
        for number, name in enumerate(names)
    ]


def gpu_places() -> list[str]:
    """Where each GPU hangs, as a path of PCI devices."""
    command = ["nvidia-smi", "--query-gpu=pci.bus_id", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return []
    # nvidia-smi writes domains with eight digits, the kernel with four.
    return [os.path.realpath(f"/sys/bus/pci/devices/{bus_id.lower()[-12:]}") for bus_id in found]


def nic_place(name: str) -> str:
    """Where an RDMA device hangs, as a path of PCI devices."""
    return os.path.realpath(f"/sys/class/infiniband/{name}/device")


def nearest(nic: str, gpus: list[str], otherwise: int) -> int:
    """The GPU that shares most of its PCI path with the NIC; ``otherwise`` where none shares more than the others."""
    shared = [len(os.path.commonpath([nic, gpu])) for gpu in gpus]
    best = [number for number, length in enumerate(shared) if length == max(shared)]
    return best[0] if best and len(best) < len(gpus) and otherwise not in best else otherwise


def rank() -> None:
    """One process's part: join the group, measure each size, and on rank 0 print the table."""
    import torch
    import torch.distributed as dist

    settings = environment()
    local = int(os.environ["GPUREADY_LOCAL_RANK"])
    rail = os.environ.get("GPUREADY_RAIL", "")
    # A rail has one process in each pod.
    each, place = (1, 0) if rail else (settings["gpus"], local)
    world = settings["nodes"] * each
    me = settings["index"] * each + place
    on_gpu = settings["backend"] == "nccl"
    if on_gpu:
        torch.cuda.set_device(local)
    device = torch.device("cuda", local) if on_gpu else torch.device("cpu")
    dist.init_process_group(
        settings["backend"],
        init_method=f"tcp://{settings['master']}:{settings['port']}",
        rank=me,
        world_size=world,
        timeout=datetime.timedelta(seconds=settings["seconds"]),
    )
    if me == 0:
        header(settings, world)
    size = settings["smallest"]
    rates: list[float] = []
    wrong_total = 0
    sizes = []
    while size <= settings["largest"]:
        sizes += [size] * settings["repeats"]
        size *= 2
    for size in sizes:
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
    if me == 0:
        print(f"# Out of bounds values : {wrong_total} {'OK' if wrong_total == 0 else 'FAILED'}")
        print(f"# Avg bus bandwidth    : {sum(rates) / len(rates):g}\n#", flush=True)
        series = [round(rate, 2) for rate in rates[-settings["repeats"] :]]
        result = {"rail": rail, "busbw_gbytes_s": series[-1], "series": series, "wrong": wrong_total}
        Path(os.environ["GPUREADY_RESULT"]).write_text(json.dumps(result))
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
    # A barrier of our own, since dist.barrier may take the rank for the number of the GPU.
    dist.all_reduce(wrong.clone())
    finish(torch, device)
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
