"""What is known of every node at one point of the search: the judged runs, sorted by whom they are about."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cached_property

from .judgement import Finding
from .model import Node, Run, Vote


class Record:
    """Judged runs by node. ``alone`` holds runs of one node, ``met`` those of two; void ones are left out."""

    def __init__(self, nodes: Sequence[Node], findings: Iterable[Finding], votes: Iterable[Vote]) -> None:
        self.nodes = {node.name: node for node in nodes}
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
        """The leaf of a node, where known."""
        return self.nodes[name].leaf

    def crosses(self, run: Run) -> bool:
        """Whether a run's two nodes are known to hang on different leaves."""
        leaves = {self.leaf(name) for name in run.nodes}
        return len(leaves) == 2 and None not in leaves

    @cached_property
    def open_leaves(self) -> set[str]:
        """Leaves that some run has left, or entered, at full rate on every rail."""
        crossed = [one for one in self.meetings if not one.bad and self.crosses(one.run)]
        return {leaf for one in crossed for name in one.run.nodes if (leaf := self.leaf(name))}

    def way_open(self, finding: Finding) -> bool:
        """Whether what lies between the two nodes of a run is known to be good, as far as leaves tell."""
        return not self.crosses(finding.run) or {self.leaf(name) for name in finding.run.nodes} <= self.open_leaves

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

    def known_good(self, name: str) -> bool:
        """Whether a node has passed with another and never failed, alone or not."""
        met = self.met[name]
        return bool(met) and not any(one.bad for one in met) and not any(one.bad for one in self.alone[name])

    def sound_in_leaf(self, name: str) -> bool:
        """Whether a node has passed with another of its own leaf, so that what fails across is not the node."""
        return any(not finding.bad and not self.crosses(finding.run) for finding in self.met[name])
