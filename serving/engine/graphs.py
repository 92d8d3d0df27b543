"""Captured calls of the UNet: one CUDA graph per shape serves every recipe.

Working weights never change address. A replay is one launch instead of about 1,900.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch


@dataclass(frozen=True, slots=True, order=True, kw_only=True)
class UnetKey:
    """What determines the shapes of a UNet call.

    Sizes are in pixels, a chunk is 77 tokens; ``schema`` and ``controls`` are fingerprints of
    configurations.
    """

    schema: str
    width: int
    height: int
    batch: int
    guided: bool
    context_chunks: int = 1
    controls: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """Guidance predicts with and without the prompt."""
        return self.batch * (2 if self.guided else 1)

    def __str__(self) -> str:
        guided = "guided" if self.guided else "unguided"
        parts = [f"{self.width}x{self.height}", f"batch {self.batch}", guided]
        if self.context_chunks != 1:
            parts.append(f"{self.context_chunks} chunks")
        if self.controls:
            parts.append(f"{len(self.controls)} controls")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Captured:
    """A captured call: ``replay()`` recomputes ``output`` from static inputs."""

    replay: Callable[[], None]
    output: torch.Tensor


class CaptureFailed(RuntimeError):
    """A call cannot be captured; the process can continue."""


class Capture(Protocol):
    """Captures calls on static inputs for replay."""

    def __call__(self, call: Callable[[], torch.Tensor]) -> Captured:
        """Raises CaptureFailed; errors of the call propagate."""

    @property
    def pool_bytes(self) -> int: ...


class StandInCapture:
    """Capture for CPU tests: a replay runs the call again, into a static output."""

    pool_bytes = 0

    def __call__(self, call: Callable[[], torch.Tensor]) -> Captured:
        output = call().clone()

        def replay() -> None:
            output.copy_(call())

        return Captured(replay, output)


class CudaCapture:
    """Capture as CUDA graphs, in the generating thread: cuDNN and attention plan per thread.

    One memory pool: read an output before the next replay.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, call: Callable[[], torch.Tensor]) -> Captured:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for _ in range(3):  # creates plans and workspaces
                call()
        current.wait_stream(self._stream)
        torch.cuda.synchronize(self._device)
        graph = torch.cuda.CUDAGraph()
        try:
            # thread_local: another thread may allocate during the capture.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                output = call()
        except RuntimeError as error:
            torch.cuda.set_stream(current)  # a failed capture does not restore it
            # Raises if the allocator is now unusable: the process must stop (see AO_GRAPHS=off).
            torch.cuda.empty_cache()
            raise CaptureFailed(str(error)) from error
        return Captured(graph.replay, output)

    @property
    def pool_bytes(self) -> int:
        segments: Any = torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
        pool = tuple(self._pool)
        return sum(s["total_size"] for s in segments if tuple(s["segment_pool_id"]) == pool)
