"""Return errors across processes as values, because Ray wraps raised exceptions in its own."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")

_OURS = ("assets.", "orchestrator.", "router.", "serving.")


async def caught(work: Awaitable[T]) -> T | Exception:
    """The result of ``work``, or the platform's error that it raised. Other errors propagate."""
    try:
        return await work
    except Exception as error:
        if type(error).__module__.startswith(_OURS):
            return error.with_traceback(None)
        raise


def thrown(outcome: T | Exception) -> T:
    """Raise or return an outcome of :func:`caught`."""
    if isinstance(outcome, Exception):
        raise outcome
    return outcome
