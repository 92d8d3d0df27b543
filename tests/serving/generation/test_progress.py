"""The progress of a running generation: what is reported, how often, to whom."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future

import pytest

from serving.generation.contract import Detail
from serving.generation.engine import EncodedImage
from serving.generation.events import Event, Fetching, ImageReady, Preview, Step
from serving.generation.progress import INTERVAL_S, Progress


class Rig:
    """A generation of ``images`` in ``steps`` whose clock and encoder the test runs."""

    def __init__(self, detail: Detail, steps: int = 10, images: int = 1) -> None:
        self.events: list[Event] = []
        self.now_s = 0.0
        self.work: list[tuple[Callable[[], None], Future[None]]] = []
        self.previews = 0
        self.progress = Progress(
            steps, images, self.events.append, self.submit, detail, lambda: self.now_s
        )

    def submit(self, work: Callable[[], None]) -> Future[None]:
        done: Future[None] = Future()
        self.work.append((work, done))
        return done

    def encode(self) -> None:
        work, done = self.work.pop(0)
        work()
        done.set_result(None)

    def start_preview(self) -> Callable[[], Sequence[bytes]]:
        self.previews += 1
        return lambda: [b"jpeg"]

    def step(self, step: int, first: int = 0, images: int = 1) -> None:
        self.progress.stepped(step, first, images, self.start_preview)


def test_nobody_follows_nothing_is_reported() -> None:
    rig = Rig("nothing")
    rig.progress.fetching(3)
    image: Future[EncodedImage] = Future()
    rig.progress.encoding(image)
    image.set_result(EncodedImage(b"", 0.0))
    rig.step(1)
    assert rig.events == []
    assert rig.previews == 0
    assert rig.progress.last == Step(1, 10, 0, 1, 0.1)


def test_steps_are_reported_at_most_four_times_a_second() -> None:
    rig = Rig("steps", steps=1000)
    for step in range(1, 1001):
        rig.step(step)
        rig.now_s += 0.01
    assert 0.95 * 10 / INTERVAL_S <= len(rig.events) <= 10 / INTERVAL_S
    assert rig.previews == 0


def test_a_follower_that_comes_late_gets_the_next_step() -> None:
    rig = Rig("nothing")
    rig.step(1)
    rig.progress.detail = "steps"
    rig.step(2)
    assert rig.events == [Step(2, 10, 0, 1, 0.2)]


def test_states_include_what_is_fetched_and_encoded_but_no_steps() -> None:
    rig = Rig("states", images=2)
    rig.progress.fetching(3)
    rig.step(1, images=2)
    images: list[Future[EncodedImage]] = [Future(), Future()]
    for image in images:
        rig.progress.encoding(image)
    for image in reversed(images):
        image.set_result(EncodedImage(b"", 0.0))
    assert rig.events == [Fetching(3), ImageReady(1), ImageReady(0)]


def test_a_preview_is_skipped_while_the_last_is_being_encoded() -> None:
    rig = Rig("previews")
    for step in range(1, 5):
        rig.step(step)
        rig.now_s += 1.0
    assert rig.previews == 1
    rig.encode()
    rig.step(5)
    assert rig.previews == 2
    assert [e for e in rig.events if isinstance(e, Preview)] == [Preview(0, 1, b"jpeg")]


def test_a_preview_that_fails_costs_no_generation() -> None:
    rig = Rig("previews")

    def fail() -> Callable[[], Sequence[bytes]]:
        raise RuntimeError("CUDA out of memory")

    rig.progress.stepped(1, 0, 1, fail)
    rig.now_s += 1.0
    rig.step(2)
    assert [type(event) for event in rig.events] == [Step, Step]
    assert rig.previews == 0


def test_a_preview_that_cannot_be_encoded_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig("previews")

    def fail() -> Sequence[bytes]:
        raise OSError("cannot write the image")

    rig.progress.stepped(1, 0, 1, lambda: fail)
    rig.encode()
    assert "the preview of step 1 failed" in caplog.text
    rig.now_s += 1.0
    rig.step(2)
    assert rig.previews == 1


def test_the_fraction_counts_the_steps_of_every_batch() -> None:
    rig = Rig("steps", steps=2, images=6)
    fractions = []
    for first, images in ((0, 4), (4, 2)):
        for step in (1, 2):
            rig.step(step, first, images)
            assert rig.progress.last is not None
            fractions.append(rig.progress.last.fraction)
    assert fractions == [4 / 12, 8 / 12, 10 / 12, 1.0]


def test_a_generation_that_starts_again_counts_its_images_again() -> None:
    rig = Rig("states", images=2)
    for _ in range(2):
        rig.step(1, images=2)
        for _ in range(2):
            image: Future[EncodedImage] = Future()
            rig.progress.encoding(image)
            image.set_result(EncodedImage(b"", 0.0))
    assert rig.events == [ImageReady(0), ImageReady(1)] * 2


def test_cancelled() -> None:
    rig = Rig("nothing")
    assert not rig.progress.is_cancelled()
    rig.progress.cancel()
    assert rig.progress.is_cancelled()
