"""Finds the slow node, NIC, leaf or path among many, in at most four rounds of runs. Pure: it runs nothing itself."""

from .model import Kind, Node, Outcome, Run, Verdict, Vote
from .search import Search, start

__all__ = ["Kind", "Node", "Outcome", "Run", "Search", "Verdict", "Vote", "start"]
