"""Puts like results together: one entry per check, status and cause, apart from what follows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..model import Result, Status
from .names import fold


@dataclass(frozen=True)
class ResultGroup:
    """Results of one check with one status and one cause, in the run's order."""

    results: tuple[Result, ...]

    @property
    def first(self) -> Result:
        """The one that stands for all."""
        return self.results[0]

    @property
    def bad(self) -> bool:
        """Whether someone should look at it."""
        return self.first.status.rank >= Status.WARN.rank

    @property
    def subjects(self) -> str:
        """The subjects' names, folded; of objects also the nodes concerned."""
        placed: dict[str, list[str]] = {}
        for result in self.results:
            found = result.finding
            nodes = fold(found.nodes) if found.subject.kind == "object" else ""
            placed.setdefault(nodes, []).append(found.subject.name)
        return ", ".join(fold(names) + (f" on {nodes}" if nodes else "") for nodes, names in placed.items())

    @property
    def count(self) -> str:
        """Such as ``4 nodes``."""
        kinds = {result.finding.subject.kind for result in self.results}
        word = kinds.pop() if len(kinds) == 1 else "subject"
        number = len(self.results)
        return f"{number} {word}{'s' if number > 1 else ''}"

    @property
    def follows(self) -> str | None:
        """The check that this follows from, when all its results do."""
        causes = {result.caused_by for result in self.results}
        if None in causes:
            return None
        return ", ".join(sorted({str(cause).partition("/")[0] for cause in causes}))


def group(results: Iterable[Result]) -> list[ResultGroup]:
    """Groups in the order of their first result; what follows stands apart from what does not."""
    found: dict[tuple[str, Status, str, bool], list[Result]] = {}
    for result in results:
        key = (result.check, result.status, result.finding.cause, result.caused_by is None)
        found.setdefault(key, []).append(result)
    return [ResultGroup(tuple(members)) for members in found.values()]
