"""Something that goes on beside a ``with`` block, until it ends."""

from __future__ import annotations

from threading import Event, Thread
from typing import Self


class Background:
    def __init__(self) -> None:
        self.ended = Event()
        self._thread = Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        """Until ``ended`` is set."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self._thread.join()
