"""The actors: what cannot run without GPUs, played on a real API server.

Each module plays one component; ``stage`` brings them together.
"""
