"""Reads logs of NCCL and nccl-tests and judges what they prove. Stands alone, except for its command.

``read`` takes the logs of one run and returns a report of facts; ``verdict`` judges it; ``expected_floor`` knows
how fast a class of fabric should be; ``why_no_gdr`` ranks what keeps GPUDirect RDMA off.
"""

from .bandwidth import Floor, expected_floor
from .gdr import Explanation, why_no_gdr
from .report import NcclReport, read
from .sources import LogError
from .verdict import Accusation, Finding, Verdict, accusations, verdict

__all__ = [
    "Accusation",
    "Explanation",
    "Finding",
    "Floor",
    "LogError",
    "NcclReport",
    "Verdict",
    "accusations",
    "expected_floor",
    "read",
    "verdict",
    "why_no_gdr",
]
