"""Replay a request trace under a virtual clock, or against a running platform.

python -m benchmarks replay                      # all policies; see --help
python -m benchmarks replay --describe           # the generated trace and the real one
python -m benchmarks replay --live URL --key KEY # over HTTP
"""

from benchmarks.replay.command import main

__all__ = ["main"]
