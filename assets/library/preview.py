"""Preview images: uploads are checked by size, decoded, scaled down and encoded again.

Pillow only warns at 13,000 × 13,000 pixels in 20 KiB (half a gigabyte decoded), so the header is
checked first. Encoding drops metadata and appended data.
"""

from __future__ import annotations

import io

from PIL import Image

from assets.errors import InvalidAsset

MAX_BYTES = 8 << 20
MAX_PIXELS = 2048 * 2048
#: The longer side, in pixels.
KEPT_SIDE = 512
_FORMATS = ("PNG", "JPEG", "WEBP")


def preview_of(data: bytes) -> bytes:
    """Return a PNG of at most KEPT_SIDE pixels a side, same aspect ratio.

    Raises:
        InvalidAsset: not a still PNG, JPEG or WebP, too large (MAX_BYTES, MAX_PIXELS) or broken.
    """
    if len(data) > MAX_BYTES:
        raise _bad(f"at most {MAX_BYTES >> 20} MiB are accepted")
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS or getattr(image, "n_frames", 1) > 1:
                raise _bad(f"one still image of at most {MAX_PIXELS} pixels is accepted")
            image.draft("RGB", (KEPT_SIDE, KEPT_SIDE))
            kept = image.convert("RGB")
        kept.thumbnail((KEPT_SIDE, KEPT_SIDE))
        out = io.BytesIO()
        kept.save(out, "PNG")
    except InvalidAsset:
        raise
    except Exception as error:  # decoders raise many types
        raise _bad(f"it cannot be decoded ({type(error).__name__})") from None
    return out.getvalue()


def _bad(reason: str) -> InvalidAsset:
    return InvalidAsset("preview", f"a preview is a PNG, JPEG or WebP image: {reason}")
