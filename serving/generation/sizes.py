"""The image sizes of the API, and their equivalents on smaller models."""

from __future__ import annotations

from dataclasses import dataclass

from assets.base_model.manifest import LATENT_SCALE
from serving.errors import InvalidRequest

#: (width, height) in pixels, for a native side of 1024.
WIRE_SIZES: tuple[tuple[int, int], ...] = (
    (640, 1536), (768, 1344), (832, 1216), (896, 1152), (1024, 1024),
    (1152, 896), (1216, 832), (1344, 768), (1536, 640),
)  # fmt: skip
WIRE_NATIVE = 1024


@dataclass(frozen=True, slots=True)
class Size:
    """A size in pixels; ``scaled`` if the model is smaller than the request."""

    width: int
    height: int
    scaled: bool


def image_size(width: int | None, height: int | None, native_size: int) -> Size:
    """Return the size to generate at.

    Raises:
        InvalidRequest: one side is missing, or the pair is not in WIRE_SIZES.
    """
    if width is None and height is None:
        return Size(native_size, native_size, scaled=False)
    if width is None or height is None:
        raise InvalidRequest(
            "width" if width is None else "height", "give both width and height, or neither"
        )
    if (width, height) not in WIRE_SIZES:
        sizes = ", ".join(f"{w}x{h}" for w, h in WIRE_SIZES)
        raise InvalidRequest("width", f"{width}x{height} is not supported; the sizes are {sizes}")
    if native_size >= WIRE_NATIVE:
        return Size(width, height, scaled=False)
    return Size(_scale(width, native_size), _scale(height, native_size), scaled=True)


def _scale(side: int, native_size: int) -> int:
    latent = side * native_size / WIRE_NATIVE / LATENT_SCALE
    return max(1, int(latent + 0.5)) * LATENT_SCALE
