"""Image sizes: what a request may ask for, and what a model smaller than SDXL generates."""

from __future__ import annotations

from dataclasses import dataclass

from assets.base_model.manifest import LATENT_SCALE
from serving.errors import InvalidRequest

#: OctoAI's (width, height) in pixels, for a native side of 1024.
WIRE_SIZES: tuple[tuple[int, int], ...] = (
    (640, 1536), (768, 1344), (832, 1216), (896, 1152), (1024, 1024),
    (1152, 896), (1216, 832), (1344, 768), (1536, 640),
)  # fmt: skip
WIRE_NATIVE = 1024
MIN_SIDE = 64
#: Of the format.
MAX_WEBP_SIDE = 16_383
#: Over the native square, without AO_MAX_PIXELS.
_DEFAULT_BUDGET = 2


@dataclass(frozen=True, slots=True)
class Size:
    """A size in pixels; ``scaled`` if the model is smaller than the request."""

    width: int
    height: int
    scaled: bool


@dataclass(frozen=True, slots=True)
class ImageSizes:
    """The sizes of a model with this native side. ``max_pixels``: 0 is twice the native square."""

    native: int
    max_pixels: int = 0

    @property
    def budget(self) -> int:
        return self.max_pixels or _DEFAULT_BUDGET * self.native**2

    def size(self, width: int | None, height: int | None) -> Size:
        """Return the size to generate at. OctoAI's nine are scaled to a smaller model.

        Raises:
            InvalidRequest: a side is missing, not a multiple of 8 from 64 on, or both are too
                large.
        """
        if width is None and height is None:
            return Size(self.native, self.native, scaled=False)
        if width is None or height is None:
            raise InvalidRequest(
                "width" if width is None else "height", "give both width and height, or neither"
            )
        if (width, height) in WIRE_SIZES and self.native < WIRE_NATIVE:
            return Size(_scaled(width, self.native), _scaled(height, self.native), scaled=True)
        for name, side in (("width", width), ("height", height)):
            if side < MIN_SIDE or side % LATENT_SCALE:
                raise InvalidRequest(
                    name,
                    f"{side} pixels; a side is a multiple of {LATENT_SCALE} from {MIN_SIDE} on",
                )
        if width * height > self.budget and (width, height) not in WIRE_SIZES:
            raise InvalidRequest(
                "width", f"{width}x{height} has more than the {self.budget} pixels of an image here"
            )
        return Size(width, height, scaled=False)


def check_wire_size(width: int | None, height: int | None) -> None:
    """Raise InvalidRequest unless the size is one of OctoAI's."""
    if width is not None and height is not None and (width, height) not in WIRE_SIZES:
        sizes = ", ".join(f"{w}x{h}" for w, h in WIRE_SIZES)
        raise InvalidRequest(
            "width",
            f"{width}x{height} is not supported here; the sizes are {sizes}; POST /generate takes "
            "any multiple of 8",
        )


def _scaled(side: int, native: int) -> int:
    latent = side * native / WIRE_NATIVE / LATENT_SCALE
    return max(1, int(latent + 0.5)) * LATENT_SCALE
