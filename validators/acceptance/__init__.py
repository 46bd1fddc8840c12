"""Acceptance: probe pods on the nodes. plan decides, manifests writes, run does, verdicts reads."""
