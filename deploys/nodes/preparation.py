"""A node's whole plan from its facts and inventory, and the operations of one host that bring it about."""

from __future__ import annotations

from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar

from gpuready.charts_values import values
from gpuready.charts_values.errors import RefusedError, ToolError, UnreachableError
from gpuready.charts_values.groups import Group
from gpuready.charts_values.inventory import Cluster
from gpuready.charts_values.kube import Api, Object
from gpuready.charts_values.node_settings import NodeSettings
from gpuready.charts_values.node_settings import parse as parse_settings
from pyinfra import logger
from pyinfra.context import host
from pyinfra.operations import files, server

from . import boot, containerd, facts, fit, guards, kubelet, machine, operations
from .facts import NodeFacts
from .plan import HEADER, Disruption, File, NodePlan, Step, diff
from .shell import PyinfraShell, sudo_needed
from .standing import CORDONED
from .systems import system_of

T = TypeVar("T")

# A step may install a package or write the initial RAM disks of several kernels.
STEP_S = 1800

# Every file that a plan may compare, so that one probe is enough.
FILES = (
    *machine.FILES,
    *boot.FILES,
    *machine.limits_files(),
    f"{kubelet.DROP_IN_DIR}/{facts.DROP_IN_NAME}",
    "/etc/default/kubelet",
    "/etc/sysconfig/kubelet",
    kubelet.K3S_FILE,
    "/etc/containerd/config.toml",
    containerd.K3S_REGISTRIES,
)


def plan(cluster: Cluster, group: Group | None, seen: NodeFacts, node: Object | None) -> NodePlan:
    """What shall be made of a node. ``node`` is its object, None where it has joined no cluster.

    Pure. Raises RefusedError for what would break the node, or starve or reject its pods.
    """
    if not seen.root:
        raise RefusedError(f"node {seen.name}: the probe did not run as root; give root or sudo over SSH")
    settings = settings_of(cluster, group)
    system, untried = system_of(seen)
    unit = kubelet.unit(cluster.platform, seen)
    notes = [untried] if untried else []
    notes += fit.check(settings, seen, group)
    notes += machine.check(settings, seen)
    notes += boot.check_driver(seen, cluster.driver_owner, cluster.driver_version)
    notes += (*boot.check_iommu(seen), *boot.check_links(seen))
    notes += [line for line in (guards.resets(seen, cluster.platform),) if line]

    change, printed = kubelet.plan(settings, seen, cluster.platform, system)
    if cluster.platform == "k3s":
        change += containerd.k3s_plan(settings, seen, unit)
    else:
        runtime, more = containerd.plan(settings, seen)
        change, notes = change + runtime, notes + more
    change += machine.disruption(settings, seen, cluster.platform, unit)
    change += boot.acs(settings, seen, boot.sandboxed(values.own("gpu-operator", cluster), node))
    change += boot.kernel_arguments(settings, seen, system)
    change += boot.nouveau(seen)
    if node is not None and CORDONED in (node["metadata"].get("annotations") or {}):
        change += Disruption(unit=unit, reasons=("an earlier run was interrupted here, and left the node cordoned",))

    quiet = (*machine.files(settings, seen, group, cluster.ofed_owner), *boot.acs_files(settings))
    mirrors = () if cluster.platform == "k3s" else containerd.mirrors(settings)
    wanted = (*quiet, *mirrors)
    gone = _outlived(seen, {one.path for one in wanted})
    steps = machine.steps(settings, seen, system, group, cluster.ofed_owner)
    result = NodePlan(
        node=seen.name,
        files=(*wanted, *(File(path, None) for path in gone)),
        steps=(*steps, *boot.acs_steps(settings, seen, system), *_disabled(gone)),
        disruption=change,
        notes=tuple(notes),
        printed=printed,
    )
    guards.check(cluster.platform, seen, result.commands())
    return result


def settings_of(cluster: Cluster, group: Group | None) -> NodeSettings:
    """How inventory wants the nodes of a group; those of no group as the whole cluster."""
    where = f"inventory, cluster {cluster.name!r}" + (f", group {group.name!r}" if group else "")
    return parse_settings(where, group.node if group else {}, cluster.node)


def group_of(cluster: Cluster, name: str, node: Object | None) -> Group | None:
    """The group of a machine: the one that names it, that its labels choose, or the only one."""
    seen = node or {"metadata": {"name": name, "labels": {}}}
    for group in cluster.groups:
        if name in group.nodes or group.holds(seen):
            return group
    return cluster.groups[0] if len(cluster.groups) == 1 and not cluster.groups[0].nodes else None


def under_maintenance(cluster: Cluster, name: str) -> bool:
    """Whether inventory allows to disturb a node now."""
    return bool({"*", cluster.name, name} & set(cluster.maintenance))


def withheld(cluster: Cluster, change: Disruption, name: str, *, joined: bool) -> str | None:
    """Why a change is not made now, on one line; None where it is.

    On a machine that has joined no cluster there are no pods to disturb; its reboot is asked for all the same.
    """
    if not change or under_maintenance(cluster, name) or (not joined and not change.reboot):
        return None
    return (
        f"{name}: withheld, since it disturbs pods: {'; '.join(change.reasons)}; to make it, add {name!r} to "
        f"`maintenance` in inventory, cluster {cluster.name!r}"
    )


def prepare(cluster: Cluster) -> None:
    """Queue the operations that prepare the host at hand; raises GpureadyError before the first of them.

    A host that cannot be asked what it is leaves the run, which goes on without it.
    """
    name = str(host.name)
    try:
        sudo = sudo_needed(host)
        shell = PyinfraShell(host, sudo)
        seen = facts.read(name, shell.output(facts.command(FILES), timeout=60))
    except (ToolError, UnreachableError) as error:
        operations.drop(str(error))
        return
    shared = operations.Shared.of(host.state, lambda: Api.connect(cluster.kubeconfig, cluster.context))
    node = shared.api.find(f"/api/v1/nodes/{name}")
    group = group_of(cluster, name, node)
    made = plan(cluster, group, seen, node)
    held = withheld(cluster, made.disruption, name, joined=node is not None)
    for line in (*made.notes, *((held,) if held else ())):
        logger.info(f"    {line}")
    if made.printed:
        logger.info(f"    {name}: these belong into vcluster.yaml; vCluster writes them to its nodes:\n{made.printed}")
    for file in _loop(made.files):
        if file.content is None:
            files.file(path=file.path, present=False, _sudo=sudo, name=f"Nodes: {file.path} gone")
        else:
            files.put(
                src=StringIO(file.content),
                dest=file.path,
                # Also where an upload broke off before it was set; a file of the system's keeps the mode it has.
                mode=file.mode if HEADER in file.content else None,
                _sudo=sudo,
                name=f"Nodes: {file.path}",
            )
    for step in _loop(_needed(made)):
        server.shell(commands=[step.command], _sudo=sudo, _timeout=STEP_S, name=f"Nodes: {step.title}")
    operations.rolled_out(
        shared=shared,
        shell=shell,
        change=made.disruption,
        withheld=held is not None,
        difference=diff(made.disruption.files, _texts(seen)),
        drain_s=settings_of(cluster, group).drain_timeout,
        name="Nodes: kubelet, containerd and boot, one node at a time",
        _serial=True,
    )


def _outlived(seen: NodeFacts, wanted: set[str]) -> list[str]:
    """Units and scripts of an earlier run that inventory no longer asks for."""
    ours = (boot.ACS_UNIT, boot.ACS_SCRIPT, machine.GOVERNOR_UNIT, machine.SWAP_UNIT)
    return [path for path in ours if path not in wanted and seen.files.get(path) is not None]


def _disabled(gone: list[str]) -> tuple[Step, ...]:
    """What they did lasts until the next boot; then it is no longer done."""
    links = [
        f"/etc/systemd/system/multi-user.target.wants/{Path(one).name}" for one in gone if one.endswith(".service")
    ]
    if not links:
        return ()
    return (Step("units that are no longer wanted", f"rm -f {' '.join(links)} && systemctl daemon-reload"),)


def _needed(made: NodePlan) -> tuple[Step, ...]:
    return tuple(one for one in made.steps if one.needed)


def _texts(seen: NodeFacts) -> dict[str, str | None]:
    own = {seen.containerd.config_file: seen.containerd.config}
    return {**seen.files, **seen.kubelet.environment, **seen.kubelet.drop_ins, **own}


def _loop(items: tuple[T, ...]) -> Iterator[T]:
    """Over items, with the place that pyinfra needs to order operations of one line."""
    found: Any = host.loop(items)  # type: ignore[no-untyped-call]
    return iter(found)
