"""What a played pod says and how it ends: pure functions of the pod and of the truth of its node.

One thing is not pure: gpuready's own nvidia-smi probe is run for real, against an nvidia-smi that prints what
the node has. No other script of a pod is ever run.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
import threading
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import files
from pathlib import Path

from gpuready.charts_values.errors import InputError
from gpuready.charts_values.kube import Object

from ..fleet import Gpu, Hardware
from ..outputs import nccl, smi
from ..profile import Profile

RESOURCE = "nvidia.com/gpu"
_PROBE = files("gpuready.validators.acceptance") / "smi.sh"
# Seconds that the probe's script may take; it prints a few files.
_PATIENCE = 60
_STARTING = threading.Lock()
_MOST_MESSAGE = 4096
_NO_DEVICES = 6
_CUDA = {"535": "12.2", "550": "12.4", "570": "12.8", "575": "12.9", "580": "13.0"}
_CALL = re.compile(r"nvidia-smi((?:[ \t]+-[^\s;|&>\"')]+)*)")


@dataclass(frozen=True)
class Outcome:
    """Exit code, log and termination message of a pod's first container."""

    exit_code: int
    log: str
    message: str = ""


@dataclass(frozen=True)
class Smi:
    """What nvidia-smi sees inside a pod: the GPUs that it was given, the node's driver and NVLink domain, and the
    GPUs' name where it is not the profile's.
    """

    gpus: tuple[Gpu, ...]
    driver: str
    profile: Profile
    product: str = ""
    clique: str = ""

    def answer(self, arguments: Sequence[str]) -> Outcome:
        """What nvidia-smi prints when it is called so."""
        gpus = self._visible()
        driver, cuda = self.driver, _CUDA.get(self.driver.split(".")[0], self.profile.driver.cuda)
        query = [one.partition("=")[2] for one in arguments if one.startswith(("--query-gpu=", "--query="))]
        try:
            if query:
                form = " ".join(arguments)
                header, units = "noheader" not in form, "nounits" not in form
                text = smi.query(gpus, driver, query[0].split(","), units=units, header=header)
            elif {"-q", "-x"} <= set(arguments):
                text = smi.xml(gpus, driver, cuda)
            elif set(arguments) & {"-L", "--list-gpus"}:
                text = smi.listing(gpus)
            else:
                text = smi.text(gpus, driver, cuda)
        except InputError as error:
            return Outcome(2, f"{error}\n")
        return Outcome(0 if gpus else _NO_DEVICES, text)

    def _visible(self) -> list[smi.Gpu]:
        model = self.profile.gpus
        name = self.product or model.name
        return [
            smi.Gpu(index, gpu.uuid, name, gpu.bus_id, model.memory_mib, gpu.serial, self.clique)
            for index, gpu in enumerate(self.gpus)
        ]


def given(pod: Object, hardware: Hardware) -> tuple[Gpu, ...]:
    """The GPUs that a pod was given through nvidia.com/gpu: as many as it asks for and the node has."""
    return hardware.gpus[: requested(pod, RESOURCE)]


def requested(pod: Object, prefix: str) -> int:
    """How many devices with this name, or prefix ending in a slash, the pod's containers ask for."""
    total = 0
    for container in pod["spec"]["containers"]:
        for name, count in (container.get("resources", {}).get("limits") or {}).items():
            if name == prefix or (prefix.endswith("/") and name.startswith(prefix)):
                total += int(count)
    return total


def command(pod: Object) -> list[str]:
    """Command and arguments of the first container."""
    first = pod["spec"]["containers"][0]
    return [*(first.get("command") or ()), *(first.get("args") or ())]


def calls_smi(pod: Object) -> bool:
    """Whether the command mentions nvidia-smi."""
    return any("nvidia-smi" in part for part in command(pod))


def unknown(pod: Object) -> Outcome:
    """A pod whose program the rehearsal does not know succeeds, and its log says why."""
    image = pod["spec"]["containers"][0].get("image", "its program")
    return Outcome(0, f"simulated: {image} is not run in a rehearsal; it counts as done\n")


def smi_call(pod: Object, view: Smi) -> Outcome:
    """A pod that calls nvidia-smi on its own account: the text for each call in its command."""
    calls = [match.group(1).split() for match in _CALL.finditer(" ".join(command(pod)))]
    answers = [view.answer(call) for call in calls] or [view.answer(())]
    return Outcome(answers[-1].exit_code, "".join(one.log for one in answers))


def smi_probe(pod: Object, view: Smi, folder: Path) -> Outcome:
    """Run gpuready's nvidia-smi probe; ``folder`` is where its files may live meanwhile.

    A script that differs from the shipped one by a byte is not run.
    """
    script = command(pod)
    text = _PROBE.read_text()
    if script != ["sh", "-c", text]:
        return Outcome(126, "simulated: the command is not gpuready's own probe and is not run\n")
    with tempfile.TemporaryDirectory(dir=folder, prefix="smi-") as made:
        shim = Path(made)
        ended = shim / "termination-log"
        # A program that is open for writing cannot be run, and a process that starts meanwhile would keep it open.
        with _STARTING:
            _write_shim(shim, text, view)
            process = subprocess.Popen(
                ["/bin/sh", "-c", text],
                cwd=shim,
                env={"PATH": f"{shim}:/usr/bin:/bin", "GPUREADY_TERMINATION_LOG": str(ended), "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        with process:
            try:
                said, _ = process.communicate(timeout=_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                return Outcome(137, f"simulated: the probe did not end within {_PATIENCE} s\n")
        message = ended.read_text()[:_MOST_MESSAGE] if ended.is_file() else ""
    return Outcome(process.returncode, said.decode(errors="replace"), message)


def claim_probe(view: Smi) -> Outcome:
    """The probe of a DRA claim: nvidia-smi -L of the devices that were allocated to it."""
    answer = view.answer(("-L",))
    message = json.dumps({"exit": answer.exit_code, "gpus": len(view.gpus)})
    return Outcome(answer.exit_code, answer.log, message)


def nccl_probe(
    pods: Sequence[Object], hosts: Sequence[nccl.Host], job_uid: str, settings: Mapping[str, str]
) -> dict[str, Outcome]:
    """The all-reduce of an indexed Job, by the uid of the pod; ``pods`` and ``hosts`` in the order of their index.

    ``settings`` are the cluster's own for NCCL, which every rank echoes. Those have an effect that choose NICs or
    take RDMA or GPUDirect RDMA away.
    """
    env = {**settings, **_env(pods[0])}
    rails = [name for name in env.get("GPUREADY_RAILS", "").split(",") if name]
    hosts = [_set(nccl.narrowed(host, env.get("NCCL_IB_HCA", "")), env) for host in hosts]
    style = nccl.Style(env={name: value for name, value in settings.items() if name.startswith("NCCL_")})
    try:
        least, most = int(env.get("GPUREADY_MIN_BYTES") or 1 << 20), int(env.get("GPUREADY_MAX_BYTES") or 8 << 30)
        repeats, seed = int(env.get("GPUREADY_REPEATS") or 1), zlib.crc32(job_uid.encode())
        measure = partial(nccl.render_rails, rails=rails) if rails else nccl.render
        done = measure(hosts, min_bytes=least, max_bytes=most, seed=seed, repeats=repeats, style=style)
    except (InputError, ValueError) as error:
        failed = json.dumps({"exit": 2})
        return {pod["metadata"]["uid"]: Outcome(2, f"simulated: {error}\n", failed) for pod in pods}
    outcomes, code = {}, 0 if done.whole else 1
    for index, (pod, host) in enumerate(zip(pods, hosts, strict=True)):
        message: Object = {"index": index, "exit": code}
        if done.whole:
            message["ranks"] = done.ranks
        if done.whole and index == 0:
            measured = {"busbw_gbytes_s": done.busbw_gbytes_s, "series": done.series, "wrong": 0}
            message |= {"rails": done.rails} if done.rails else measured
        outcomes[pod["metadata"]["uid"]] = Outcome(code, done.logs[host.name], json.dumps(message))
    return outcomes


def _set(host: nccl.Host, env: Mapping[str, str]) -> nccl.Host:
    """The host as settings leave it: without RDMA, or without GPUDirect RDMA."""
    if env.get("NCCL_IB_DISABLE") == "1" or env.get("NCCL_NET") == "Socket":
        return replace(host, rdma=False, gdr=False)
    return replace(host, gdr=host.gdr and env.get("NCCL_NET_GDR_LEVEL") not in ("LOC", "0"))


def _env(pod: Object) -> dict[str, str]:
    env = pod["spec"]["containers"][0].get("env") or ()
    return {one["name"]: str(one.get("value", "")) for one in env}


def _write_shim(folder: Path, script: str, view: Smi) -> None:
    """An nvidia-smi that answers the calls in ``script``, each from a file."""
    lines = ["#!/bin/sh", 'case "$*" in']
    for number, call in enumerate(sorted({" ".join(one.group(1).split()) for one in _CALL.finditer(script)})):
        answer = view.answer(call.split())
        (folder / str(number)).write_text(answer.log)
        lines.append(f"'{call}') cat '{folder / str(number)}'; exit {answer.exit_code} ;;")
    lines += ['*) echo "nvidia-smi: unknown arguments: $*" >&2; exit 2 ;;', "esac", ""]
    program = folder / "nvidia-smi"
    program.write_text("\n".join(lines))
    program.chmod(0o700)
