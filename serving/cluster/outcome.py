"""Errors as values across processes; Ray wraps raised ones."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")

_OURS = ("assets.", "orchestrator.", "router.", "serving.")


async def caught(work: Awaitable[T]) -> T | Exception:
    """Return the result or platform error; other errors propagate."""
    try:
        return await work
    except Exception as error:
        if type(error).__module__.startswith(_OURS):
            return error.with_traceback(None)
        raise


def thrown(outcome: T | Exception) -> T:
    """Raise or return :func:`caught`'s outcome."""
    if isinstance(outcome, Exception):
        raise outcome
    return outcome
