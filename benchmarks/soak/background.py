"""A thread that runs during a ``with`` block."""

from __future__ import annotations

from abc import ABC, abstractmethod
from threading import Event, Thread
from typing import Self


class Background(ABC):
    """Runs ``_run`` in a thread; the block's exit raises its error."""

    def __init__(self) -> None:
        self.ended = Event()
        self._error: Exception | None = None
        self._thread = Thread(target=self._guarded, daemon=True)

    def _guarded(self) -> None:
        try:
            self._run()
        except Exception as error:
            self._error = error

    @abstractmethod
    def _run(self) -> None:
        """Return soon after ``ended`` is set."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self._thread.join()
        if self._error is not None:  # the measurement is incomplete
            raise self._error
