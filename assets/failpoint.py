"""Failpoints: places where a test kills the process, to check recovery after a crash.

Only the configuration (``AO_FAILPOINT``) arms one.
"""

from __future__ import annotations

import os
import signal
from typing import Literal, get_args

Failpoint = Literal[
    "upload.created", "upload.received", "upload.completed",
    "ingest.converted", "ingest.claimed", "ingest.stored", "ingest.recorded",
    "delete.recorded", "collect.doomed", "collect.removed",
    "generate.reserved", "generate.drawn", "generate.answered", "generate.settled",
    "job.accepted", "job.stored", "job.finished",
]  # fmt: skip
FAILPOINTS: tuple[Failpoint, ...] = get_args(Failpoint)

_armed: str | None = None


def arm(label: Failpoint | None) -> None:
    """SIGKILL this process when it reaches ``label``; None disarms."""
    global _armed
    _armed = label


def reach(label: Failpoint) -> None:
    if label == _armed:
        os.kill(os.getpid(), signal.SIGKILL)
