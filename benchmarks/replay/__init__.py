"""Replay a request trace under a virtual clock, with the platform's own router, tiers and fairness
or with other routing policies; or replay it against a running platform.

    python -m benchmarks replay                      # compare all policies; see --help
    python -m benchmarks replay --describe           # compare the generated trace with the real one
    python -m benchmarks replay --live URL --key KEY # send the same requests over HTTP
"""

from benchmarks.replay.command import main

__all__ = ["main"]
