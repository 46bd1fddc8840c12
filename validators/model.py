"""The values that everything else passes around: status, finding, result, run."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from importlib.metadata import version
from typing import Any

SCHEMA = 1
EXIT_INTERRUPTED = 130


class Status(Enum):
    """How a check ended, from best to worst."""

    PASS = "pass"
    SKIP = "skip"
    WARN = "warn"
    UNPROVEN = "unproven"
    ERROR = "error"
    FAIL = "fail"

    @property
    def rank(self) -> int:
        """0 for pass up to 5 for fail: an order for sorting, not a verdict."""
        return _RANK[self]


_RANK = {status: rank for rank, status in enumerate(Status)}


@dataclass(frozen=True)
class Subject:
    """What a result is about; ``kind`` is cluster, node, gpu, nic, rank, rail, pair, pod or object."""

    kind: str
    name: str


@dataclass(frozen=True)
class Finding:
    """What a check saw about one subject.

    ``cause`` is constant text, so that findings group; ``detail`` holds the numbers. ``reason`` is for
    machines and never changes. ``nodes`` are the nodes concerned, where the subject is not a node itself;
    ``collective`` says that one bad node explains it: one word is said of all.
    """

    status: Status
    subject: Subject
    reason: str
    cause: str
    detail: str = ""
    expected: str | None = None
    observed: str | None = None
    fix: str | None = None
    avoid: str | None = None
    required: bool = True
    evidence: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    collective: bool = False


@dataclass(frozen=True)
class Result:
    """A finding of a check, ready to be reported."""

    check: str
    finding: Finding
    fix: str
    avoid: str
    tier: str
    caused_by: str | None = None

    @property
    def id(self) -> str:
        """``check/kind/name``: the same from run to run."""
        return f"{self.check}/{self.finding.subject.kind}/{self.finding.subject.name}"

    @property
    def status(self) -> Status:
        """The finding's status."""
        return self.finding.status

    def to_json(self) -> dict[str, Any]:
        """The object of the report's ``results`` list."""
        found = self.finding
        return {
            "id": self.id,
            "check": self.check,
            "status": found.status.value,
            "required": found.required,
            "subject": dataclasses.asdict(found.subject),
            "reason": found.reason,
            "cause": found.cause,
            "detail": found.detail,
            "expected": found.expected,
            "observed": found.observed,
            "fix": self.fix,
            "avoid": self.avoid,
            "tier": self.tier,
            "caused_by": self.caused_by,
            "evidence": list(found.evidence),
            "nodes": list(found.nodes),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Result:
        """The reverse of ``to_json``; raises KeyError or ValueError on foreign data."""
        finding = Finding(
            status=Status(data["status"]),
            subject=Subject(**data["subject"]),
            reason=data["reason"],
            cause=data["cause"],
            detail=data.get("detail") or "",
            expected=data.get("expected"),
            observed=data.get("observed"),
            required=data["required"],
            evidence=tuple(data.get("evidence") or ()),
            nodes=tuple(data.get("nodes") or ()),
        )
        return cls(
            check=data["check"],
            finding=finding,
            fix=data.get("fix") or "",
            avoid=data.get("avoid") or "",
            tier=data["tier"],
            caused_by=data.get("caused_by"),
        )


@dataclass(frozen=True)
class ClusterIdentity:
    """Which cluster a run spoke to."""

    name: str | None
    server: str | None
    uid: str | None
    rehearsal: bool


@dataclass(frozen=True)
class Run:
    """Everything that a report says. ``extra`` holds additive top-level JSON keys, such as ``nccl``."""

    kind: str
    cluster: ClusterIdentity | None
    started: str
    seconds: float
    api_calls: int
    results: tuple[Result, ...]
    strict: bool = False
    notes: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    interrupted: bool = False

    @property
    def counts(self) -> dict[str, int]:
        """Results by status, every status named."""
        found = Counter(result.status for result in self.results)
        return {status.value: found.get(status, 0) for status in Status}

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C; 1 on any fail (or warn, when strict); 2 where something required stays open; else 0."""
        return EXIT_INTERRUPTED if self.interrupted else exit_code(self.results, strict=self.strict)

    @property
    def verdict(self) -> str:
        """fail, incomplete or pass: the exit code in words. What was interrupted cannot pass."""
        code = exit_code(self.results, strict=self.strict)
        return "fail" if code == 1 else "incomplete" if code or self.interrupted else "pass"

    def to_json(self) -> dict[str, Any]:
        """The document of ``-o json``."""
        return {
            "schema": SCHEMA,
            "tool": {"name": "gpuready", "version": version("gpuready")},
            "kind": self.kind,
            "cluster": dataclasses.asdict(self.cluster) if self.cluster else None,
            "started": self.started,
            "seconds": round(self.seconds, 3),
            "api_calls": self.api_calls,
            "verdict": self.verdict,
            "exit_code": self.exit_code,
            "interrupted": self.interrupted,
            "counts": self.counts,
            "results": [result.to_json() for result in self.results],
            "notes": list(self.notes),
            **self.extra,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Run:
        """A saved run; raises KeyError, TypeError or ValueError on foreign data."""
        if data["schema"] != SCHEMA:
            raise ValueError(f"schema {data['schema']} is not {SCHEMA}")
        fixed = {
            *("schema", "tool", "kind", "cluster", "started", "seconds", "api_calls"),
            *("verdict", "exit_code", "interrupted", "counts", "results", "notes"),
        }
        cluster = data["cluster"]
        results = tuple(Result.from_json(result) for result in data["results"])
        plain = exit_code(results, strict=False)
        return cls(
            kind=data["kind"],
            cluster=ClusterIdentity(**cluster) if cluster else None,
            started=data["started"],
            seconds=data["seconds"],
            api_calls=data["api_calls"],
            results=results,
            strict=data["verdict"] == "fail" and plain != 1,
            notes=tuple(data.get("notes") or ()),
            extra={key: value for key, value in data.items() if key not in fixed},
            interrupted=data.get("interrupted", False),
        )


def exit_code(results: Sequence[Result], *, strict: bool) -> int:
    """The exit code that results amount to; no result at all is 2, since silence is failure."""
    statuses = {result.status for result in results}
    if Status.FAIL in statuses or (strict and Status.WARN in statuses):
        return 1
    still_open = any(r.finding.required and r.status in (Status.UNPROVEN, Status.ERROR) for r in results)
    judged = any(r.status in (Status.PASS, Status.WARN) for r in results)
    return 2 if still_open or not judged else 0
