"""What a platform of this kind meets, each fault injected under load, each to be survived.

    python -m benchmarks faults                    # all, a quarter of an hour
    python -m benchmarks faults --only replica-killed,store-503

A constant client asks for pictures whose bytes are known; a fault comes and goes; then the
books are looked at. See ``docs/faults.md``.
"""

from benchmarks.faults.command import main

__all__ = ["main"]
