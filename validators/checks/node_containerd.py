"""containerd of a machine: it will start again, and gives devices to containers by CDI."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from typing import Any

from gpuready.charts_values.versions import parts

from ..machines import Machine, machine_check
from ..model import Finding
from .node_access import REACHED

_RUNTIMES = ("io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri")
_CDI_SINCE = (1, 7)
_OWN = "k3s writes containerd's configuration itself"


@machine_check(
    "node.containerd_version",
    title="containerd's files are of one version, and it starts again",
    proves="The next restart of containerd, by the GPU toolkit or a boot, does not take the node down.",
    rule="`version` is the same in containerd's own file and in each drop-in, and `containerd config dump` reads "
    "them all.",
    source="containerd/containerd, docs/man/containerd-config.toml.5.md: version and imports",
    fix="Bring them together: containerd config migrate prints a file in the newest version; prove it with "
    "containerd config dump before any restart.",
    avoid="Do not restart containerd, nor let the GPU toolkit do so, before this is mended.",
    after=REACHED,
)
def containerd_version(one: Machine) -> Finding:
    """Versions of the configuration."""
    found = one.part("containerd")
    if found.get("config_file", "").startswith("/var/lib/rancher/"):
        return one.skip(_OWN)
    texts = {found["config_file"]: found.get("config"), **(found.get("drop_ins") or {})}
    versions = {path: match[1] for path, text in texts.items() if (match := _VERSION.search(text or ""))}
    root = versions.get(found["config_file"])
    for path, version in versions.items():
        if root is not None and version != root:
            text = f"{path} has version {version}, {found['config_file']} has {root}"
            cause = "containerd's files differ in version: it will not start again"
            return one.fail("VersionsDiffer", cause, text, expected=root, observed=version)
    if found.get("error"):
        cause = "containerd cannot read its configuration: it will not start again"
        return one.fail("ConfigUnreadable", cause, " ".join(found["error"].split())[:300])
    if not found.get("version"):
        return one.unproven("NoContainerd", "the probe finds no containerd", required=False)
    return one.good(f"containerd {found['version']}, configuration {root or 'by default'}")


_VERSION = re.compile(r"^version\s*=\s*(\d+)", re.MULTILINE)


@machine_check(
    "node.containerd_cdi",
    title="containerd gives devices by CDI",
    proves="Devices of the GPU toolkit and of DRA drivers reach containers.",
    rule="enable_cdi is true in `containerd config dump`, from containerd 1.7 on; older ones know no CDI.",
    source="containerd documentation, CRI plugin, CDI",
    fix="Set enable_cdi = true in the CRI section of containerd's configuration; pyinfra inventory deploys/gpu.py does "
    "so under `maintenance`.",
    avoid="Do not restart containerd under running jobs; drain the node.",
    after=(*REACHED, "node.containerd_version"),
)
def containerd_cdi(one: Machine) -> Finding:
    """CDI."""
    found = one.part("containerd")
    if found.get("config_file", "").startswith("/var/lib/rancher/"):
        return one.skip(_OWN)
    if not found.get("version"):
        return one.unproven("NoContainerd", "the probe finds no containerd", required=False)
    if parts(found["version"])[:2] < _CDI_SINCE:
        if one.group is not None and one.cluster.dra != "off":
            text = f"containerd {found['version']}"
            return one.fail("NoCdi", "containerd is too old for CDI, which DRA needs", text, expected="1.7 or newer")
        return one.skip("this containerd is older than CDI")
    table = _cri(one)
    if table is None:
        return one.unproven("NoDump", "containerd does not show its configuration")
    if table.get("enable_cdi") is not True:
        return one.fail("CdiOff", "containerd does not give devices by CDI", expected="true", observed="false")
    return one.good(f"containerd {found['version']}")


def runs_containerd(one: Machine) -> bool:
    """Whether it has a containerd with a configuration of its own; that of k3s is made from a template."""
    found = one.part("containerd")
    return bool(found.get("version")) and not found.get("config_file", "").startswith("/var/lib/rancher/")


def runc_options(one: Machine) -> Mapping[str, Any] | None:
    """The options of containerd's runc, by its dump or else its file; None where neither is shown."""
    table = _cri(one)
    if table is None:
        return None
    runc = ((table.get("containerd") or {}).get("runtimes") or {}).get("runc") or {}
    return runc.get("options") or {}


def _cri(one: Machine) -> Mapping[str, Any] | None:
    """The CRI section of containerd's whole configuration; None where it is not shown."""
    found = one.part("containerd")
    try:
        plugins = tomllib.loads(found.get("dump") or "").get("plugins") or {}
    except tomllib.TOMLDecodeError:
        return None
    return next((plugins[name] for name in _RUNTIMES if name in plugins), None)
