"""Whether kubelet policies fit a machine: what would not start, or reject every GPU pod, is refused beforehand."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from gpuready.charts_values.errors import RefusedError
from gpuready.charts_values.groups import Group
from gpuready.charts_values.node_settings import NodeSettings, cpu_reservation, numbers
from gpuready.charts_values.versions import parts

from .facts import NodeFacts
from .kubelet import effective, memory_reservation, wanted

# The kubelet's own limit, unless max-allowable-numa-nodes raises it.
NUMA_LIMIT = 8
# First minor of Kubernetes in which an option works without a feature gate; None: no released one.
_SINCE: dict[str, tuple[int, int] | None] = {
    "prefer-closest-numa-nodes": (1, 28),
    "max-allowable-numa-nodes": (1, 31),
    "full-pcpus-only": (1, 23),
    "distribute-cpus-across-numa": (1, 33),
    "strict-cpu-reservation": (1, 33),
    "prefer-align-cpus-by-uncorecache": (1, 34),
    "align-by-socket": None,
    "distribute-cpus-across-cores": None,
}


def check(settings: NodeSettings, facts: NodeFacts, group: Group | None) -> list[str]:
    """Refuse what cannot work on the node; returns what is worth knowing, one line each. Raises RefusedError.

    ``group`` is what inventory says of nodes like this one.
    """
    after = effective(facts, wanted(settings, facts))
    for problem in (
        *_options(settings, facts),
        *_numa_count(after, facts),
        *_one_node(after, facts, group),
        *_cpu_manager(after, facts),
        *_starved(after, facts),
    ):
        raise RefusedError(f"node {facts.name}: {problem}")
    return [
        f"{facts.name}: {note}" for note in (*_no_hint_from_firmware(after, facts), *_no_hint_from_nics(after, group))
    ]


def _options(settings: NodeSettings, facts: NodeFacts) -> Iterator[str]:
    """A kubelet does not start with an option that it does not know, or that wants a feature gate."""
    version = parts(facts.kubelet.version)[:2]
    for option, value in (*settings.topology_manager.options.items(), *settings.cpu_manager.options.items()):
        since = _SINCE[option]
        if since is None and value == "true":
            yield f"option {option} is alpha in every release, and no kubelet starts with it; take it out"
        elif since is not None and version and version < since:
            needs = ".".join(map(str, since))
            yield f"option {option} needs Kubernetes {needs}, its kubelet is {facts.kubelet.version}; take it out"


def _numa_count(after: Mapping[str, Any], facts: NodeFacts) -> Iterator[str]:
    if after["topologyManagerPolicy"] == "none":
        return
    limit = int((after.get("topologyManagerPolicyOptions") or {}).get("max-allowable-numa-nodes", NUMA_LIMIT))
    if (count := len(facts.numa)) > limit:
        yield (
            f"it has {count} NUMA nodes, and with Topology Manager the kubelet starts with {limit} at most; set "
            f"topology_manager.options to {{'max-allowable-numa-nodes': {count}}}, or the policy to none"
        )


def _one_node(after: Mapping[str, Any], facts: NodeFacts, group: Group | None) -> Iterator[str]:
    """Pods with all GPUs of a node never fit one NUMA node of a machine with two sockets."""
    if after["topologyManagerPolicy"] != "single-numa-node":
        return
    wants = group.gpus if group else len(facts.gpus)
    places = {node: count for node, count in facts.gpu_numa.items() if node >= 0}
    if places and wants > max(places.values()):
        held = " and ".join(f"{count} on NUMA node {node}" for node, count in sorted(places.items()))
        yield (
            f"policy single-numa-node rejects every pod with {wants} GPUs (TopologyAffinityError): it has {held}; "
            "set topology_manager.policy to restricted or best-effort"
        )
    elif not facts.gpus and wants > 1 and facts.sockets > 1:
        yield (
            f"policy single-numa-node rejects every pod with {wants} GPUs (TopologyAffinityError) where they sit on "
            f"{facts.sockets} sockets; set topology_manager.policy to restricted or best-effort"
        )


def _cpu_manager(after: Mapping[str, Any], facts: NodeFacts) -> Iterator[str]:
    cpus = numbers(str(after.get("reservedSystemCPUs") or ""))
    if facts.online and (absent := sorted(set(cpus) - set(facts.online))):
        yield f"`reserved.cpus` names CPU {absent[0]}, which is not online; it has {_spans(facts.online)}"
    if cpus and (after.get("systemReservedCgroup") or after.get("kubeReservedCgroup")):
        yield "`reserved.cpus` does not go with systemReservedCgroup or kubeReservedCgroup; give kube_cpu, system_cpu"
    if after["cpuManagerPolicy"] != "static":
        return
    milli = cpu_reservation(after.get)
    if milli == 0:
        yield "CPU Manager static needs a reservation, or the kubelet does not start; give `reserved.cpus`, such as 0-1"
        return
    options = after.get("cpuManagerPolicyOptions") or {}
    if options.get("strict-cpu-reservation") == "true" and not cpus and milli % 1000:
        yield f"strict-cpu-reservation keeps whole CPUs, the reservation is {milli}m; give `reserved.cpus`"
    threads = facts.threads_per_core
    if options.get("full-pcpus-only") == "true" and threads > 1:
        if halves := [core for core in facts.cores if len(core) < threads]:
            yield (
                f"full-pcpus-only gives out whole cores of {threads} threads, and {len(halves)} are online in part, "
                f"first CPUs {_spans(halves[0])}; bring their siblings online, or take the option out"
            )
        count = len(cpus) or math.ceil(milli / 1000)
        if count % threads:
            yield (
                f"full-pcpus-only gives out whole cores of {threads} threads, and the reservation of {count} CPUs "
                f"splits one (pods end with SMTAlignmentError); reserve a multiple of {threads}"
            )
        for core in facts.cores:
            if cpus and 0 < len(set(core) & set(cpus)) < len(core):
                yield (
                    f"full-pcpus-only gives out whole cores, and `reserved.cpus` takes part of the core with CPUs "
                    f"{_spans(core)}; reserve all of them or none"
                )


def _starved(after: Mapping[str, Any], facts: NodeFacts) -> Iterator[str]:
    """A reservation of more than half of a machine is a slip of the unit, and starves the pods."""
    milli = cpu_reservation(after.get)
    if facts.online and milli > 500 * len(facts.online):
        yield (
            f"the reservation keeps {milli / 1000:g} of {len(facts.online)} CPUs from pods, more than half; "
            "lower `reserved`"
        )
    if not facts.memory_kib:
        return
    if after["memoryManagerPolicy"] != "Static" and str(
        (after.get("evictionHard") or {}).get("memory.available")
    ).endswith("%"):
        return
    total = memory_reservation(f"node {facts.name}", after) // 1024
    if 2 * total > facts.memory_kib:
        yield (
            f"the reservation keeps {total / 2**20:.1f} of {facts.memory_kib / 2**20:.1f} GiB of memory from pods, "
            "more than half; lower `reserved`"
        )
    sizes = {one.node: one.memory_kib for one in facts.numa}
    for share in after.get("reservedMemory") or ():
        size = memory_reservation("", {"evictionHard": {"memory.available": share["limits"].get("memory", 0)}}) // 1024
        node = int(share["numaNode"])
        if 2 * size > sizes.get(node, 0):
            yield (
                f"Memory Manager keeps {size / 2**20:.1f} of {sizes.get(node, 0) / 2**20:.1f} GiB of NUMA node {node} "
                "from pods, more than half; share `memory_manager.reserved` out differently"
            )


def _no_hint_from_firmware(after: Mapping[str, Any], facts: NodeFacts) -> Iterator[str]:
    if after["topologyManagerPolicy"] != "none" and (lost := facts.gpu_numa.get(-1)) and len(facts.numa) > 1:
        yield (
            f"the firmware names no NUMA node for {lost} GPUs, so that Topology Manager cannot align them; "
            "enable it in the BIOS, or give the VM virtual NUMA nodes"
        )


def _no_hint_from_nics(after: Mapping[str, Any], group: Group | None) -> Iterator[str]:
    """The shared RDMA device plugin tells the kubelet no NUMA node."""
    if group is None or after["topologyManagerPolicy"] == "none":
        return
    # More than the node has NICs: each share is all of them. NVIDIA's examples say it in the name, too.
    resources = group.rdma_resources.items()
    shared = [name for name, count in resources if count > max(1, group.nics) or "shared" in name]
    if shared:
        yield (
            f"{shared[0]} is shared, and its device plugin names no NUMA node: Topology Manager aligns GPUs and CPUs, "
            "not the NICs; SR-IOV or host-device resources are aligned"
        )


def _spans(cpus: tuple[int, ...]) -> str:
    """0-3,8 for the numbers 0, 1, 2, 3 and 8."""
    spans: list[list[int]] = []
    for cpu in cpus:
        if spans and cpu == spans[-1][1] + 1:
            spans[-1][1] = cpu
        else:
            spans.append([cpu, cpu])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
