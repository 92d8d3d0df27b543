"""A long run at 70 % of the platform's capacity, with random assets and random kills.

    python -m benchmarks soak                  # an hour
    python -m benchmarks soak --minutes 5 --out /tmp/soak.json

Requests arrive at a fixed rate, independent of the answers. Each must be answered, always with the
same image for the same request. One replica and one gateway are never killed, to show whether a
long-lived process grows. See ``docs/faults.md``.
"""

from benchmarks.soak.command import main

__all__ = ["main"]
