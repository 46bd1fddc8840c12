"""The two runs that judge a cluster: check reads it, accept also runs pods on it."""

from __future__ import annotations

import dataclasses
import difflib
import os
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpuready.charts_values.errors import (
    ApiError,
    DeadlineError,
    GpureadyError,
    InputError,
    RefusedError,
    UnreachableError,
)
from gpuready.charts_values.inventory import Cluster
from gpuready.charts_values.kube import Api

from . import nccl_evidence, registry
from .acceptance import baseline, holders, search
from .acceptance import plan as planning
from .acceptance import run as acceptance
from .acceptance.killed import killed_runs
from .checks.subjects import labels_of, name_of
from .collect import machines as machine_reads
from .collect.cluster import RAIL_READS, collect
from .evidence import Evidence, ReadFailure, require_new, simulated
from .expected import Expected
from .judge import judge
from .model import ClusterIdentity, Run
from .progress import Progress
from .target import Target, resolve

STAND_IN = "gpuready.io/stand-in"
COLLECT_SECONDS = 60.0


@dataclass(frozen=True)
class Judged:
    """A run, and what it was judged from; ``save`` keeps that as a bundle."""

    run: Run
    evidence: Evidence
    expected: Expected

    def save(self, folder: str | None) -> None:
        """Raises InputError where the folder cannot take it."""
        if folder:
            self.evidence.save(Path(folder), self.expected.to_json())


def check(args: Namespace, progress: Progress) -> Judged:
    """`gpuready check`: collect, judge."""
    if args.from_bundle:
        return _from_bundle(args)
    started, begin = _now(), time.monotonic()
    target = _target(args)
    api = target.api(begin + args.timeout)
    evidence = _collect(api, target.expected, begin + args.timeout, progress)
    _ask_machines(args, api, target.expected, evidence, begin + args.timeout, progress)
    evidence.about |= {"kind": "check", "time": started}
    return _judged("check", args, target.expected, evidence, started, time.monotonic() - begin, api.calls)


def accept(args: Namespace, progress: Progress) -> Judged:
    """`gpuready accept`: collect, run the probes, judge all."""
    started, begin = _now(), time.monotonic()
    target = _target(args)
    end = begin + args.timeout
    api = target.api(end)
    evidence = _collect(api, target.expected, min(begin + COLLECT_SECONDS, end), progress)
    _ask_machines(args, api, target.expected, evidence, min(time.monotonic() + COLLECT_SECONDS, end), progress)
    evidence.about |= {"kind": "accept", "time": started}
    wanted = _probes_wanted(args)
    if wanted and not evidence.about.get("interrupted"):
        run = acceptance.Acceptance(api, target.expected.cluster, seconds=args.timeout, end=end, progress=progress.say)
        with _cleaned(run, evidence):
            _probe(args, run, target.expected, evidence, wanted)
    seconds = time.monotonic() - begin
    judged = _judged("accept", args, target.expected, evidence, started, seconds, api.calls)
    api.deadline = time.monotonic() + acceptance.LAST_SECONDS
    trouble = baseline.keep(api, evidence, baseline.worth_keeping(judged.run, judged.expected, evidence))
    if not trouble:
        return judged
    notes = (*judged.run.notes, trouble)
    return dataclasses.replace(judged, run=dataclasses.replace(judged.run, notes=notes))


def _probe(
    args: Namespace, run: acceptance.Acceptance, expected: Expected, evidence: Evidence, wanted: set[str]
) -> None:
    nccl = args.nccl if "nccl" in wanted else "off"
    killed = killed_runs(run.api)
    pods = killed.others(holders.running_pods(run.api))
    plan = planning.plan(expected, evidence, pods, nccl=nccl, claims=holders.claims(run.api, evidence))
    evidence.about |= {"not_probed": plan.not_probed, "nccl_excluded": plan.nccl_excluded, "nccl_off": plan.nccl.off}
    baseline.read(run.api, evidence)
    evidence.about["run"] = run.run
    run.start(evidence)
    run.take_over(killed)
    if "smi" in wanted:
        run.smi(plan, evidence)
    if "nccl" in wanted:
        for workload, targets in plan.nccl.runs.items():
            run.nccl(workload, targets, evidence)
        if nccl == "all":
            search.find(run, expected, evidence, plan, killed.search)


def unanswered(args: Namespace, kind: str, error: GpureadyError) -> Run:
    """The run that an error ended before anything was judged, so that JSON and JUnit exist then too."""
    cluster = Cluster(name=args.cluster or os.environ.get("CLUSTER") or "cluster", entry={}, groups=())
    why = "unreachable"
    if isinstance(error, InputError | RefusedError):
        why = "invalid"
    elif isinstance(error, ApiError) and error.forbidden:
        why = "forbidden"
    evidence = Evidence(failures={"version": ReadFailure(why, str(error))})
    results = judge(Expected(cluster, ()), evidence, [registry.get("cluster.reachable")])
    identity = ClusterIdentity(cluster.name, None, None, rehearsal=False)
    return Run(kind, identity, _now(), 0.0, 0, results, strict=args.strict)


@contextmanager
def _cleaned(run: acceptance.Acceptance, evidence: Evidence) -> Iterator[None]:
    """Clean up whatever happens; an error and Ctrl-C are kept as evidence, so that the rest is still judged."""
    try:
        yield
    except (ApiError, UnreachableError, DeadlineError) as error:
        acceptance.record_failure(evidence, "acceptance", error)
    except KeyboardInterrupt:
        evidence.about["interrupted"] = True
    finally:
        run.clean(evidence)


def _target(args: Namespace) -> Target:
    if args.save:
        require_new(Path(args.save))
    return resolve(args)


def _collect(api: Api, expected: Expected, until: float, progress: Progress) -> Evidence:
    progress.say(f"reading {api.server}")
    more = RAIL_READS if expected.cluster.networks else ()
    namespaces = {release.namespace for release in expected.releases}
    say = progress.say
    return collect(api, until=until, more=more, namespaces=namespaces, on_read=lambda key: say(f"read {key}"))


def _ask_machines(
    args: Namespace, api: Api, expected: Expected, evidence: Evidence, until: float, progress: Progress
) -> None:
    """Probe the machines of ``ssh_nodes``, where the selected checks need it."""
    nodes = {name: data for name, data in expected.cluster.ssh_nodes.items() if args.node in (None, name)}
    if not nodes or evidence.about.get("interrupted") or not _selected(args, "node"):
        return
    progress.say(f"asking {len(nodes)} nodes over SSH")
    machine_reads.collect(evidence, nodes, until, api=api, on_read=lambda key: progress.say(f"read {key}"))


def _selected(args: Namespace, group: str) -> bool:
    """Whether the options leave any check of a group."""
    return any(one.group == group and registry.selected(one.id, args.only, args.skip) for one in registry.all_checks())


def _from_bundle(args: Namespace) -> Judged:
    """Judge saved evidence again, by its own expectations or those of an explicit --cluster."""
    started, begin = _now(), time.monotonic()
    evidence, promised = Evidence.load(Path(args.from_bundle))
    if args.cluster:
        expected = resolve(args).expected
    elif promised is not None:
        expected = Expected.from_json(promised, Path(args.from_bundle) / "expected.json")
    else:
        expected = Expected(Cluster(name="bundle", entry={}, groups=()), ())
    try:
        return _judged("check", args, expected, evidence, started, time.monotonic() - begin, 0, saved=True)
    except (KeyError, TypeError, AttributeError) as error:
        # What an API server sends never lacks these parts; what was edited by hand may.
        text = f"{type(error).__name__}: {error}"
        raise InputError(f"{args.from_bundle} holds objects that are not those of a cluster ({text})") from error


def _judged(
    kind: str,
    args: Namespace,
    expected: Expected,
    evidence: Evidence,
    started: str,
    seconds: float,
    calls: int,
    *,
    saved: bool = False,
) -> Judged:
    expected = _as_seen(expected, evidence)
    _require_node(args.node, expected, evidence)
    phase = "accept" if evidence.about.get("kind") == "accept" else "check"
    only, skip = args.only or [], args.skip or []
    results = judge(expected, evidence, registry.of_phase(phase), only=only, skip=skip, node=args.node, saved=saved)
    cluster = expected.cluster
    server = evidence.about.get("server")
    identity = ClusterIdentity(cluster.name, server, evidence.about.get("uid"), cluster.rehearsal)
    extra: dict[str, Any] = {}
    if phase == "accept":
        extra["nccl"] = nccl_evidence.to_json(evidence)
        measured = baseline.measured(expected, evidence)
        if measured:
            extra["nccl"]["baseline"] = {"before": baseline.stored(evidence), "measured": measured}
    notes = _notes(expected, evidence)
    interrupted = bool(evidence.about.get("interrupted")) and not saved
    run = Run(kind, identity, started, seconds, calls, results, args.strict, notes, extra, interrupted)
    return Judged(run, evidence, expected)


def _require_node(name: str | None, expected: Expected, evidence: Evidence) -> None:
    """Raises InputError where nothing knows the node of --node: a typo would pass in silence."""
    if name is None or "nodes" in evidence.failures:
        return
    known = {name_of(one) for one in evidence.objects("nodes")} | {*evidence.nodes, *expected.cluster.ssh_nodes}
    known |= {promised for group in expected.cluster.groups for promised in group.nodes}
    if name not in known:
        near = difflib.get_close_matches(name, sorted(known), 1)
        hint = f"did you mean {near[0]}?" if near else "kubectl get nodes lists them"
        raise InputError(f"--node {name}: inventory and cluster know no such node; {hint}")


def _as_seen(expected: Expected, evidence: Evidence) -> Expected:
    """A cluster of simulated nodes is a rehearsal, whatever its inventory entry says."""
    if any(map(simulated, evidence.objects("nodes"))):
        return dataclasses.replace(expected, cluster=dataclasses.replace(expected.cluster, rehearsal=True))
    return expected


def _notes(expected: Expected, evidence: Evidence) -> tuple[str, ...]:
    """What a reader must know before trusting the rest."""
    notes = []
    if expected.cluster.rehearsal:
        notes.append(
            "Rehearsal: API server, scheduler, controllers and Helm are real; nodes, GPUs, NICs, the work of "
            "the operators and the output of pods are simulated."
        )
        real = [name_of(one) for one in evidence.objects("nodes") if not simulated(one)]
        if real:
            notes.append(f"Real, but for their kernel and GPUs: {', '.join(sorted(real))}.")
    stand_ins = {
        release
        for key in ("deployments.apps", "daemonsets.apps")
        for item in evidence.objects(key)
        if labels_of(item).get(STAND_IN) == "true"
        and (release := (item["metadata"].get("annotations") or {}).get("meta.helm.sh/release-name"))
    }
    if stand_ins:
        notes.append(f"Stand-in charts, not the upstream ones: {', '.join(sorted(stand_ins))}.")
    return tuple(notes)


def _probes_wanted(args: Namespace) -> set[str]:
    """Which probes the selected checks need: smi, nccl, both or none."""
    wanted = set()
    for one in registry.of_phase("accept"):
        if one.phase == "accept" and registry.selected(one.id, args.only, args.skip):
            wanted.add("nccl" if one.group == "nccl" else "smi")
    return wanted


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def selection(args: Namespace) -> Sequence[str]:
    """Refuse patterns that select nothing."""
    registry.require_matches(args.only or (), "--only")
    registry.require_matches(args.skip or (), "--skip")
    return args.only or ()
