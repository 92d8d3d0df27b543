"""Kills a hanging dispatcher, which blocks its pool; Ray detects only dead processes."""

from __future__ import annotations

import logging
import os
import signal
from contextlib import suppress
from threading import Event, Thread
from typing import TYPE_CHECKING

import ray
from ray.exceptions import GetTimeoutError, RayError

if TYPE_CHECKING:
    from ray.actor import ActorHandle


log = logging.getLogger(__name__)

_CHECK_S = 2.0
_ANSWER_S = 10.0
#: Timeouts in a row; a process may be slow for a while.
_MISSED = 3


class DispatcherWatch:
    """Watches one dispatcher from a thread, until :meth:`close`."""

    def __init__(self, name: str, actor: ActorHandle) -> None:
        self._name = name
        self._actor = actor
        self._closing = Event()
        self._thread = Thread(target=self._watch, name=f"watch {name}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop; call before Ray's shutdown."""
        self._closing.set()
        self._thread.join()

    def _watch(self) -> None:
        missed = 0
        process: tuple[str, int] | None = None  # None until it answers: starting is not hanging
        while not self._closing.wait(_CHECK_S):
            try:
                process = ray.get(self._actor.process.remote(), timeout=_ANSWER_S)
                missed = 0
            except GetTimeoutError:
                missed += 1
            except RayError:  # dead; Ray restarts it
                missed, process = 0, None
            if process is not None and missed >= _MISSED:
                log.error("dispatcher %s hangs; restarting it", self._name)
                self._kill(process)
                missed, process = 0, None

    def _kill(self, process: tuple[str, int]) -> None:
        node, pid = process
        if node == ray.get_runtime_context().get_node_id():
            # A stopped process ignores ray.kill, a request to exit.
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        else:
            ray.kill(self._actor, no_restart=False)
