"""Devices and their differences: streams, events and pinned memory."""

from __future__ import annotations

from typing import Protocol

import torch


def pick_device(name: str) -> str:
    """Resolve "auto" to "cuda" if available, else "cpu"; return others unchanged."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def gpu_names() -> list[str]:
    """Return the names of torch's GPUs."""
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy without waiting: from pinned memory, on the current stream."""
    if device.type != "cuda":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


class Event(Protocol):
    """A point in the device's queue of work."""

    def wait(self) -> None: ...


class _NoEvent:
    def wait(self) -> None:
        """CPU work is synchronous."""


class _CudaEvent:
    def __init__(self, device: torch.device) -> None:
        # Blocking: the thread sleeps instead of spinning on a core.
        self._event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        self._event.record(torch.cuda.current_stream(device))

    def wait(self) -> None:
        self._event.synchronize()


def record_event(device: torch.device) -> Event:
    """Return an event after the current stream's queued work."""
    return _CudaEvent(device) if device.type == "cuda" else _NoEvent()
