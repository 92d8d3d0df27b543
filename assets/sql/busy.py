"""Calls of the database that must succeed although it is busy."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

#: Locked, unreachable, or without a free connection.
_BUSY = (OperationalError, InterfaceError, PoolTimeout)
_DELAYS_S = (0.1, 0.5, 2.0, 5.0)


async def persisted(call: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """Run a call in a thread; again, a few times, while the database is busy.

    Raises:
        OperationalError, InterfaceError, TimeoutError (of SQLAlchemy): it stayed busy.
    """
    for delay_s in _DELAYS_S:
        try:
            return await asyncio.to_thread(call, *arguments, **options)
        except _BUSY:
            name = getattr(call, "__name__", "a call")
            log.warning("the database is busy; retrying %s in %s s", name, delay_s)
            await asyncio.sleep(delay_s)
    return await asyncio.to_thread(call, *arguments, **options)
