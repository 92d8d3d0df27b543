"""Encoding of decoded tensors as image files: a device part and a host part."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass
from typing import assert_never

import torch
from PIL import Image

from serving.engine.devices import Event, record_event
from serving.generation.contract import (
    ImageEncoding,
)
from serving.generation.engine import (
    EncodedImage,
)
from serving.generation.image_metadata import with_text


@dataclass(frozen=True, slots=True)
class Pixels:
    """``levels`` [height, width, 3] uint8 in CPU memory, valid once ``ready`` passed."""

    levels: torch.Tensor
    ready: Event


def copy_pixels(decoded: torch.Tensor) -> Pixels:
    """Start copying ``decoded`` ([3, height, width] in -1..1) to the host."""
    levels = (decoded.float() / 2 + 0.5).clamp(0, 1).mul(255).round()
    levels = levels.to(torch.uint8).permute(1, 2, 0).contiguous()
    if levels.device.type == "cuda":
        host = torch.empty(levels.shape, dtype=torch.uint8, pin_memory=True)
        levels = host.copy_(levels, non_blocking=True)
    return Pixels(levels, record_event(decoded.device))


def encode_image(pixels: Pixels, encoding: ImageEncoding, text: str | None = None) -> EncodedImage:
    """Wait for the pixels and encode them, with ``text`` as metadata. Any thread."""
    pixels.ready.wait()
    started = time.perf_counter()
    buffer = io.BytesIO()
    image = Image.fromarray(pixels.levels.numpy())
    options = with_text(encoding, text)
    match encoding:
        case "jpeg":
            image.save(buffer, "JPEG", quality=95, **options)
        case "png":
            image.save(buffer, "PNG", compress_level=1, **options)
        case "webp":
            image.save(buffer, "WEBP", quality=90, method=4, **options)
        case _:
            assert_never(encoding)
    return EncodedImage(buffer.getvalue(), (time.perf_counter() - started) * 1000)
