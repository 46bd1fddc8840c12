"""The kubelet's settings: which file carries them on which platform, what must go before a restart, and when.

A file of its own, because `kubeadm upgrade` and vCluster rewrite /var/lib/kubelet/config.yaml.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import yaml
from gpuready.charts_values.errors import RefusedError
from gpuready.charts_values.node_settings import NodeSettings, numbers, quantity
from gpuready.charts_values.tables import merge_patch
from gpuready.charts_values.versions import parts

from .facts import DROP_IN_NAME, FLAGS, Kubelet, NodeFacts
from .plan import HEADER, Disruption, File, differs
from .systems import System

DROP_IN_DIR = "/etc/kubernetes/kubelet.conf.d"
K3S_FILE = "/etc/rancher/k3s/config.yaml.d/50-gpuready.yaml"
CPU_STATE = "/var/lib/kubelet/cpu_manager_state"
MEMORY_STATE = "/var/lib/kubelet/memory_manager_state"
STATE_FILES = (CPU_STATE, MEMORY_STATE)
_OLDEST = (1, 30)
_EXTRA = "KUBELET_EXTRA_ARGS"
# What a kubelet has where its configuration says nothing.
_DEFAULTS: dict[str, Any] = {
    "topologyManagerPolicy": "none",
    "topologyManagerScope": "container",
    "cpuManagerPolicy": "none",
    "memoryManagerPolicy": "None",
}
_EVICTION = {
    "memory.available": "100Mi",
    "nodefs.available": "10%",
    "nodefs.inodesFree": "5%",
    "imagefs.available": "15%",
    "imagefs.inodesFree": "5%",
}
_MIB = 2**20


def unit(platform: str, facts: NodeFacts) -> str:
    """The systemd unit that the kubelet runs in."""
    if platform != "k3s":
        return "kubelet"
    return "k3s" if facts.active("k3s") or facts.enabled("k3s") else "k3s-agent"


def wanted(settings: NodeSettings, facts: NodeFacts) -> dict[str, Any]:
    """The fields of KubeletConfiguration that gpuready sets on a node; raises RefusedError."""
    topology, cpu, memory, keep = (
        settings.topology_manager,
        settings.cpu_manager,
        settings.memory_manager,
        settings.reserved,
    )
    fields: dict[str, Any] = {"topologyManagerPolicy": topology.policy, "topologyManagerScope": topology.scope}
    if topology.options:
        fields["topologyManagerPolicyOptions"] = dict(topology.options)
    if cpu.policy:
        fields["cpuManagerPolicy"] = cpu.policy
        if cpu.options:
            fields["cpuManagerPolicyOptions"] = dict(cpu.options)
    if keep.cpus:
        fields["reservedSystemCPUs"] = keep.cpus
    for key, milli, size in (
        ("kubeReserved", keep.kube_cpu_milli, keep.kube_memory),
        ("systemReserved", keep.system_cpu_milli, keep.system_memory),
    ):
        share = {"cpu": _cpu(milli)} if milli is not None else {}
        share |= {"memory": _memory(size)} if size is not None else {}
        if share:
            fields[key] = share
    if keep.eviction_memory is not None:
        # A threshold that is left out counts as zero once any is given.
        before = facts.kubelet.config.get("evictionHard") or {}
        fields["evictionHard"] = {**_EVICTION, **before, "memory.available": _memory(keep.eviction_memory)}
    if memory.policy:
        fields["memoryManagerPolicy"] = memory.policy
        if memory.policy == "Static":
            fields["reservedMemory"] = reserved_memory(settings, facts, merge_patch(facts.kubelet.config, fields))
    return fields


def reserved_memory(settings: NodeSettings, facts: NodeFacts, config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What Memory Manager keeps on each NUMA node; the sum must be what the node reserves, to the byte.

    That is kubeReserved, systemReserved and the hard eviction threshold of ``config`` together. Raises RefusedError.
    """
    where = f"node {facts.name}"
    total = memory_reservation(where, config)
    given = settings.memory_manager.reserved
    if given:
        if absent := sorted(set(given) - {one.node for one in facts.numa}):
            raise RefusedError(
                f"{where}: `memory_manager.reserved` names NUMA node {absent[0]}, which it does not have"
            )
        if sum(given.values()) != total:
            raise RefusedError(
                f"{where}: `memory_manager.reserved` adds up to {_memory(sum(given.values()))}; the kubelet starts "
                f"only with {_memory(total)}, the sum of kubeReserved, systemReserved and evictionHard memory.available"
            )
        shares = dict(given)
    else:
        # Memory without CPUs is that of GPUs; the system does not live there.
        sizes = {one.node: one.memory_kib for one in facts.numa if one.cpus and one.memory_kib}
        if not sizes:
            raise RefusedError(f"{where}: its NUMA nodes could not be read; give `memory_manager.reserved`")
        whole = sum(sizes.values())
        shares = {node: total * size // whole // _MIB * _MIB for node, size in sizes.items()}
        shares[max(sizes, key=lambda node: sizes[node])] += total - sum(shares.values())
    return [{"numaNode": node, "limits": {"memory": _memory(size)}} for node, size in sorted(shares.items()) if size]


def memory_reservation(where: str, config: Mapping[str, Any]) -> int:
    """Bytes that a kubelet with ``config`` keeps from pods; raises RefusedError for a threshold in percent."""
    eviction = {**_EVICTION, **(config.get("evictionHard") or {})}["memory.available"]
    if str(eviction).endswith("%"):
        raise RefusedError(
            f"{where}: evictionHard memory.available is {eviction}, and Memory Manager needs it in bytes; "
            "give `reserved.eviction_memory`, such as 100Mi"
        )
    shares = [(config.get(key) or {}).get("memory", 0) for key in ("kubeReserved", "systemReserved")]
    return sum(quantity(where, "memory", size) for size in (*shares, eviction))


def effective(facts: NodeFacts, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration that the kubelet has with ``fields`` on top."""
    result: dict[str, Any] = merge_patch({**_DEFAULTS, **facts.kubelet.config}, fields)
    return result


def plan(settings: NodeSettings, facts: NodeFacts, platform: str, system: System) -> tuple[Disruption, str]:
    """The disruption that brings the kubelet's settings, and the text that the user has to put elsewhere (vCluster).

    Both are empty where the node has the settings. Raises RefusedError.
    """
    fields = wanted(settings, facts)
    if platform == "vcluster":
        return Disruption(), _vcluster(facts, fields)
    files = _k3s(fields) if platform == "k3s" else _drop_in(facts, fields, system)
    changed = tuple(one for one in files if differs(one, _texts(facts)))
    after = effective(facts, fields)
    before = {**_DEFAULTS, **facts.kubelet.live}
    if platform == "k3s":
        # Its settings are flags, which no file of the kubelet shows.
        before = {} if changed else after
    removals, why = state_files(facts, before, after)
    reasons = [f"kubelet: {one.path}" for one in changed] + why
    if not reasons and platform != "k3s" and facts.kubelet.running and not _shown(facts.kubelet, fields):
        reasons = ["kubelet: it runs without the settings of its files; it was not restarted since"]
    if not reasons:
        return Disruption(unit=unit(platform, facts)), ""
    change = Disruption(
        unit=unit(platform, facts),
        reasons=tuple(reasons),
        files=changed,
        removals=removals,
        expected=fields,
    )
    return change, ""


def state_files(
    facts: NodeFacts, before: Mapping[str, Any], after: Mapping[str, Any]
) -> tuple[tuple[str, ...], list[str]]:
    """The state files with which a kubelet of configuration ``after`` would not start; and why each must go.

    ``before`` is the configuration under which they were made.
    """
    found: list[str] = []
    why: list[str] = []
    for path, policy, inputs in (
        (
            CPU_STATE,
            "cpuManagerPolicy",
            ("cpuManagerPolicyOptions", "reservedSystemCPUs", "kubeReserved", "systemReserved"),
        ),
        (MEMORY_STATE, "memoryManagerPolicy", ("reservedMemory",)),
    ):
        text = facts.kubelet.state.get(path)
        if text is None:
            continue
        try:
            state = json.loads(text)
        except ValueError:
            state = {}
        has, needs = state.get("policyName"), after.get(policy)
        if has != needs:
            found.append(path)
            why.append(f"{path}: policy {has} -> {needs}")
        elif str(needs).lower() == "static" and any(before.get(key) != after.get(key) for key in inputs):
            found.append(path)
            why.append(f"{path}: made under another reservation")
        elif path == CPU_STATE and needs == "static" and facts.online and _known_cpus(state, after) != facts.online:
            found.append(path)
            why.append(f"{path}: made with other CPUs than the node has now")
    return tuple(found), why


def extra_args(path: str, text: str, folder: str) -> str:
    """The text of an environment file with ``--config-dir`` added to KUBELET_EXTRA_ARGS; the rest stays as it is.

    Raises RefusedError where the value is written in a way that cannot be added to safely.
    """
    flag = f"--config-dir={folder}"
    lines = text.splitlines()
    places = [index for index, line in enumerate(lines) if re.match(rf"\s*{_EXTRA}\s*=", line)]
    if not places:
        return "\n".join([*lines, f"{_EXTRA}={flag}"]) + "\n"
    # The last assignment is the one that systemd takes.
    line = lines[places[-1]].rstrip()
    value = line.partition("=")[2].strip()
    if line.endswith("\\") or (value[:1] in "\"'" and len(value) > 1 and value[-1] != value[0]):
        raise RefusedError(
            f"{path}: {_EXTRA} goes over several lines or quotes; write it on one line, in one pair of quotes"
        )
    quote = value[0] if value[:1] in ('"', "'") else ""
    inner = value[1:-1] if quote else value
    if re.search(r"--config-dir[= ]", inner):
        return text
    if not quote and ('"' in inner or "'" in inner):
        raise RefusedError(f"{path}: {_EXTRA} has quotes inside; put the whole value into one pair of quotes")
    joined = f"{inner} {flag}".strip()
    quote = quote or ('"' if " " in joined else "")
    lines[places[-1]] = f"{_EXTRA}={quote}{joined}{quote}"
    return "\n".join(lines) + "\n"


# -- the channels -------------------------------------------------------------------------------------------------


def _drop_in(facts: NodeFacts, fields: Mapping[str, Any], system: System) -> tuple[File, ...]:
    kubelet = facts.kubelet
    if kubelet.version and parts(kubelet.version)[:2] < _OLDEST:
        raise RefusedError(
            f"node {facts.name}: kubelet {kubelet.version} has no --config-dir; upgrade it to 1.30 or newer"
        )
    _no_flag_beats(facts, fields)
    environment = _environment(facts, system)
    texts = "\n".join(kubelet.environment.values())
    told = re.search(r"--config-dir[= ]([^\s\"']+)", texts)
    folder = kubelet.config_dir or (told[1] if told else DROP_IN_DIR)
    path = f"{folder.rstrip('/')}/{DROP_IN_NAME}"
    body = {"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration", **fields}
    files = [File(path, f"{HEADER}\n{yaml.safe_dump(body, sort_keys=False)}")]
    if not kubelet.config_dir and not told:
        text = kubelet.environment.get(environment, "")
        files.append(File(environment, extra_args(environment, text, folder)))
    after: Any = kubelet.config
    others = {one: text for one, text in kubelet.drop_ins.items() if one.startswith(folder) and one != path}
    for one in sorted([*others, path]):
        found = body if one == path else yaml.safe_load(others[one]) or {}
        after = merge_patch(after, found)
        if one > path and (beaten := [key for key, value in fields.items() if not _holds(after.get(key), value)]):
            raise RefusedError(f"node {facts.name}: {one} sets {beaten[0]} after gpuready's file; take it out there")
    return tuple(files)


def _environment(facts: NodeFacts, system: System) -> str:
    """The file from which the kubelet's unit takes KUBELET_EXTRA_ARGS."""
    if not facts.kubelet.unit:
        return system.kubelet_environment
    named = re.findall(r"^EnvironmentFile=-?(\S+)$", facts.kubelet.unit, re.MULTILINE)
    for path in (system.kubelet_environment, "/etc/default/kubelet", "/etc/sysconfig/kubelet"):
        if path in named:
            return path
    raise RefusedError(
        f"node {facts.name}: kubelet.service does not read {system.kubelet_environment}; "
        f"add EnvironmentFile=-{system.kubelet_environment} and ${_EXTRA} to it, as kubeadm's 10-kubeadm.conf has them"
    )


def _no_flag_beats(facts: NodeFacts, fields: Mapping[str, Any]) -> None:
    """Flags beat files: one that says otherwise would make the file a lie."""
    texts = "\n".join(facts.kubelet.environment.values())
    for key in fields:
        flag = FLAGS[key]
        told = re.search(rf"--{flag}[= ]([^\s\"']+)", texts)
        given = facts.kubelet.flag(flag) or (told[1] if told else None)
        if given is not None and given != _flag_value(key, fields[key]):
            raise RefusedError(
                f"node {facts.name}: the kubelet is started with --{flag}={given}, which beats its files; take "
                f"the flag out of {_EXTRA} or the unit"
            )


def _k3s(fields: Mapping[str, Any]) -> tuple[File, ...]:
    # The plus adds to what other files give; without it k3s would take the last list alone.
    arguments = []
    for key, value in fields.items():
        # This flag alone takes no list: a second option would become part of the first one's value.
        shares = [{name: one} for name, one in value.items()] if key == "cpuManagerPolicyOptions" else [value]
        arguments += [f"{FLAGS[key]}={_flag_value(key, share)}" for share in shares]
    return (File(K3S_FILE, f"{HEADER}\n{yaml.safe_dump({'kubelet-arg+': arguments}, sort_keys=False, width=200)}"),)


def _flag_value(key: str, value: Any) -> str:
    if key == "reservedMemory":
        return ";".join(f"{one['numaNode']}:memory={one['limits']['memory']}" for one in value)
    if isinstance(value, Mapping):
        sign = "<" if key == "evictionHard" else "="
        return ",".join(f"{name}{sign}{one}" for name, one in value.items())
    return str(value)


def _vcluster(facts: NodeFacts, fields: Mapping[str, Any]) -> str:
    if facts.kubelet.running and all(_holds(facts.kubelet.live.get(key), value) for key, value in fields.items()):
        return ""
    return str(yaml.safe_dump({"privateNodes": {"kubelet": {"config": dict(fields)}}}, sort_keys=False))


def _texts(facts: NodeFacts) -> dict[str, str | None]:
    return {**facts.files, **facts.kubelet.environment, **facts.kubelet.drop_ins}


def _shown(kubelet: Kubelet, fields: Mapping[str, Any]) -> bool:
    """Whether the running kubelet was told of the directory, and has in it what is wanted."""
    return bool(kubelet.config_dir) and all(_holds(kubelet.live.get(key), value) for key, value in fields.items())


def _holds(has: Any, wants: Any) -> bool:
    """Whether a value has all of what is wanted; a map may hold more."""
    if isinstance(wants, Mapping):
        return isinstance(has, Mapping) and all(_holds(has.get(key), value) for key, value in wants.items())
    return bool(has == wants)


def _known_cpus(state: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[int, ...]:
    """The CPUs that a state file knows of; those that are strictly reserved are none of them."""
    known = set(numbers(str(state.get("defaultCpuSet") or "")))
    for containers in (state.get("entries") or {}).values():
        for cpus in containers.values():
            known.update(numbers(str(cpus)))
    if (config.get("cpuManagerPolicyOptions") or {}).get("strict-cpu-reservation") == "true":
        known.update(numbers(str(config.get("reservedSystemCPUs") or "")))
    return tuple(sorted(known))


def _cpu(milli: int) -> str:
    return str(milli // 1000) if milli % 1000 == 0 else f"{milli}m"


def _memory(size: int) -> str:
    return f"{size // _MIB}Mi" if size % _MIB == 0 else str(size)
