"""Our errors cross process borders as values: Ray wraps what is raised beyond recognition."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")

_OURS = ("assets.", "orchestrator.", "router.", "serving.")


async def caught(work: Awaitable[T]) -> T | Exception:
    """The result, or an error of our own trees; anything else is raised as it is."""
    try:
        return await work
    except Exception as error:
        if type(error).__module__.startswith(_OURS):
            return error.with_traceback(None)
        raise


def thrown(outcome: T | Exception) -> T:
    """The other side of :func:`caught`."""
    if isinstance(outcome, Exception):
        raise outcome
    return outcome
