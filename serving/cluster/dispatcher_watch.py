"""A dispatcher that hangs holds up its whole pool, and Ray sees nothing amiss: here it is noticed,
and ended, so that Ray starts it anew."""

from __future__ import annotations

import logging
import os
import signal
from contextlib import suppress
from threading import Event, Thread
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

log = logging.getLogger(__name__)

_LOOK_S = 2.0
_ANSWER_S = 10.0
#: So many answers in a row must be missing: one process may be slow for a while.
_MISSED = 3


class DispatcherWatch:
    """Over one dispatcher, from a thread of its own, until :meth:`close`."""

    def __init__(self, name: str, actor: Any) -> None:
        self._name = name
        self._actor = actor
        self._ended = Event()
        self._thread = Thread(target=self._watch, name=f"watch {name}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Before Ray is shut down."""
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        missed = 0
        process: tuple[str, int] | None = None  # known once it has answered: then it can hang
        while not self._ended.wait(_LOOK_S):
            try:
                process = ray.get(self._actor.process.remote(), timeout=_ANSWER_S)
                missed = 0
            except GetTimeoutError:
                missed += 1
            except RayError:  # it is dead, and Ray is about to start it
                missed, process = 0, None
            if process is not None and missed >= _MISSED:
                log.error("dispatcher %s hangs; it is started anew", self._name)
                self._end(process)
                missed, process = 0, None

    def _end(self, process: tuple[str, int]) -> None:
        node, pid = process
        if node == ray.get_runtime_context().get_node_id():
            # Ray asks a process to end itself, which one that is stopped does not do.
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        else:
            ray.kill(self._actor, no_restart=False)
