"""A long run at 70 % of the platform's capacity, with random assets and kills.

See ``docs/faults.md``. One replica and one gateway are spared, to show whether a process grows.
"""

from benchmarks.soak.command import main

__all__ = ["main"]
