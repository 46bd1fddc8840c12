"""The clusters of `inventory`: what an entry may say, read once and checked once.

`inventory` is a plain Python file, so that pyinfra reads it as it is. It holds a table of clusters; this
module turns an entry into a Cluster, or into one line that says what is wrong with it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import runpy
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from . import fields, node_settings
from .errors import GpureadyError, InputError
from .groups import Group as Group
from .groups import RailNetwork as RailNetwork
from .groups import check_networks, parse_group

DEFAULT_CLUSTER = "rehearsal"
STATE_SCHEMA = 1
STATE_FILE = "state.json"

_reading: ContextVar[bool] = ContextVar("reading", default=False)
_CHOICES: dict[str, tuple[str, ...]] = {
    "platform": ("kubeadm", "k3s", "hosted", "vcluster"),
    "driver_owner": ("operator", "host"),
    "ofed_owner": ("operator", "host", "inbox"),
    "dra": ("off", "compute-domains", "gpus"),
}
# Text, and text that may be None instead.
_TEXTS = ("pod_cidr", "service_cidr", "api_server", "driver_version")
_TEXTS_OR_NONE = ("kubeconfig", "context", "cluster_uid", "charts", "state_dir")
_LISTS = ("node_cidrs", "rail_cidrs", "management_nics", "adopt", "maintenance")
_SSH_TEXTS = ("ssh_hostname", "ssh_user", "ssh_key", "ssh_known_hosts_file", "ssh_config_file")


@dataclass(frozen=True)
class Cluster:
    """One entry of `inventory`. ``entry`` is the table it was read from, as JSON can hold it."""

    name: str
    entry: Mapping[str, Any]
    groups: tuple[Group, ...]
    kubeconfig: str | None = None
    context: str | None = None
    cluster_uid: str | None = None
    platform: str = "kubeadm"
    pod_cidr: str = ""
    service_cidr: str = ""
    node_cidrs: tuple[str, ...] = ()
    rail_cidrs: tuple[str, ...] = ()
    api_server: str = ""
    management_nics: tuple[str, ...] = ()
    driver_version: str = ""
    driver_owner: str = "operator"
    ofed_owner: str = "inbox"
    dra: str = "off"
    charts: str | None = None
    adopt: tuple[str, ...] = ()
    maintenance: tuple[str, ...] = ()
    ssh_nodes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    node: Mapping[str, Any] = field(default_factory=dict)
    images: Mapping[str, str] = field(default_factory=dict)
    thresholds: Mapping[str, float] = field(default_factory=dict)
    rehearsal: bool = False
    state_dir: str | None = None
    folder: Path | None = None

    @property
    def gpu_taints(self) -> list[dict[str, str]]:
        """The taints of all groups, each once."""
        seen: list[dict[str, str]] = []
        for group in self.groups:
            for taint in group.taints:
                if dict(taint) not in seen:
                    seen.append(dict(taint))
        return seen

    @property
    def wants_rdma(self) -> bool:
        """Whether any group is promised RDMA."""
        return any(group.rdma != "none" for group in self.groups)

    @property
    def networks(self) -> tuple[RailNetwork, ...]:
        """The secondary networks of all groups, each once."""
        return tuple({one.name: one for group in self.groups for one in group.networks}.values())

    @property
    def values_folder(self) -> Path | None:
        """``charts_values/<cluster>`` beside `inventory`, where it exists."""
        folder = self.folder / "charts_values" / self.name if self.folder else None
        return folder if folder and folder.is_dir() else None


def parse(name: str, entry: Mapping[str, Any], folder: Path | None = None) -> Cluster:
    """Check an entry and give it its types.

    Raises InputError with one line that names the key and what it may be.
    """
    where = f"inventory, cluster {name!r}"
    if not isinstance(entry, Mapping):
        raise InputError(f"{where} is no table but {entry!r}")
    fields.known(where, entry, {f.name for f in dataclasses.fields(Cluster)} - {"name", "entry", "folder"})
    _check_values(where, entry)
    lists = {key: fields.strings(where, key, entry.get(key, ())) for key in _LISTS}
    for key in ("node_cidrs", "rail_cidrs"):
        for cidr in lists[key]:
            fields.cidr(where, key, cidr)
    table = fields.named(where, entry, "groups")
    groups = tuple(parse_group(where, key, value, lists["rail_cidrs"]) for key, value in table.items())
    node = fields.table(where, entry, "node")
    node_settings.parse(where, node)
    for group in groups:
        node_settings.parse(f"{where}, group {group.name!r}", group.node, node)
    if not groups:
        raise InputError(f"{where}: `groups` is empty; name at least one group of GPU nodes")
    check_networks(where, groups)
    rails = (one.cidr for group in groups for one in group.networks if one.cidr)
    lists["rail_cidrs"] = tuple(dict.fromkeys((*lists["rail_cidrs"], *rails)))
    if not entry.get("driver_version"):
        raise InputError(f"{where}: `driver_version` is missing; the chart's own default moves between releases")
    plain = {key: value for key, value in entry.items() if key not in lists and key != "groups"}
    given: dict[str, Any] = {**plain, **lists}
    return Cluster(name=name, entry=dict(entry), groups=groups, folder=folder, **given)


def _check_values(where: str, entry: Mapping[str, Any]) -> None:
    """The types of what stands in an entry beside its groups; raises InputError."""
    fields.choices(where, entry, _CHOICES)
    fields.texts(where, entry, _TEXTS)
    fields.texts(where, entry, _TEXTS_OR_NONE, none=True)
    fields.flags(where, entry, ("rehearsal",))
    for key in ("pod_cidr", "service_cidr"):
        fields.cidr(where, key, entry.get(key, ""))
    if entry.get("api_server"):
        fields.endpoint(where, "api_server", entry["api_server"])
    fields.known(f"{where}, `images`", fields.labels(where, entry, "images"), {"nvidia-smi", "nccl"})
    floors = fields.named(where, entry, "thresholds")
    fields.known(f"{where}, `thresholds`", floors, {"pair", "all", "net"})
    fields.numbers(f"{where}, `thresholds`", floors, floors)
    for node, data in fields.named(where, entry, "ssh_nodes").items():
        here = f"{where}, `ssh_nodes`, {node!r}"
        if not isinstance(data, Mapping) or not all(isinstance(key, str) for key in data):
            raise InputError(f"{here} is no table; write {{'ssh_hostname': '192.0.2.7'}}")
        fields.texts(here, data, _SSH_TEXTS)
        fields.whole(here, data, ("ssh_port",))
        fields.flags(here, data, ("_sudo",))


def choose(table: Mapping[str, Mapping[str, Any]], file: str) -> Cluster | None:
    """The cluster that $CLUSTER names, for the last lines of `inventory`.

    A mistake prints one line and exits 2: the one form in which pyinfra shows a clean line. None only while
    `read` wants the table alone.
    """
    if _reading.get():
        return None
    try:
        return select(table, os.environ.get("CLUSTER") or DEFAULT_CLUSTER, Path(file).resolve().parent)
    except GpureadyError as error:
        _stop(str(error))


def select(table: Mapping[str, Mapping[str, Any]], name: str, folder: Path | None) -> Cluster:
    """The entry ``name`` of the table, parsed; the rehearsal entry is read from its state folder.

    Raises InputError.
    """
    if not isinstance(table, Mapping):
        raise InputError(f"inventory: _CLUSTERS is a {type(table).__name__}; it is a table of names and entries")
    if name not in table:
        raise InputError(f"inventory has no cluster {name!r}; it has {', '.join(sorted(map(str, table))) or 'none'}")
    entry = table[name]
    if isinstance(entry, Mapping) and entry.get("rehearsal") is True:
        entry = {**_rehearsal_entry(folder), **entry}
    return parse(name, entry, folder)


def read(path: str | Path) -> tuple[dict[str, Mapping[str, Any]], Path]:
    """The table of clusters in an inventory file, without choosing one; and the file's folder.

    Raises InputError.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{file} is not an inventory file; name one with --inventory")
    # The file chooses a cluster at its end, which fails while that one is down; only the table is wanted.
    token = _reading.set(True)
    try:
        names = runpy.run_path(str(file))
    except SystemExit as error:
        raise InputError(f"{file} stopped with exit {error.code}") from error
    except Exception as error:
        raise InputError(f"{file} cannot be read: {type(error).__name__}: {error}") from error
    finally:
        _reading.reset(token)
    table = names.get("_CLUSTERS")
    if not isinstance(table, dict) or not table:
        raise InputError(f"{file} defines no table _CLUSTERS")
    return table, file.resolve().parent


def hosts(cluster: Cluster | None) -> list[tuple[str, dict[str, Any]]]:
    """The machines that pyinfra reaches over SSH, as pyinfra wants them."""
    return [(name, dict(data)) for name, data in (cluster.ssh_nodes if cluster else {}).items()]


def state_folder(folder: Path | None, given: str | None = None) -> Path:
    """The rehearsal's state: given, else $GPUREADY_STATE_DIR, else .rehearsal beside inventory."""
    chosen = given or os.environ.get("GPUREADY_STATE_DIR")
    return Path(chosen).resolve() if chosen else (folder or Path.cwd()).resolve() / ".rehearsal"


def _rehearsal_entry(folder: Path | None) -> dict[str, Any]:
    file = state_folder(folder) / STATE_FILE
    try:
        state = json.loads(file.read_text())
        entry = dict(state["entry"])
    except FileNotFoundError:
        raise InputError("no rehearsal cluster is up; start one with: gpuready rehearse up") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is damaged ({error}); mend it with: gpuready rehearse up") from error
    return entry


def _stop(message: str) -> NoReturn:
    print(f"gpuready: {message}", file=sys.stderr)
    sys.exit(2)
