"""The progress of a running generation: reported by its thread, read by its followers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from threading import Event as Flag

from serving.generation.contract import Detail
from serving.generation.engine import EncodedImage, StartPreview
from serving.generation.events import Event, Fetching, ImageReady, Preview, Step

log = logging.getLogger(__name__)

#: Least seconds between two step events.
INTERVAL_S = 0.25
Submit = Callable[[Callable[[], None]], Future[None]]


class Progress:
    """A :class:`~serving.generation.engine.GenerationObserver` that reports what followers want.

    ``detail`` may change at any time. Steps are reported at most four times a second. A preview is
    skipped while the last one is being encoded.
    """

    def __init__(
        self,
        steps: int,
        images: int,
        emit: Callable[[Event], object],
        submit: Submit,
        detail: Detail = "nothing",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``emit`` is called in several threads; ``submit`` runs work in another."""
        self.detail: Detail = detail
        #: The last step, whether reported or not.
        self.last: Step | None = None
        self._steps = steps
        self._images = images
        self._emit = emit
        self._submit = submit
        self._clock = clock
        self._stop = Flag()
        self._due_s = 0.0
        self._encoded = 0
        self._preview: Future[None] | None = None

    def cancel(self) -> None:
        self._stop.set()

    def is_cancelled(self) -> bool:
        return self._stop.is_set()

    def stepped(self, step: int, first: int, images: int, preview: StartPreview) -> None:
        if step == 1:
            self._encoded = first  # also when the generation starts again, out of memory
        done = first * self._steps + images * step
        fraction = done / (self._images * self._steps)
        self.last = Step(step, self._steps, first, images, fraction)
        if self.detail not in ("steps", "previews") or self._clock() < self._due_s:
            return
        self._due_s = self._clock() + INTERVAL_S
        self._emit(self.last)
        if self.detail == "previews" and (self._preview is None or self._preview.done()):
            try:
                self._preview = self._submit(partial(self._send, preview(), step, first))
            except Exception:  # a preview must not fail its generation
                log.exception("no previews: they failed at step %d", step)
                self.detail = "steps"

    def encoding(self, image: Future[EncodedImage]) -> None:
        """The next image is being encoded."""
        index, self._encoded = self._encoded, self._encoded + 1
        if self.detail != "nothing":
            image.add_done_callback(lambda _: self._emit(ImageReady(index)))

    def fetching(self, blobs: int) -> None:
        if self.detail != "nothing":
            self._emit(Fetching(blobs))

    def _send(self, encode: Callable[[], Sequence[bytes]], step: int, first: int) -> None:
        try:
            for index, data in enumerate(encode(), first):
                self._emit(Preview(index, step, data))
        except Exception:  # no caller reads this future: log it here
            log.exception("the preview of step %d failed", step)
