"""Devices to generate on, and what differs between them: streams, events and pinned memory."""

from __future__ import annotations

from typing import Any, Protocol

import torch


def pick_device(wanted: str) -> str:
    """``wanted``, where "auto" means a GPU if there is one."""
    if wanted != "auto":
        return wanted
    return "cuda" if torch.cuda.is_available() else "cpu"


def gpu_names() -> list[str]:
    """Of the GPUs that torch sees here."""
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A CPU tensor on ``device``, without waiting for the device: from pinned memory, in the
    order of the current stream."""
    if device.type != "cuda":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


class Event(Protocol):
    """A point in the device's work."""

    def wait(self) -> None:
        """Block this thread until the device has reached the point."""


class _NoEvent:
    def wait(self) -> None:
        """A CPU has done its work when the call returns."""


class _CudaEvent:
    def __init__(self, device: torch.device) -> None:
        # Blocking: the thread sleeps instead of spinning on a core that others need.
        self._event: Any = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        self._event.record(torch.cuda.current_stream(device))

    def wait(self) -> None:
        self._event.synchronize()


def record_event(device: torch.device) -> Event:
    """The end of the work that has been queued on the current stream so far."""
    return _CudaEvent(device) if device.type == "cuda" else _NoEvent()
