"""Play a stream of requests against the platform's own router, tiers and fairness, and against
others' ways to route, under a virtual clock; or against a running platform.

    python -m benchmarks replay                      # the comparison; --help has everything
    python -m benchmarks replay --describe           # the generated stream beside the real one
    python -m benchmarks replay --live URL --key KEY # the same requests over HTTP
"""

from benchmarks.replay.command import main

__all__ = ["main"]
