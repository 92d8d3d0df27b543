"""Faults injected into a running platform under load; see ``docs/faults.md``."""

from benchmarks.faults.command import main

__all__ = ["main"]
