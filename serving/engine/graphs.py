"""Captured calls of the UNet: one CUDA graph a shape serves every recipe.

Working weights never move, so a graph that was captured with one recipe computes with whatever
weights are in place when it is replayed. A replay is one launch instead of about 1,900, needs
neither guards nor the interpreter, and cannot compile anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch


@dataclass(frozen=True, slots=True, order=True, kw_only=True)
class UnetKey:
    """Everything that decides the shapes of a UNet call. Sizes in pixels; ``schema`` is the
    fingerprint of the UNet's configuration; ``context_chunks`` counts 77 tokens each;
    ``controls`` are the fingerprints of ControlNets."""

    schema: str
    width: int
    height: int
    batch: int
    guided: bool
    context_chunks: int = 1
    controls: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """Rows of the batch that the UNet sees: guidance predicts with and without the prompt."""
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
    """``replay()`` recomputes ``output`` from the static inputs of the captured call."""

    replay: Callable[[], None]
    output: torch.Tensor


class CaptureFailed(RuntimeError):
    """A call that cannot be captured; the process can go on without."""


class Capture(Protocol):
    """Turns a call on static inputs into one that can be replayed."""

    def __call__(self, call: Callable[[], torch.Tensor]) -> Captured:
        """Raises CaptureFailed, and whatever the call raises."""

    @property
    def pool_bytes(self) -> int:
        """Device memory that all captured calls share."""


class StandInCapture:
    """For a device without graphs: a replay runs the call again, into a static output. It is no
    faster; it shows that inputs are copied in and the output is read before the next replay."""

    pool_bytes = 0

    def __call__(self, call: Callable[[], torch.Tensor]) -> Captured:
        output = call().clone()

        def replay() -> None:
            output.copy_(call())

        return Captured(replay, output)


class CudaCapture:
    """CUDA graphs. Use it from the thread that generates: cuDNN's and attention's plans are
    cached per thread.

    All graphs share one memory pool: an output is read before another graph is replayed.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = torch.cuda.graph_pool_handle()
        self._stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, call: Callable[[], torch.Tensor]) -> Captured:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for _ in range(3):  # plans, workspaces and lazily loaded kernels
                call()
        current.wait_stream(self._stream)
        torch.cuda.synchronize(self._device)
        graph: Any = torch.cuda.CUDAGraph()
        try:
            # thread_local: another thread may allocate memory for an arriving asset meanwhile.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                output = call()
        except RuntimeError as error:
            torch.cuda.set_stream(current)  # which a failed capture does not give back
            # Raises where the failed capture has left the allocator unusable: such a process
            # must not go on. AO_GRAPHS=off starts without graphs.
            torch.cuda.empty_cache()
            raise CaptureFailed(str(error)) from error
        return Captured(graph.replay, output)

    @property
    def pool_bytes(self) -> int:
        segments: Any = torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
        pool = tuple(self._pool)
        return sum(s["total_size"] for s in segments if tuple(s["segment_pool_id"]) == pool)
