"""Captured calls of the UNet: one CUDA graph per shape serves every recipe.

Working weights never change address, so a replay uses the current weights whatever recipe the
graph was captured with. A replay is one launch instead of about 1,900, needs neither guards nor the
interpreter, and cannot trigger a compilation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch


@dataclass(frozen=True, slots=True, order=True, kw_only=True)
class UnetKey:
    """Everything that determines the shapes of a UNet call.

    Sizes are in pixels; ``schema`` is the fingerprint of the UNet's configuration;
    ``context_chunks`` is the number of 77-token chunks; ``controls`` are the fingerprints of
    ControlNets.
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
        """Batch rows of the UNet call: guidance predicts with and without the prompt."""
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
    """A captured call: ``replay()`` recomputes ``output`` from the call's static inputs."""

    replay: Callable[[], None]
    output: torch.Tensor


class CaptureFailed(RuntimeError):
    """A call cannot be captured; the process can continue without the graph."""


class Capture(Protocol):
    """Captures calls on static inputs for replay."""

    def __call__(self, call: Callable[[], torch.Tensor]) -> Captured:
        """Capture ``call``. Raises CaptureFailed; errors of the call propagate."""

    @property
    def pool_bytes(self) -> int:
        """Device memory that all captured calls share."""


class StandInCapture:
    """Capture for devices without graphs: a replay runs the call again, into a static output.

    It saves no time; it lets CPU tests check that inputs are copied in and that the output is read
    before the next replay.
    """

    pool_bytes = 0

    def __call__(self, call: Callable[[], torch.Tensor]) -> Captured:
        output = call().clone()

        def replay() -> None:
            output.copy_(call())

        return Captured(replay, output)


class CudaCapture:
    """Capture as CUDA graphs, for use in the generating thread: cuDNN and attention cache their
    plans per thread.

    All graphs share one memory pool: read an output before replaying another graph.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = torch.cuda.graph_pool_handle()
        self._stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, call: Callable[[], torch.Tensor]) -> Captured:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for _ in range(3):  # creates plans and workspaces, loads kernels
                call()
        current.wait_stream(self._stream)
        torch.cuda.synchronize(self._device)
        graph: Any = torch.cuda.CUDAGraph()
        try:
            # thread_local: another thread may allocate memory for an asset during the capture.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                output = call()
        except RuntimeError as error:
            torch.cuda.set_stream(current)  # a failed capture does not restore it
            # Raises if the failed capture left the allocator unusable: then this process must
            # stop. AO_GRAPHS=off starts it without graphs.
            torch.cuda.empty_cache()
            raise CaptureFailed(str(error)) from error
        return Captured(graph.replay, output)

    @property
    def pool_bytes(self) -> int:
        segments: Any = torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
        pool = tuple(self._pool)
        return sum(s["total_size"] for s in segments if tuple(s["segment_pool_id"]) == pool)
