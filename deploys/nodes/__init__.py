"""Preparation of the machines over SSH: facts, plans, what is refused, and how changes that disturb are rolled out."""
