"""Runs the installer, and reads what it planned or did."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from gpuready.charts_values.kube import Api
from gpuready.rehearsal.faults.releases import restated

from .commands import run

_INVENTORY = """\
from gpuready.charts_values import inventory as _inventory
_CLUSTERS = {{"rehearsal": {{"rehearsal": True, **{changes!r}}}}}
_this = _inventory.choose(_CLUSTERS, __file__)
cluster = (["@local"], {{"gpuready": _this}})
"""


def inventory(folder: Path, **changes: Any) -> Path:
    """An inventory file whose entry `rehearsal` says something else than the state folder."""
    file = folder / "inventory"
    file.write_text(_INVENTORY.format(changes=changes))
    return file


def own_values(inventory: Path, release: str, text: str) -> None:
    """What `charts_values/rehearsal/RELEASE.yaml` beside an inventory says."""
    folder = inventory.parent / "charts_values" / "rehearsal"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{release}.yaml").write_text(text)


def pyinfra(
    state_dir: Path, *options: str, file: Path | str = "inventory", **env: str
) -> subprocess.CompletedProcess[str]:
    """`pyinfra INVENTORY deploys/gpu.py`; the charts are the stand-ins unless ``env`` says otherwise."""
    env.setdefault("GPUREADY_CHARTS", "")
    return run("pyinfra", *options, str(file), "deploys/gpu.py", state_dir=state_dir, seconds=240, **env)


def plan(state_dir: Path, file: Path | str = "inventory") -> dict[str, bool]:
    """Each operation, in order, and whether it would change something."""
    done = pyinfra(state_dir, "--dry", "--json", file=file, PYINFRA_YES="")
    assert done.returncode == 0, done.stderr
    return {one["name"]: bool(one["hosts_with_change"]) for one in json.loads(done.stdout)["plan"]}


def install(state_dir: Path, file: Path | str = "inventory", **env: str) -> dict[str, bool]:
    """Each operation, in order, and whether it changed something."""
    done = pyinfra(state_dir, "-y", "--json", file=file, **env)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["results"]["operations"]
    assert [one for one in found if one["error"]] == []
    return {one["name"]: bool(one["success"]) for one in found}


def set_status(api: Api, name: str, status: str) -> None:
    """Make Helm's newest record of a release say that an operation is under way, or failed."""
    path, body, _ = restated(api, name, status)
    api.patch(path, body)


def footprint(api: Api) -> dict[str, set[str]]:
    """What an installation leaves: namespaces, Helm's records with the rest of the Secrets, kinds, workloads."""
    paths = {
        "namespaces": "/api/v1/namespaces",
        "secrets": "/api/v1/secrets",
        "kinds": "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
        "daemonsets": "/apis/apps/v1/daemonsets",
        "deployments": "/apis/apps/v1/deployments",
    }
    return {key: {item["metadata"]["name"] for item in api.list(path)} for key, path in paths.items()}
