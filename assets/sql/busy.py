"""Calls of the database that must succeed although it is busy."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from sqlalchemy.exc import OperationalError

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_DELAYS_S = (0.1, 0.5, 2.0, 5.0)


async def persisted(call: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """Run a call in a thread; again, a few times, while the database is busy.

    Raises:
        OperationalError: it stayed busy.
    """
    for delay_s in _DELAYS_S:
        try:
            return await asyncio.to_thread(call, *arguments, **options)
        except OperationalError:
            log.warning("the database is busy; retrying in %s s", delay_s)
            await asyncio.sleep(delay_s)
    return await asyncio.to_thread(call, *arguments, **options)
