"""What this cluster's all-reduce reached when it was accepted, kept on the cluster for later runs to compare with.

Kept on purpose in a ConfigMap, which no run removes. A run adds what is not there and raises what it exceeds; to
lower a figure a person deletes the ConfigMap.
"""

from __future__ import annotations

import json
from typing import Any

from gpuready.charts_values.errors import ApiError
from gpuready.charts_values.inventory import Group
from gpuready.charts_values.kube import Api

from ..evidence import Evidence, ReadFailure
from ..expected import Expected
from ..model import Run, Status
from ..nccl_evidence import runs
from .verdicts import APP_LABEL, NAMESPACE

NAME = "gpuready-baseline"
SCHEMA = 1
_FILE = "baselines.json"
_CONFIGMAPS = f"/api/v1/namespaces/{NAMESPACE}/configmaps"
# Without these nobody has looked whether the figure is one to be proud of.
_JUDGED = {"nccl.run", "nccl.transport", "nccl.rails", "nccl.errors", "nccl.correct", "nccl.bandwidth"}


def key(group: Group, kind: str, nodes: int, size: int) -> str:
    """What must be alike for two figures to compare: group, run, nodes, size in bytes, GPUs and NICs."""
    nics = f"{group.nics}x{group.nic_gbits_s:g}-{group.rdma}"
    return f"{group.name}/{kind}/{nodes}-nodes/all_reduce/{size}/{group.gpus}x{group.gpu_product}/{nics}"


def measured(expected: Expected, evidence: Evidence) -> dict[str, dict[str, Any]]:
    """The figures of this run by their key, each with the workload that it comes from."""
    groups = {one["metadata"]["name"]: group for one, group in expected.gpu_nodes(evidence.objects("nodes"))}
    found: dict[str, dict[str, Any]] = {}
    for run in runs(evidence):
        facts = run.report.to_json()
        rows = (facts["benchmark"] or {}).get("rows")
        group = groups.get(run.nodes[0])
        if not rows or group is None:
            continue
        found[key(group, run.kind, len(run.nodes), rows[-1]["bytes"])] = {
            "busbw_gbytes_s": facts["benchmark"]["max_size_busbw_gbytes_s"],
            "workload": run.workload,
            "nccl": facts["versions"],
            "time": evidence.about.get("time"),
        }
    return found


def stored(evidence: Evidence) -> dict[str, dict[str, Any]]:
    """The figures that the cluster kept from earlier runs."""
    found: dict[str, dict[str, Any]] = evidence.about.get("baseline") or {}
    return found


def find(evidence: Evidence, group: Group, kind: str, nodes: int, size: int) -> tuple[float, str] | None:
    """Bus bandwidth in GB/s that this cluster reached, and when."""
    one = stored(evidence).get(key(group, kind, nodes, size))
    return (float(one["busbw_gbytes_s"]), str(one.get("time") or "")) if one else None


def read(api: Api, evidence: Evidence) -> None:
    """Bring the kept figures into the evidence. A role that may not read them has none, and that is recorded."""
    try:
        config = api.find(f"{_CONFIGMAPS}/{NAME}")
    except ApiError as error:
        kind = "forbidden" if error.forbidden else "refused"
        evidence.failures["baseline"] = ReadFailure(kind, str(error))
        return
    entries = _entries((config or {}).get("data"))
    if entries is None:
        text = f"ConfigMap {NAMESPACE}/{NAME} is not what gpuready writes; it is left alone"
        evidence.failures["baseline"] = ReadFailure("refused", text)
    evidence.about["baseline"] = entries or {}


def worth_keeping(run: Run, expected: Expected, evidence: Evidence) -> dict[str, dict[str, Any]]:
    """The figures that a passing run adds or raises; none where a check that vouches for them was not judged."""
    passing = run.exit_code == 0 and {result.check for result in run.results} >= _JUDGED
    doubtful = any(
        result.status not in (Status.PASS, Status.SKIP)
        # An unknown class of fabric has no floor, so that its own figure is all there is to compare with.
        and (result.check, result.finding.reason) != ("nccl.bandwidth", "NoBaseline")
        for result in run.results
        if result.check in _JUDGED
    )
    if not passing or doubtful or "baseline" in evidence.failures:
        return {}
    old = stored(evidence)
    return {
        name: {part: value for part, value in one.items() if part != "workload"}
        for name, one in measured(expected, evidence).items()
        if one["busbw_gbytes_s"] > old.get(name, {}).get("busbw_gbytes_s", 0.0)
    }


def keep(api: Api, evidence: Evidence, new: dict[str, dict[str, Any]]) -> str:
    """Write figures to the cluster; returns why it could not, empty where it could."""
    if not new:
        return ""
    text = json.dumps({"schema": SCHEMA, "baselines": {**stored(evidence), **new}}, indent=1, sort_keys=True)
    body = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": NAME,
            "namespace": NAMESPACE,
            "labels": {APP_LABEL: "gpuready", "gpuready.io/keep": "baseline"},
        },
        "data": {_FILE: text},
    }
    try:
        if api.find(f"{_CONFIGMAPS}/{NAME}") is None:
            api.create(_CONFIGMAPS, body)
        else:
            api.patch(f"{_CONFIGMAPS}/{NAME}", {"data": body["data"]})
    except ApiError as error:
        return f"The baselines of this run could not be kept: {error}"
    return ""


def _entries(data: Any) -> dict[str, dict[str, Any]] | None:
    """The kept figures; None where the text is not ours."""
    if not data:
        return {}
    try:
        found = json.loads(data[_FILE])
        entries: dict[str, dict[str, Any]] = found["baselines"]
        good = found["schema"] == SCHEMA and all(one["busbw_gbytes_s"] > 0 for one in entries.values())
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return entries if good else None
