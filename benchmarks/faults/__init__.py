"""Faults injected into a running platform under load; it must survive each of them.

    python -m benchmarks faults                    # all, a quarter of an hour
    python -m benchmarks faults --only replica-killed,store-503

Clients request images whose bytes are known; a fault is injected and ends; then the platform's
invariants are checked. See ``docs/faults.md``.
"""

from benchmarks.faults.command import main

__all__ = ["main"]
