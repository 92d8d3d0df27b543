"""Decoded tensors to encoded pictures."""

from __future__ import annotations

import io

import torch
from PIL import Image

from serving.drawing import ImageEncoding


def encode_picture(decoded: torch.Tensor, encoding: ImageEncoding) -> bytes:
    """``decoded`` is [3, height, width] in -1..1."""
    levels = (decoded.float() / 2 + 0.5).clamp(0, 1).mul(255).round()
    pixels = levels.to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    if encoding == "jpeg":
        image.save(buffer, "JPEG", quality=95)
    else:
        image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
