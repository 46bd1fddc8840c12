"""What is known of every node at one point of the search: the judged runs, sorted by whom they are about."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import cached_property

from .judgement import CLEAR, Finding
from .model import Node, Vote


class Record:
    """Judged runs by node. ``alone`` holds runs of one node, ``met`` those of two; void ones are left out."""

    def __init__(self, nodes: Sequence[Node], findings: Iterable[Finding], votes: Iterable[Vote]) -> None:
        self.nodes = {node.name: node for node in nodes}
        # Where some leaves are known, a node without one may hang anywhere: it is a leaf of its own.
        known = any(node.leaf is not None for node in nodes)
        self._leaves = {node.name: node.leaf or (f"the leaf of {node.name}" if known else None) for node in nodes}
        self._sizes = Counter(self._leaves.values())
        self.alone: defaultdict[str, list[Finding]] = defaultdict(list)
        self.met: defaultdict[str, list[Finding]] = defaultdict(list)
        self.meetings: list[Finding] = []
        self.votes: defaultdict[str, list[Vote]] = defaultdict(list)
        for vote in votes:
            self.votes[vote.node].append(vote)
        for finding in findings:
            if finding.state == "void":
                continue
            if len(finding.run.nodes) == 1:
                self.alone[finding.run.nodes[0]].append(finding)
                continue
            self.meetings.append(finding)
            for name in finding.run.nodes:
                self.met[name].append(finding)

    def leaf(self, name: str) -> str | None:
        """The leaf of a node; None where no leaf is known at all."""
        return self._leaves[name]

    def alone_on_leaf(self, name: str) -> bool:
        """Whether no other node is known to hang where this one does."""
        return self.leaf(name) is None or self._sizes[self.leaf(name)] == 1

    def apart(self, names: Iterable[str]) -> bool:
        """Whether nodes are known to hang on different leaves."""
        leaves = {self.leaf(name) for name in names}
        return len(leaves) > 1 and None not in leaves

    @cached_property
    def open_leaves(self) -> set[str]:
        """Leaves that some run has left, or entered, at full rate on every rail, and clearly so."""
        crossed = [one for one in self.meetings if one.short.amount < CLEAR and self.apart(one.run.nodes)]
        return {leaf for one in crossed for name in one.run.nodes if (leaf := self.leaf(name))}

    def way_open(self, finding: Finding) -> bool:
        """Whether what lies between the two nodes of a run is known to be good, as far as leaves tell.

        The way out of a leaf of one node is part of that node.
        """
        if not self.apart(finding.run.nodes):
            return True
        return all(self.alone_on_leaf(name) or self.leaf(name) in self.open_leaves for name in finding.run.nodes)

    def leaf_first(self, finding: Finding) -> bool:
        """Whether a bad run may well be a leaf's doing: nodes sound inside, and a leaf that no run has left well."""
        return not self.way_open(finding) and all(self.sound_in_leaf(name) for name in finding.run.nodes)

    def passed(self, name: str) -> list[Finding]:
        """The good runs of a node with another."""
        return [finding for finding in self.met[name] if not finding.bad]

    def failed(self, name: str) -> list[Finding]:
        """The bad runs of a node with another."""
        return [finding for finding in self.met[name] if finding.bad]

    def partners(self, name: str) -> set[str]:
        """Whom a node has met."""
        return {finding.other(name) for finding in self.met[name]}

    def fails_alone(self, name: str) -> bool:
        """Whether every run of the node alone was bad."""
        runs = self.alone[name]
        return bool(runs) and all(finding.bad for finding in runs)

    def excused(self, finding: Finding, name: str) -> bool:
        """Whether a bad run of a node is rather its partner's doing: that one was never good, this one was."""
        partner = finding.other(name)
        return bool(self.passed(name)) and not self.passed(partner) and len(self.failed(partner)) > 1

    def known_good(self, name: str) -> bool:
        """Whether a node has passed with another and never failed, alone or not, but for what is excused."""
        if any(one.bad for one in self.alone[name]):
            return False
        return bool(self.passed(name)) and all(self.excused(one, name) for one in self.failed(name))

    def sound_in_leaf(self, name: str) -> bool:
        """Whether a node has passed with another of its own leaf, so that what fails across is not the node."""
        return any(not finding.bad and not self.apart(finding.run.nodes) for finding in self.met[name])
