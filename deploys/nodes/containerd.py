"""containerd: what a kubelet and the GPU toolkit need of it, changed in place and proven before a restart.

``version`` is never touched: containerd does not start when its file and a drop-in differ in it. What is there already,
by default or by another drop-in, is left alone: the dump of the whole configuration decides.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Mapping
from typing import Any

import yaml
from gpuready.charts_values.errors import RefusedError
from gpuready.charts_values.node_settings import NodeSettings
from gpuready.charts_values.versions import parts

from .facts import NodeFacts
from .plan import HEADER, Disruption, File, differs

CERTS_D = "/etc/containerd/certs.d"
K3S_REGISTRIES = "/etc/rancher/k3s/registries.yaml"
STAGED = "/run/gpuready-containerd.toml"
# Where each version of the configuration keeps them.
_RUNTIME = {2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.runtime", 4: "io.containerd.cri.v1.runtime"}
_IMAGES = {2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.images", 4: "io.containerd.cri.v1.images"}
# The servers of registries whose name is not the host that serves them.
_SERVERS = {"docker.io": "https://registry-1.docker.io"}
Table = Mapping[str, Any]
Key = tuple[str, ...]


def mirrors(settings: NodeSettings) -> tuple[File, ...]:
    """The files by which registries are asked through mirrors; containerd reads them at each pull."""
    files = []
    # In one order on every node: pyinfra must be able to put the operations of all of them into one.
    for registry, urls in sorted(settings.registry_mirrors.items()):
        server = _SERVERS.get(registry, f"https://{registry}")
        hosts = "".join(f'\n[host."{url}"]\n  capabilities = ["pull", "resolve"]\n' for url in urls)
        files.append(File(f"{CERTS_D}/{registry}/hosts.toml", f'{HEADER}\nserver = "{server}"\n{hosts}'))
    return tuple(files)


def plan(settings: NodeSettings, facts: NodeFacts) -> tuple[Disruption, list[str]]:
    """The change of containerd's own file, none where the node is right; and notes. Raises RefusedError."""
    found = facts.containerd
    if not found.version:
        return Disruption(), []
    where = f"node {facts.name}"
    if found.error or not found.dump:
        raise RefusedError(
            f"{where}: `containerd config dump` fails, so that containerd would not start again: "
            f"{' '.join(found.error.split())[:200] or 'no output'}; mend {found.config_file} first"
        )
    dump = _parsed(where, "the output of `containerd config dump`", found.dump)
    version = int(dump.get("version", 0))
    if version not in _RUNTIME:
        raise RefusedError(f"{where}: containerd's configuration has version {version}; gpuready knows 2, 3 and 4")
    _same_versions(facts)
    notes = []
    if parts(found.version) < (2,) and parts(facts.kubelet.version)[:2] >= (1, 36):
        notes.append(f"{facts.name}: containerd {found.version}: Kubernetes 1.37 needs containerd 2.0 or newer")
    wanted = {key: value for key, value in _wanted(settings, facts, version).items() if _at(dump, key) != value}
    if not wanted:
        return Disruption(), notes
    text = edited(where, found.config_file, found.config, version, wanted)
    said = ", ".join(f"{key[-1]} = {_toml(value)}" for key, value in wanted.items())
    change = Disruption(
        reasons=(f"containerd: {said} in {found.config_file}",),
        files=(File(found.config_file, text),),
        # On the files as they then are; a failure puts the old ones back before containerd was ever restarted.
        commands=(_proof(wanted),),
        undo=("true",),
        services=("containerd",),
    )
    return change, notes


def k3s(settings: NodeSettings) -> tuple[File, ...]:
    """The registries of k3s, which writes containerd's configuration itself from a template at each start."""
    if not settings.registry_mirrors:
        return ()
    table = {name: {"endpoint": list(urls)} for name, urls in settings.registry_mirrors.items()}
    return (File(K3S_REGISTRIES, f"{HEADER}\n{yaml.safe_dump({'mirrors': table}, sort_keys=False)}", "600"),)


def k3s_plan(settings: NodeSettings, facts: NodeFacts, unit: str) -> Disruption:
    """k3s reads its registries when it starts; its own containerd needs nothing else."""
    changed = tuple(one for one in k3s(settings) if differs(one, facts.files))
    if not changed:
        return Disruption(unit=unit)
    there = facts.files.get(K3S_REGISTRIES)
    if there is not None and not there.startswith(HEADER):
        raise RefusedError(
            f"node {facts.name}: {K3S_REGISTRIES} is not of gpuready; put the mirrors there yourself and take "
            "`registry_mirrors` out of inventory"
        )
    return Disruption(unit=unit, reasons=(f"k3s: {K3S_REGISTRIES}",), files=changed)


def edited(where: str, path: str, text: str | None, version: int, wanted: Mapping[Key, Any]) -> str:
    """The file with each key of ``wanted`` set and nothing else changed; raises RefusedError where that cannot be.

    Comments and order stay. Where there is no file, one of the running ``version`` is made.
    """
    before = _parsed(where, path, text or f"version = {version}\n")
    result = text if text is not None else f"{HEADER}\nversion = {version}\n"
    for key, value in wanted.items():
        result = _set(result, key, value)
    expected = before
    for key, value in wanted.items():
        expected = _with(expected, key, value)
    try:
        good = tomllib.loads(result) == expected
    except tomllib.TOMLDecodeError:
        good = False
    if not good:
        names = ", ".join(f"{'.'.join(key)} = {_toml(value)}" for key, value in wanted.items())
        raise RefusedError(
            f"{where}: {path} is written in a way that gpuready does not edit; set {names} there yourself"
        )
    return result


# -- inside -------------------------------------------------------------------------------------------------------


def _wanted(settings: NodeSettings, facts: NodeFacts, version: int) -> dict[Key, Any]:
    runtime: Key = ("plugins", _RUNTIME[version])
    wanted: dict[Key, Any] = {(*runtime, "enable_cdi"): True}
    driver = facts.kubelet.live.get("cgroupDriver", "systemd")
    wanted[(*runtime, "containerd", "runtimes", "runc", "options", "SystemdCgroup")] = driver == "systemd"
    if parts(facts.containerd.version)[:2] < (1, 7):
        del wanted[(*runtime, "enable_cdi")]
    if settings.registry_mirrors:
        key: Key = ("plugins", _IMAGES[version], "registry", "config_path")
        now = str(_at(_parsed("", "", facts.containerd.dump), key) or "")
        wanted[key] = now if CERTS_D in now.split(":") else CERTS_D
    return wanted


def _same_versions(facts: NodeFacts) -> None:
    """The file and all drop-ins have one version, or containerd does not start the next time."""
    found = facts.containerd
    texts = {found.config_file: found.config or "", **found.drop_ins}
    versions = {}
    for path, text in texts.items():
        if match := re.search(r"^version\s*=\s*(\d+)", text, re.MULTILINE):
            versions[path] = int(match[1])
    root = versions.get(found.config_file)
    for path, version in versions.items():
        if root is not None and version != root:
            raise RefusedError(
                f"node {facts.name}: {path} has version {version} and {found.config_file} {root}; containerd does not "
                "start when they differ: bring them together, `containerd config migrate` helps"
            )


def _proof(wanted: Mapping[Key, Any]) -> str:
    """A command that fails where containerd, with the files as they are, would not start or not be as wanted."""
    script = '{sub(/^[ \\t]+/, "")} /^\\[/ {here = ($0 == head)} here && $0 == line {found = 1} END {exit !found}'
    checks = [f"containerd config dump > {STAGED}"]
    for key, value in wanted.items():
        # containerd 2 writes single quotes, 1 double ones.
        head, line = f"[{_dotted(key[:-1])}]", f"{key[-1]} = {_toml(value)}"
        given = f"-v head={shlex.quote(head)} -v line={shlex.quote(line)}"
        checks.append(f"""tr "'" '"' < {STAGED} | awk {given} {shlex.quote(script)}""")
    return f"{' && '.join(checks)} && rm -f {STAGED}"


def _set(text: str, key: Key, value: Any) -> str:
    """One key set: in its line, else below its table's header, else in a new table at the end."""
    *table, name = key
    lines = text.splitlines()
    inside, last = False, None
    for index, line in enumerate(lines):
        header = re.match(r"\s*\[([^\[\]]+)\]\s*(#.*)?$", line)
        if header or re.match(r"\s*\[\[", line):
            inside = bool(header and _key(header[1]) == tuple(table))
            last = index if inside else last
        elif inside and (match := re.match(rf"(\s*){re.escape(name)}\s*=", line)):
            lines[index] = f"{match[1]}{name} = {_toml(value)}"
            return "\n".join(lines) + "\n"
    if last is not None:
        indent = re.match(r"\s*", lines[last])
        lines.insert(last + 1, f"{indent[0] if indent else ''}  {name} = {_toml(value)}")
        return "\n".join(lines) + "\n"
    return "\n".join([*lines, "", f"[{_dotted(tuple(table))}]", f"  {name} = {_toml(value)}"]) + "\n"


def _dotted(key: Key) -> str:
    return ".".join(part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else f'"{part}"' for part in key)


def _key(header: str) -> Key:
    """The parts of a dotted key, bare or in quotes."""
    return tuple(a or b or c for a, b, c in re.findall(r'"([^"]*)"|\'([^\']*)\'|([A-Za-z0-9_-]+)', header))


def _toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f'"{value}"'


def _at(table: Any, key: Key) -> Any:
    for part in key:
        table = table.get(part) if isinstance(table, Mapping) else None
    return table


def _with(table: Table, key: Key, value: Any) -> dict[str, Any]:
    first, *rest = key
    inner = _with(table.get(first) or {}, tuple(rest), value) if rest else value
    return {**table, first: inner}


def _parsed(where: str, path: str, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RefusedError(f"{where}: {path} is no TOML ({error}); mend it first") from error
