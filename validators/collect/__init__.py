"""Collectors read; they never judge."""
