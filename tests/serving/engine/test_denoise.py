"""How far the denoising host runs ahead of the device."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from serving.engine.denoise import STEPS_AHEAD, Denoiser
from serving.engine.text import Embeddings
from serving.errors import Cancelled
from tests.support.generation import task_of


class SlowDevice:
    """Does queued work only when an event is awaited."""

    def __init__(self) -> None:
        self.queued = 0
        self.done = 0
        self.furthest_ahead = 0

    def record(self, _: torch.device) -> SlowDevice.Event:
        self.queued += 1
        self.furthest_ahead = max(self.furthest_ahead, self.queued - self.done)
        return SlowDevice.Event(self, self.queued)

    class Event:
        def __init__(self, device: SlowDevice, number: int) -> None:
            self._device = device
            self._number = number

        def wait(self) -> None:
            self._device.done = max(self._device.done, self._number)


class Unet:
    def start(self, *_: Any) -> Any:
        return lambda sample, time: torch.zeros_like(sample)


@pytest.fixture
def slow() -> SlowDevice:
    return SlowDevice()


def steps(slow: SlowDevice, count: int, is_cancelled: Any) -> Any:
    unet: Any = Unet()
    denoiser = Denoiser(unet, "schema", 4, torch.device("cpu"), record=slow.record)
    empty_prompt = Embeddings(torch.zeros(1, 77, 8), torch.zeros(1, 8))
    recipe: Any = SimpleNamespace(prediction="epsilon")
    request = task_of("r", recipe, "", 64, 64, (1,), steps=count)
    return denoiser.steps(request, (1,), empty_prompt, empty_prompt, is_cancelled)


def test_the_host_runs_a_bounded_number_of_steps_ahead(slow: SlowDevice) -> None:
    for _ in steps(slow, 30, lambda: False):
        pass
    assert slow.queued == 30
    assert slow.furthest_ahead == STEPS_AHEAD


def test_cancelled_within_three_steps_of_the_device(slow: SlowDevice) -> None:
    """Cancels after five steps of the device."""
    with pytest.raises(Cancelled):
        for _ in steps(slow, 30, lambda: slow.done >= 5):
            pass
    assert slow.queued - slow.done <= STEPS_AHEAD
    assert slow.queued <= 5 + 3
