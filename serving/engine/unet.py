"""The runner of the UNet: replays a captured graph, else runs compiled code, else eagerly."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch

from assets.base_model.manifest import LATENT_SCALE
from serving.engine.attention import attention_order
from serving.engine.compiled import CompiledModule
from serving.engine.cross_attention import CrossKeyValues
from serving.engine.graphs import Capture, Captured, CaptureFailed, UnetKey
from serving.engine.options import AttentionBackend

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel


log = logging.getLogger(__name__)

#: (sample [rows, channels, height, width], time []) → prediction, valid until the next call.
Predict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
#: Distinct keys in ``fallbacks``; others count as "other".
_MAX_COUNTED = 64


class UnetRunner:
    """Runs the UNet. Owned by the generating thread. Tests replace ``call``."""

    def __init__(
        self,
        unet: UNet2DConditionModel,
        *,
        compiled: CompiledModule | None = None,
        capture: Capture | None = None,
        keep_cross_kv: bool = False,
        attention: Sequence[AttentionBackend] = (),
    ) -> None:
        self.call: Callable[..., torch.Tensor] = unet
        self._channels = int(unet.config.in_channels)
        self.compiled = compiled
        self._capture = capture
        self._cross = CrossKeyValues(unet) if keep_cross_kv else None
        self._graphs: dict[UnetKey, tuple[_Static, Captured]] = {}
        self._attention = attention
        self._warming = False
        #: Calls without a graph (uncompiled, if graphs are off), by key.
        self.fallbacks = Counter[str]()

    @property
    def is_faster_when_warm(self) -> bool:
        return self._capture is not None or self.compiled is not None

    @property
    def is_warming(self) -> bool:
        return self._warming

    @property
    def graphs(self) -> frozenset[UnetKey]:
        return frozenset(self._graphs)

    @property
    def pool_bytes(self) -> int:
        return self._capture.pool_bytes if self._capture else 0

    @contextmanager
    def warming(self) -> Iterator[None]:
        """Compile and capture new keys."""
        self._warming = True
        try:
            yield
        finally:
            self._warming = False

    def start(
        self, key: UnetKey, context: torch.Tensor, added: Mapping[str, torch.Tensor]
    ) -> Predict:
        """Return one batch's predict function for the current weights.

        ``context`` is [rows, tokens, width]; ``added`` is SDXL's conditioning, [rows, …].
        """
        if self._cross is not None:
            self._cross.write(context, keep=self._warming)
        if self._capture is not None and self._warming and key not in self._graphs:
            try:
                self._graphs[key] = self._capture_call(key, context, added)
            except CaptureFailed:  # served slower, and counted
                log.exception("the UNet's call cannot be captured for %s", key)
        if key in self._graphs:
            static, captured = self._graphs[key]
            static.set_condition(context, added)
            return Replay(static, captured)

        def predict(sample: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            compiled = self.compiled
            fallbacks_before = compiled.fallbacks if compiled else 0
            predicted = self.run(key, sample, time, context, added)
            if not self._warming:
                uncompiled = compiled is not None and (
                    key not in compiled or compiled.fallbacks > fallbacks_before
                )
                if uncompiled or self._capture is not None:
                    self.count(str(key))
            return predicted

        return predict

    def run(
        self,
        key: UnetKey,
        sample: torch.Tensor,
        time: torch.Tensor,
        context: torch.Tensor,
        added: Mapping[str, torch.Tensor],
    ) -> torch.Tensor:
        """Run without a graph, compiled if ``key`` was; after :meth:`start`."""
        call: Callable[..., torch.Tensor] = self.call
        if self.compiled is not None:
            call = partial(self.compiled.compile if self._warming else self.compiled, key)
        named = {"encoder_hidden_states": context, "added_cond_kwargs": added}
        order = self._attention
        if self.is_faster_when_warm and not self._warming and not self._is_warm(key):
            # cuDNN takes seconds to plan a new shape.
            order = [backend for backend in order if backend != "cudnn"]
        with attention_order(order):
            predicted: torch.Tensor = call(sample, time, **named, return_dict=False)[0]
        return predicted

    def _is_warm(self, key: UnetKey) -> bool:
        return key in self._graphs or (self.compiled is not None and key in self.compiled)

    def count(self, name: str) -> None:
        if name not in self.fallbacks and len(self.fallbacks) >= _MAX_COUNTED:
            name = "other"
        self.fallbacks[name] += 1

    def _capture_call(
        self, key: UnetKey, context: torch.Tensor, added: Mapping[str, torch.Tensor]
    ) -> tuple[_Static, Captured]:
        assert self._capture is not None
        shape = (key.rows, self._channels, key.height // LATENT_SCALE, key.width // LATENT_SCALE)
        static = _Static(
            torch.zeros(shape, device=context.device, dtype=context.dtype),
            torch.ones((), device=context.device, dtype=torch.float32),
            context.clone(),
            {name: tensor.clone() for name, tensor in added.items()},
        )

        def call() -> torch.Tensor:
            return self.run(key, static.sample, static.time, static.context, static.added)

        call()  # compiles before the capture
        return static, self._capture(call)


class _Static:
    def __init__(
        self,
        sample: torch.Tensor,
        time: torch.Tensor,
        context: torch.Tensor,
        added: dict[str, torch.Tensor],
    ) -> None:
        self.sample = sample
        self.time = time
        self.context = context
        self.added = added

    def set_condition(self, context: torch.Tensor, added: Mapping[str, torch.Tensor]) -> None:
        self.context.copy_(context)
        for name, tensor in self.added.items():
            tensor.copy_(added[name])


class Replay:
    """A captured call on copied inputs. The next call overwrites its output."""

    def __init__(self, static: _Static, captured: Captured) -> None:
        self.static = static
        self._capture_call = captured

    @property
    def output(self) -> torch.Tensor:
        return self._capture_call.output

    def __call__(self, sample: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        self.static.sample.copy_(sample)
        self.static.time.copy_(time)
        self._capture_call.replay()
        return self._capture_call.output
