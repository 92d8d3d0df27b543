"""Timing of a generation's phases, without waiting for the device in between."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping

import torch


class PhaseTimer:
    """A lap timer by stream events on CUDA, by the clock on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._is_cuda = device.type == "cuda"
        self._marks: list[tuple[str, torch.cuda.Event | float]] = [("", self._mark())]

    def _mark(self) -> torch.cuda.Event | float:
        if not self._is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def lap(self, phase: str) -> None:
        """Attribute the time since the last lap to ``phase``."""
        self._marks.append((phase, self._mark()))

    def read_ms(self) -> Mapping[str, float]:
        """Return milliseconds by phase. The device must have finished."""
        spent: dict[str, float] = defaultdict(float)
        for (_, start), (phase, end) in zip(self._marks, self._marks[1:], strict=False):
            spent[phase] += _ms(start, end)
        return spent


def _ms(start: torch.cuda.Event | float, end: torch.cuda.Event | float) -> float:
    if isinstance(start, float) and isinstance(end, float):
        return (end - start) * 1000
    assert isinstance(start, torch.cuda.Event)
    assert isinstance(end, torch.cuda.Event)
    return float(start.elapsed_time(end))
