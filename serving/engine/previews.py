"""Previews of unfinished images: latents projected linearly to RGB, an eighth of the size.

The copy runs on its own stream, so it never delays the generation.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import partial

import torch
from PIL import Image

from serving.engine.devices import Event, record_event

#: SDXL's four latent channels as red, green and blue levels, and their offsets: T. A. Vass,
#: Explaining the SDXL latent space, 2023.
_FACTORS = ((60.0, -60.0, 25.0, -70.0), (60.0, -5.0, 15.0, -50.0), (60.0, 10.0, -5.0, -35.0))
_OFFSETS = (150.0, 140.0, 130.0)
_QUALITY = 80


class Previewer:
    """Owned by the generating thread."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._factors = torch.tensor(_FACTORS, device=device)
        self._offsets = torch.tensor(_OFFSETS, device=device)[:, None, None]
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @torch.inference_mode()
    def start(self, latents: torch.Tensor) -> Callable[[], Sequence[bytes]]:
        """Begin to copy previews of ``latents`` [n, 4, height / 8, width / 8]; return how to wait
        for them and encode them as JPEG. Other latents have none."""
        if latents.shape[1] != self._factors.shape[1]:
            return _no_previews
        rgb = torch.einsum("nchw,rc->nrhw", latents.float(), self._factors) + self._offsets
        levels = rgb.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        if self._stream is not None:
            host = torch.empty(levels.shape, dtype=torch.uint8, pin_memory=True)
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(self._stream):
                host.copy_(levels, non_blocking=True)
                ready = record_event(self._device)
            levels.record_stream(self._stream)
            return partial(_encode, host, ready)
        return partial(_encode, levels, record_event(self._device))


def _no_previews() -> Sequence[bytes]:
    return ()


def _encode(levels: torch.Tensor, ready: Event) -> Sequence[bytes]:
    ready.wait()
    images = []
    for image in levels.numpy():
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=_QUALITY)
        images.append(buffer.getvalue())
    return images
