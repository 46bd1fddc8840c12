"""The rehearsal cluster: a real control plane with a simulated GPU fleet, and faults to inject."""

DEFAULT_NODES = 8
DEFAULT_PROFILE = "h100-ib"
