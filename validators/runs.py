"""The two runs that judge a cluster: check reads it, accept also runs pods on it."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpuready.charts_values.errors import ApiError, GpureadyError
from gpuready.charts_values.inventory import Cluster

from . import nccl_evidence, registry
from .acceptance import plan as planning
from .acceptance import run as acceptance
from .checks.subjects import labels_of
from .collect.cluster import collect
from .evidence import Evidence, ReadFailure
from .expected import Expected
from .judge import judge
from .model import ClusterIdentity, Run
from .progress import Progress
from .target import Target, resolve

STAND_IN = "gpuready.io/stand-in"
REQUEST_SECONDS = 15.0


def check(args: Namespace, progress: Progress) -> Run:
    """`gpuready check`: collect, judge."""
    if args.from_bundle:
        return _from_bundle(args)
    started, begin = _now(), time.monotonic()
    target = resolve(args)
    evidence, calls = _collect(target, args.timeout, progress)
    evidence.about |= {"kind": "check", "time": started}
    _save(args.save, evidence, target.expected)
    return _run("check", args, target.expected, evidence, started, time.monotonic() - begin, calls)


def accept(args: Namespace, progress: Progress) -> Run:
    """`gpuready accept`: collect, run the probes, judge all."""
    started, begin = _now(), time.monotonic()
    target = resolve(args)
    expected = target.expected
    evidence, calls = _collect(target, min(60.0, args.timeout), progress)
    evidence.about |= {"kind": "accept", "time": started}
    api = target.api(REQUEST_SECONDS)
    wanted = _probes_wanted(args)
    if wanted:
        plan = planning.plan(
            expected, evidence, acceptance.running_pods(api), nccl=args.nccl if "nccl" in wanted else "off"
        )
        evidence.about["not_probed"] = plan.not_probed
        evidence.about["nccl_excluded"] = plan.nccl_excluded
        evidence.about["nccl_off"] = plan.nccl_off
        acceptance.remove_stale(api)
        run = acceptance.Acceptance(api, expected.cluster, seconds=args.timeout, progress=progress.say)
        evidence.about["run"] = run.run
        with _cleaned(run, evidence):
            run.start()
            if "smi" in wanted:
                run.smi(plan, evidence)
            for workload, targets in (("nccl-pair", plan.pair), ("nccl-all", plan.all)):
                if targets and "nccl" in wanted:
                    run.nccl(workload, targets, evidence)
    _save(args.save, evidence, expected)
    seconds = time.monotonic() - begin
    return _run("accept", args, expected, evidence, started, seconds, calls + api.calls)


def unreachable(args: Namespace, kind: str, error: GpureadyError) -> Run:
    """The run of a cluster that did not answer, so that JSON and JUnit exist then too."""
    cluster = Cluster(name=args.cluster or "cluster", entry={}, groups=())
    evidence = Evidence(failures={"version": ReadFailure("unreachable", str(error))})
    results = judge(Expected(cluster, ()), evidence, [registry.get("cluster.reachable")])
    identity = ClusterIdentity(cluster.name, None, None, rehearsal=False)
    return Run(kind, identity, _now(), 0.0, 0, results, strict=args.strict)


@contextmanager
def _cleaned(run: acceptance.Acceptance, evidence: Evidence) -> Iterator[None]:
    """Clean up whatever happens; keep an API error as evidence, so that the rest is still judged."""
    try:
        yield
    except ApiError as error:
        acceptance.record_failure(evidence, "acceptance", error)
    finally:
        run.clean(evidence)


def _collect(target: Target, timeout: float, progress: Progress) -> tuple[Evidence, int]:
    api = target.api(min(REQUEST_SECONDS, timeout))
    progress.say(f"reading {api.server}")
    evidence = collect(api, timeout=timeout, on_read=lambda key: progress.say(f"read {key}"))
    return evidence, api.calls


def _from_bundle(args: Namespace) -> Run:
    """Judge saved evidence again, by its own expectations or those of an explicit --cluster."""
    started, begin = _now(), time.monotonic()
    evidence, promised = Evidence.load(Path(args.from_bundle))
    if args.cluster:
        expected = resolve(args).expected
    elif promised is not None:
        expected = Expected.from_json(promised, Path(args.from_bundle) / "expected.json")
    else:
        expected = Expected(Cluster(name="bundle", entry={}, groups=()), ())
    return _run("check", args, expected, evidence, started, time.monotonic() - begin, 0, saved=True)


def _run(
    kind: str,
    args: Namespace,
    expected: Expected,
    evidence: Evidence,
    started: str,
    seconds: float,
    calls: int,
    *,
    saved: bool = False,
) -> Run:
    phase = "accept" if evidence.about.get("kind") == "accept" else "check"
    only, skip = args.only or [], args.skip or []
    results = judge(expected, evidence, registry.of_phase(phase), only=only, skip=skip, node=args.node, saved=saved)
    cluster = expected.cluster
    server = evidence.about.get("server")
    identity = ClusterIdentity(cluster.name, server, evidence.about.get("uid"), cluster.rehearsal)
    extra: dict[str, Any] = {}
    if phase == "accept":
        extra["nccl"] = nccl_evidence.to_json(evidence)
    notes = _notes(expected, evidence)
    return Run(kind, identity, started, seconds, calls, results, args.strict, notes, extra)


def _notes(expected: Expected, evidence: Evidence) -> tuple[str, ...]:
    """What a reader must know before trusting the rest."""
    notes = []
    if expected.cluster.rehearsal:
        notes.append(
            "Rehearsal: API server, scheduler, controllers and Helm are real; nodes, GPUs, NICs, the work of "
            "the operators and the output of pods are simulated."
        )
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
        selected = not args.only or registry.matches(one.id, args.only)
        if one.phase == "accept" and selected and not registry.matches(one.id, args.skip or ()):
            wanted.add("nccl" if one.group == "nccl" else "smi")
    return wanted


def _save(folder: str | None, evidence: Evidence, expected: Expected) -> None:
    if folder:
        evidence.save(Path(folder), expected.to_json())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def selection(args: Namespace) -> Sequence[str]:
    """Refuse patterns that select nothing."""
    registry.require_matches(args.only or (), "--only")
    registry.require_matches(args.skip or (), "--skip")
    return args.only or ()
