"""Pictures of strangers: looked at by their size before they are decoded, and written anew.

Pillow decodes a 20 KiB file of 13,000 × 13,000 pixels with a warning and half a gigabyte; so
the size in the header is compared first. What is kept is our own encoding of the pixels:
nothing of the file itself, its metadata or what may hide behind it is ever served.
"""

from __future__ import annotations

import io

from PIL import Image

from assets.errors import InvalidAsset

MAX_BYTES = 8 << 20
MAX_PIXELS = 2048 * 2048
#: The longer side of what is kept.
KEPT_SIDE = 512
_FORMATS = ("PNG", "JPEG", "WEBP")


def preview_of(data: bytes) -> bytes:
    """A PNG of at most KEPT_SIDE pixels a side, of the same shape.

    Raises:
        InvalidAsset: no PNG, JPEG or WebP, one of more than MAX_BYTES or MAX_PIXELS, or broken.
    """
    if len(data) > MAX_BYTES:
        raise _bad(f"at most {MAX_BYTES >> 20} MiB are accepted")
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS or getattr(image, "n_frames", 1) > 1:
                raise _bad(f"one still picture of at most {MAX_PIXELS} pixels is accepted")
            image.draft("RGB", (KEPT_SIDE, KEPT_SIDE))
            kept = image.convert("RGB")
        kept.thumbnail((KEPT_SIDE, KEPT_SIDE))
        out = io.BytesIO()
        kept.save(out, "PNG")
    except InvalidAsset:
        raise
    except Exception as error:  # decoders fail in many ways, and all of them mean this
        raise _bad(f"it cannot be decoded ({type(error).__name__})") from None
    return out.getvalue()


def _bad(reason: str) -> InvalidAsset:
    return InvalidAsset("preview", f"a preview is a PNG, JPEG or WebP picture: {reason}")
