"""Something that goes on beside a ``with`` block, until it ends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from threading import Event, Thread
from typing import Self


class Background(ABC):
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
        """Until ``ended`` is set."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self._thread.join()
        if self._error is not None:  # what it should have seen or done is missing
            raise self._error
