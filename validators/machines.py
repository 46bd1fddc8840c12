"""What single machines said of themselves: their probes, beside what inventory promises of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from gpuready.charts_values import node_settings
from gpuready.charts_values.errors import InputError
from gpuready.charts_values.groups import Group
from gpuready.charts_values.inventory import Cluster
from gpuready.charts_values.node_settings import NodeSettings

from .evidence import Evidence, Object, ReadFailure
from .expected import Expected
from .model import Finding, Status, Subject
from .registry import check

PROBE, CONFIGZ = "probe.json", "configz.json"
# Files that the probe is asked for beside its own parts.
FSTAB = "/etc/fstab"
MODULES_FILE = "/etc/modules-load.d/90-gpuready.conf"
FILESYSTEMS = "/proc/filesystems"
# The kubelet of k3s is part of k3s; here are the flags that gpuready gives it.
K3S_FILE = "/etc/rancher/k3s/config.yaml.d/50-gpuready.yaml"
FILES = (FSTAB, MODULES_FILE, FILESYSTEMS, K3S_FILE)
_SCHEMA = 1
# Display controllers, with a screen and without.
_GPU = ("0x0300", "0x0302")
_LISTS = ("numa", "pci", "rdma", "modules", "mounts")


class NotShown(Exception):
    """The probe says nothing about a part that a check needs."""


@dataclass(frozen=True)
class Machine:
    """One machine. ``settings`` is None where no inventory is known, as with a lone probe: nothing is promised.

    ``group`` is what promises its GPUs and NICs; None where it belongs to no group. ``config`` is what the running
    kubelet said, where that could be read.
    """

    name: str
    probe: Mapping[str, Any]
    cluster: Cluster
    settings: NodeSettings | None = None
    group: Group | None = None
    node: Object | None = None
    config: Mapping[str, Any] | None = None

    def part(self, name: str) -> Any:
        """A part of the probe; raises NotShown where it could not be read."""
        found = self.probe.get(name)
        if found is None:
            raise NotShown(f"{name}: {(self.probe.get('errors') or {}).get(name, 'not in the probe')}")
        return found

    def file(self, path: str) -> str | None:
        """A file's text; None where it does not exist or was not asked for."""
        return (self.probe.get("files") or {}).get(path)

    @property
    def container(self) -> bool:
        """Whether it shares the kernel of another machine, whose settings these then are."""
        return bool(self.probe.get("container"))

    @property
    def bare_metal(self) -> bool:
        """Whether it is neither a virtual machine nor a container."""
        return not self.container and self.probe.get("virtualization") == "none"

    @cached_property
    def gpus(self) -> list[Mapping[str, Any]]:
        """The PCI functions that are NVIDIA GPUs."""
        return [one for one in self.part("pci") if one["vendor"] == "0x10de" and one["class"][:6] in _GPU]

    @cached_property
    def nics(self) -> list[Mapping[str, Any]]:
        """The PCI functions that are NICs for RDMA."""
        return [one for one in self.part("pci") if one["class"][:4] == "0x02"]

    @property
    def see(self) -> tuple[str, ...]:
        """Where the bundle keeps what it said."""
        return (f"nodes/{self.name}/{PROBE}",)

    # -- findings about it ------------------------------------------------------------------------------------

    def good(self, detail: str = "") -> Finding:
        """All is as promised."""
        return Finding(Status.PASS, self._subject, "AsExpected", "as expected", detail, evidence=self.see)

    def skip(self, cause: str) -> Finding:
        """Nothing is promised here, or it does not apply."""
        return Finding(Status.SKIP, self._subject, "NotExpected", cause, required=False, evidence=self.see)

    def fail(self, reason: str, cause: str, detail: str = "", **more: Any) -> Finding:
        """It breaks a promise."""
        return Finding(Status.FAIL, self._subject, reason, cause, detail, evidence=self.see, **more)

    def warn(self, reason: str, cause: str, detail: str = "", **more: Any) -> Finding:
        """It works, and will cost performance or not last."""
        return Finding(Status.WARN, self._subject, reason, cause, detail, evidence=self.see, **more)

    def unproven(self, reason: str, cause: str, detail: str = "", **more: Any) -> Finding:
        """It could not be told; required where inventory promises anything."""
        given = {"required": self.settings is not None, **more}
        return Finding(Status.UNPROVEN, self._subject, reason, cause, detail, evidence=self.see, **given)

    @property
    def _subject(self) -> Subject:
        return Subject("node", self.name)


JudgeMachine = Callable[[Machine], Finding]


def machine_check(
    id: str, *, title: str, proves: str, rule: str, source: str, fix: str, avoid: str = "", after: tuple[str, ...] = ()
) -> Callable[[JudgeMachine], JudgeMachine]:
    """Register the judge of one machine as a check of all of them; what the words mean stands at ``registry.check``."""

    def register(judge: JudgeMachine) -> JudgeMachine:
        def judged(expected: Expected, evidence: Evidence) -> Iterator[Finding]:
            return each(expected, evidence, judge)

        about = check(
            id, title=title, proves=proves, rule=rule, source=source, fix=fix, avoid=avoid, after=after, tier="node"
        )
        about(judged)
        return judge

    return register


def each(expected: Expected, evidence: Evidence, judge: JudgeMachine) -> Iterator[Finding]:
    """One finding for each machine that was to be probed; one skip where there is none."""
    names = list(probed_names(expected, evidence))
    if not names:
        subject, cause = Subject("cluster", expected.cluster.name), "inventory names no machine to reach by SSH"
        yield Finding(Status.SKIP, subject, "NoSshNodes", cause, required=False)
    machines = all_of(expected, evidence)
    gone = {one["metadata"]["name"] for one, _ in expected.away(evidence.objects("nodes"))}
    for name in names:
        subject = Subject("node", name)
        if name in gone:
            cause = "spot node is away, which inventory allows"
            yield Finding(Status.SKIP, subject, "SpotNodeAbsent", cause, required=False)
        elif name not in machines:
            yield Finding(Status.UNPROVEN, subject, "NodeNotProbed", "the node itself could not be asked", fix="")
        else:
            yield _judged(judge, machines[name])


def _judged(judge: JudgeMachine, machine: Machine) -> Finding:
    try:
        return judge(machine)
    except NotShown as error:
        fix = f"On the node, as root: gpuready probe; it says why in `errors`. Seen: {error}"
        return machine.unproven("NotShown", "the node's probe does not show it", str(error), fix=fix)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, InputError) as error:
        # One damaged probe must not cost the verdict on the other nodes.
        text = f"{type(error).__name__}: {error}"
        return machine.unproven("ProbeDamaged", "the node's probe is not what this version writes", text)


def probed_names(expected: Expected, evidence: Evidence) -> Iterator[str]:
    """The machines of ``ssh_nodes``, where this run asked them or should have, and those whose probe is here."""
    asked = [name for name in expected.cluster.ssh_nodes if name in evidence.nodes or failure(evidence, name)]
    found = [name for name, files in evidence.nodes.items() if PROBE in files]
    yield from dict.fromkeys((*asked, *found))


def probe_key(name: str) -> str:
    """The key of ``Evidence.failures`` for a machine's probe."""
    return f"nodes/{name}/{PROBE}"


def config_key(name: str) -> str:
    """The key of ``Evidence.failures`` for the configuration of its running kubelet."""
    return f"nodes/{name}/{CONFIGZ}"


def all_of(expected: Expected, evidence: Evidence) -> dict[str, Machine]:
    """The machines whose probes can be read, by name; parsed once for all checks."""
    kept: dict[str, Machine] | None = evidence.parsed.get("machines")
    if kept is None:
        kept = evidence.parsed["machines"] = {
            name: _machine(name, found, expected, evidence)
            for name, files in evidence.nodes.items()
            if (found := read(files.get(PROBE))) is not None
        }
    return kept


def read(text: str | None) -> dict[str, Any] | None:
    """A probe's JSON; None where the text is none of this schema. A banner before it is passed over."""
    whole = (text or "").strip()
    for candidate in (whole, whole.rpartition("\n")[2]):
        try:
            found = json.loads(candidate)
            break
        except ValueError:
            found = None
    if not isinstance(found, dict) or found.get("schema") != _SCHEMA:
        return None
    parts = {key: isinstance(found.get(key), list) for key in _LISTS if found.get(key) is not None}
    return found if all(parts.values()) else None


def failure(evidence: Evidence, name: str) -> ReadFailure | None:
    """Why a machine could not be probed."""
    return evidence.failures.get(probe_key(name))


def _machine(name: str, probe: Mapping[str, Any], expected: Expected, evidence: Evidence) -> Machine:
    cluster, node = expected.cluster, evidence.find("nodes", name)
    group = group_of(cluster, name, node)
    return Machine(
        name=name,
        probe=probe,
        cluster=cluster,
        settings=settings_of(cluster, group) if cluster.groups else None,
        group=group,
        node=node,
        config=_config(evidence.nodes[name].get(CONFIGZ)),
    )


def group_of(cluster: Cluster, name: str, node: Object | None) -> Group | None:
    """The group that names a machine or whose labels its Node object carries; without that object the only one."""
    for group in cluster.groups:
        if name in group.nodes or (node is not None and group.holds(node)):
            return group
    alone = node is None and len(cluster.groups) == 1 and not cluster.groups[0].nodes
    return cluster.groups[0] if alone else None


def settings_of(cluster: Cluster, group: Group | None) -> NodeSettings:
    """How inventory wants a machine; one of no group as the whole cluster. Raises InputError."""
    where = f"inventory, cluster {cluster.name!r}" + (f", group {group.name!r}" if group else "")
    return node_settings.parse(where, getattr(group, "node", {}), getattr(cluster, "node", {}))


def _config(text: str | None) -> Mapping[str, Any] | None:
    try:
        found = json.loads(text or "null")
    except ValueError:
        return None
    config = found.get("kubeletconfig") if isinstance(found, dict) else None
    return config if isinstance(config, dict) else None
