"""Notices between gateways about jobs, over PostgreSQL's LISTEN and NOTIFY."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Literal

from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

log = logging.getLogger(__name__)

Notice = Literal["accepted", "ended"]
_CHANNEL = "asset_orchestrator_jobs"
_WAIT_S = 1.0
_RETRY_S = 2.0
#: The thread may be connecting.
_CLOSE_S = 5.0


def notify_in(session: Session, notice: Notice) -> None:
    """Send a notice when the transaction commits; other databases have none."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(func.pg_notify(_CHANNEL, notice)))


class Notices:
    """Listens in a thread of its own and calls ``wake`` on the event loop.

    Notices may be lost with the connection, so readers also look from time to time: often while
    ``is_listening`` is false.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self.is_listening = False

    def start(self, wake: Mapping[Notice, Callable[[], None]]) -> None:
        """Call on the event loop."""
        if self._engine.dialect.name != "postgresql":
            return
        loop = asyncio.get_running_loop()

        def received(notice: str) -> None:
            for kind, call in wake.items():
                if notice in (kind, ""):  # empty: notices may have been lost
                    with suppress(RuntimeError):  # the loop has ended
                        loop.call_soon_threadsafe(call)

        self._thread = threading.Thread(
            target=self._run, args=(received,), name="notices", daemon=True
        )
        self._thread.start()

    async def close(self) -> None:
        self._ended.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, _CLOSE_S)

    def _run(self, received: Callable[[str], None]) -> None:
        while not self._ended.is_set():
            try:
                self._listen(received)
            except Exception as error:  # of the driver; the connection is lost
                log.warning("notices about jobs are lost, reconnecting: %s", error)
            self.is_listening = False
            self._ended.wait(_RETRY_S)

    def _listen(self, received: Callable[[str], None]) -> None:
        pooled = self._engine.raw_connection()
        connection: Any = pooled.driver_connection
        pooled.detach()
        try:
            connection.autocommit = True
            connection.execute(f"LISTEN {_CHANNEL}")
            self.is_listening = True
            received("")
            while not self._ended.is_set():
                for notice in connection.notifies(timeout=_WAIT_S):
                    received(notice.payload)
        finally:
            connection.close()
