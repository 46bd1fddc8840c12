"""An accepted cluster without a cluster: pods as a rehearsal ends them, and the search among them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from gpuready.charts_values import inventory
from gpuready.rehearsal.actors import outcomes
from gpuready.rehearsal.outputs.nccl import Host, render
from gpuready.validators import localise
from gpuready.validators.acceptance import manifests, plan, search
from gpuready.validators.acceptance.verdicts import RUN_LABEL, WORKLOAD_LABEL
from gpuready.validators.checks.benchmark import nccl_slow
from gpuready.validators.evidence import Evidence
from gpuready.validators.expected import Expected
from gpuready.validators.model import Finding

from .conftest import entry, gpu_node

NICS = tuple(f"mlx5_{number}" for number in range(8))
OWNER = {"metadata": {"name": "anchor-x", "uid": "u"}}


def host(name: str, slow: Mapping[str, float] | None = None, **changes: Any) -> Host:
    """A pod on an H100 node; ``slow`` is the share of its rate that a NIC reaches."""
    one = Host(name, 8, NICS, "IB", 400, rdma=True, gdr=True, address="192.0.2.1", slow=slow or {})
    return dataclasses.replace(one, **changes)


class Lab:
    """An accepted cluster of H100 nodes, some of which are slow."""

    def __init__(
        self,
        count: int,
        slow: Mapping[str, Mapping[str, float]],
        broken: Mapping[str, Mapping[str, Any]] | None = None,
        **changes: Any,
    ) -> None:
        names = [f"gpu-{number}" for number in range(count)]
        groups = entry()["groups"]
        groups["h100"]["nodes"] = names
        self.expected = Expected.of(inventory.parse("lab", entry(groups=groups, **changes)))
        self.evidence = Evidence(cluster={"nodes": [gpu_node(name) for name in names], "pods": []})
        self.evidence.about |= {"kind": "accept", "run": "r1", "time": "2026-01-02T00:00:00Z"}
        self.hosts = {name: host(name, slow.get(name), **(broken or {}).get(name, {})) for name in names}
        self.plan = plan.plan(self.expected, self.evidence, [], nccl="all")
        for workload, targets in self.plan.nccl.runs.items():
            self.run(workload, [self.hosts[one.node] for one in targets])

    def run(self, workload: str, hosts: Sequence[Host]) -> None:
        """Put the logs and pods of an all-reduce into the evidence."""
        done = render(hosts, min_bytes=1 << 30, max_bytes=8 << 30, seed=7)
        self.evidence.logs[workload] = {one.name: done.logs[one.name] for one in hosts}
        self.evidence.about.setdefault("nccl", {})[workload] = {"nodes": [one.name for one in hosts]}
        for one in hosts:
            labels = {RUN_LABEL: "r1", WORKLOAD_LABEL: workload}
            state = {"terminated": {"exitCode": 0}}
            pod = {
                "metadata": {"name": one.name, "labels": labels},
                "spec": {"nodeName": one.name},
                "status": {"phase": "Succeeded", "containerStatuses": [{"state": state}]},
            }
            self.evidence.cluster["pods"].append(pod)

    def pods(self, run: localise.Run, number: int) -> list[dict[str, Any]]:
        """The pods of a run of the search, played from the very Job that would be made."""
        targets = [one for one in self.plan.targets if one.node in run.nodes]
        names = tuple(NICS[rail] for rail in run.rails)
        job = manifests.search_job("r1", run.id, "w", targets, names, run.repeats, self.expected.cluster, OWNER, 60)
        spec = job["spec"]["template"]["spec"]
        pods = [{"metadata": {"name": name, "uid": name}, "spec": spec} for name in run.nodes]
        ended = outcomes.nccl_probe(pods, [self.hosts[name] for name in run.nodes], f"{number}", {})
        for pod in pods:
            said = ended[str(pod["metadata"]["uid"])]
            state = {"terminated": {"exitCode": said.exit_code, "message": said.message}}
            pod["status"] = {"phase": "Succeeded", "containerStatuses": [{"state": state}]}
        return pods

    def search(self) -> list[Finding]:
        """Search as acceptance does, and judge."""
        slow, refused = search.slow_runs(self.expected, self.evidence, self.plan)
        about: dict[str, Any] = {"not_searched": refused, "searches": []}
        for one in slow:
            names = search.rails_of(one.run)
            found = search.start(self.expected, self.evidence, one)
            while planned := found.next_round():
                for run in planned:
                    pods = self.pods(run, len(found.outcomes))
                    found.record(run.id, search.outcome(pods, len(run.nodes), names, in_full=True))
            about["searches"].append(
                {
                    "workload": one.run.workload,
                    "missed": "fail",
                    "nodes": [target.node for target in one.targets],
                    "rounds": found.rounds,
                    "runs": len(found.runs),
                    "seconds": 1.0,
                    "rails": list(names),
                    "verdicts": [verdict.to_json() for verdict in found.verdicts()],
                    "state": found.to_json(),
                }
            )
        if slow or refused:
            # As it comes back from a saved bundle.
            self.evidence.about["nccl_search"] = json.loads(json.dumps(about))
        return list(nccl_slow(self.expected, self.evidence))
