"""The checks: a decorated function each, kept in the order in which a platform comes up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from gpuready.charts_values.errors import InputError

from .evidence import Evidence
from .expected import Expected
from .model import Finding

Judge = Callable[[Expected, Evidence], Iterable[Finding]]


@dataclass(frozen=True)
class Check:
    """One check and what is written about it.

    ``needs`` are keys of ``Evidence.cluster`` without which it cannot judge. ``after`` names checks whose
    failure explains this one's, or single results of theirs by a glob over ids (``nodes.ready/node/gpu-*``).
    ``CHECK/same`` means the result about the same subject. ``phase`` is check (read-only) or accept (needs
    the probe pods).
    """

    id: str
    judge: Judge
    title: str
    proves: str
    rule: str
    source: str
    fix: str
    avoid: str
    needs: tuple[str, ...]
    after: tuple[str, ...]
    phase: str
    tier: str

    @property
    def group(self) -> str:
        """The part of the id before the dot."""
        return self.id.partition(".")[0]


_CHECKS: dict[str, Check] = {}


def check(
    id: str,
    *,
    title: str,
    proves: str,
    rule: str,
    source: str,
    fix: str,
    avoid: str = "",
    needs: tuple[str, ...] = (),
    after: tuple[str, ...] = (),
    phase: str = "check",
    tier: str = "api",
) -> Callable[[Judge], Judge]:
    """Register a function as a check under a permanent id."""

    def register(judge: Judge) -> Judge:
        if id in _CHECKS:
            raise ValueError(f"two checks are called {id}")
        _CHECKS[id] = Check(id, judge, title, proves, rule, source, fix, avoid, needs, after, phase, tier)
        return judge

    return register


def all_checks() -> tuple[Check, ...]:
    """Every check, in order."""
    from . import checks  # noqa: F401  (importing the package registers its checks)

    return tuple(_CHECKS.values())


def get(id: str) -> Check:
    """The check of that id; raises InputError."""
    for known in all_checks():
        if known.id == id:
            return known
    raise InputError(f"there is no check {id!r}; `gpuready list` names them")


def matches(id: str, patterns: Iterable[str]) -> bool:
    """Whether any glob pattern matches a check's id."""
    return any(fnmatchcase(id, pattern) for pattern in patterns)


def selected(id: str, only: Sequence[str] | None, skip: Sequence[str] | None) -> bool:
    """Whether the globs of --only and --skip leave a check."""
    return (not only or matches(id, only)) and not matches(id, skip or ())


def require_matches(patterns: Iterable[str], option: str) -> None:
    """Refuse a pattern that selects nothing: it is a typo, and would pass in silence."""
    known = [known.id for known in all_checks()]
    for pattern in patterns:
        if not any(fnmatchcase(id, pattern) for id in known):
            raise InputError(f"{option} {pattern!r} matches no check; `gpuready list` names them")


def of_phase(phase: str) -> Iterator[Check]:
    """The checks that a command runs: ``check`` the read-only ones, ``accept`` all."""
    return (known for known in all_checks() if phase == "accept" or known.phase == "check")
