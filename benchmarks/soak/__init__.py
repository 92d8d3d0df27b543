"""Does it stay what it is: a long run at 70 % of what it can draw, with random assets, and with
processes that are killed at random.

    python -m benchmarks soak                  # an hour
    python -m benchmarks soak --minutes 5 --out /tmp/soak.json

Requests come at their own pace, whatever is answered; every one must be answered, with the picture
that its request has always had. One replica and one gateway are spared, so that it shows whether
a process that lives long grows. See ``docs/faults.md``.
"""

from benchmarks.soak.command import main

__all__ = ["main"]
