"""`gpuready learn`: drafts an inventory entry from what a live cluster shows, for a person to review.

What the API does not tell is not invented: it stands in the draft as a comment that says why.
"""

from .command import READS, learn
from .draft import Draft
from .entry import entry_from

__all__ = ["READS", "Draft", "entry_from", "learn"]
