"""A kubelet's configuration as its machine has it: by its files and flags, and as it runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gpuready.charts_values.tables import document, merge_patch

from .machines import K3S_FILE, Machine

# What a kubelet has where nothing says otherwise.
DEFAULTS: dict[str, Any] = {
    "topologyManagerPolicy": "none",
    "topologyManagerScope": "container",
    "cpuManagerPolicy": "none",
    "memoryManagerPolicy": "None",
    "cgroupDriver": "cgroupfs",
}
# The fields by which pods are placed and limited. Others are durations and defaults, which kubelets write in their
# own way.
FIELDS = (
    *("topologyManagerPolicy", "topologyManagerScope", "topologyManagerPolicyOptions"),
    *("cpuManagerPolicy", "cpuManagerPolicyOptions", "reservedSystemCPUs"),
    *("memoryManagerPolicy", "reservedMemory", "kubeReserved", "systemReserved", "evictionHard"),
    *("cgroupDriver", "failSwapOn", "maxPods", "podPidsLimit"),
)
_FLAGS = {
    "--topology-manager-policy": "topologyManagerPolicy",
    "--topology-manager-scope": "topologyManagerScope",
    "--topology-manager-policy-options": "topologyManagerPolicyOptions",
    "--cpu-manager-policy": "cpuManagerPolicy",
    "--cpu-manager-policy-options": "cpuManagerPolicyOptions",
    "--reserved-cpus": "reservedSystemCPUs",
    "--memory-manager-policy": "memoryManagerPolicy",
    "--reserved-memory": "reservedMemory",
    "--kube-reserved": "kubeReserved",
    "--system-reserved": "systemReserved",
    "--eviction-hard": "evictionHard",
    "--cgroup-driver": "cgroupDriver",
    "--fail-swap-on": "failSwapOn",
    "--max-pods": "maxPods",
    "--pod-max-pids": "podPidsLimit",
}
_TABLES = ("topologyManagerPolicyOptions", "cpuManagerPolicyOptions", "kubeReserved", "systemReserved")


@dataclass(frozen=True)
class KubeletConfig:
    """``written`` is what its files say now, ``flagged`` the fields that its flags decide, ``running`` what the
    kubelet itself said; None where that could not be read.

    ``told`` is the drop-in directory of its environment, ``folder`` the one that the process was started with.
    ``embedded`` says that it is part of k3s, of whose flags only those that gpuready gives are known, as ``written``.
    """

    written: Mapping[str, Any]
    flagged: Mapping[str, Any]
    running: Mapping[str, Any] | None
    state: Mapping[str, Mapping[str, Any]]
    folder: str | None
    told: str | None
    embedded: bool = False

    @property
    def source(self) -> str:
        """Where ``get`` takes its answers from, in words."""
        return "the running kubelet" if self.running is not None else "its files and flags"

    def get(self, field: str) -> Any:
        """A field as the kubelet has it, by the best that is known."""
        if self.running is not None:
            return self.running.get(field, DEFAULTS.get(field))
        return self.expected(field)

    def expected(self, field: str) -> Any:
        """A field as a kubelet that starts now would have it: flags beat files."""
        return self.flagged.get(field, self.written.get(field, DEFAULTS.get(field)))


def of(machine: Machine) -> KubeletConfig:
    """The configuration of a machine's kubelet; raises NotShown where the probe has no part `kubelet`."""
    part = machine.part("kubelet")
    lines = "\n".join((part.get("environment") or {}).values()).splitlines()
    words = " ".join(line for line in lines if not line.lstrip().startswith("#"))
    told = _after(words.replace("=", " ").replace('"', " ").split(), "--config-dir")
    folder, embedded = part.get("config_dir"), not part.get("flags") and part.get("config") is None
    written = document(part.get("config"))
    walked = folder or told
    for path in sorted(part.get("drop_ins") or {}):
        if walked and path.startswith(f"{walked.rstrip('/')}/"):
            written = merge_patch(written, document(part["drop_ins"][path]))
    if embedded:
        given = document(machine.file(K3S_FILE))
        written = _flagged([f"--{one}" for key in ("kubelet-arg", "kubelet-arg+") for one in given.get(key) or ()])
        # Their flags are written in a way of their own.
        written = {key: value for key, value in written.items() if key not in ("reservedMemory", "evictionHard")}
    return KubeletConfig(
        written=written,
        flagged=_flagged(part.get("flags") or ()),
        running=machine.config,
        state={path: document(text) for path, text in (part.get("state") or {}).items()},
        folder=folder,
        told=told,
        embedded=embedded,
    )


def plain(value: Any) -> str:
    """A value to compare: options may be text or not, and tables in any order."""
    if isinstance(value, Mapping):
        return json.dumps({key: str(one).lower() for key, one in value.items()}, sort_keys=True)
    return json.dumps(value, sort_keys=True, default=str) if isinstance(value, list) else str(value)


def _flagged(flags: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for index, flag in enumerate(flags):
        name, equals, value = str(flag).partition("=")
        if name in _FLAGS:
            value = value if equals else (flags[index + 1] if index + 1 < len(flags) else "")
            field = _FLAGS[name]
            if field in _TABLES:
                # A table's flag may come again, and adds to it; of any other flag the last one counts.
                value = found.get(field, {}) | dict(pair.split("=", 1) for pair in value.split(",") if "=" in pair)
            found[field] = value
    return found


def _after(words: list[str], flag: str) -> str | None:
    return words[words.index(flag) + 1] if flag in words[:-1] else None
