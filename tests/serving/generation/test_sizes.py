"""Image sizes: native, and scaled to a small model."""

from __future__ import annotations

import pytest

from serving.errors import (
    InvalidRequest,
)
from serving.generation.sizes import WIRE_SIZES, image_size


def test_image_sizes() -> None:
    assert image_size(None, None, 128).width == 128
    assert image_size(None, None, 1024).scaled is False
    for width, height in WIRE_SIZES:
        native = image_size(width, height, 1024)
        assert (native.width, native.height, native.scaled) == (width, height, False)
        small = image_size(width, height, 128)
        assert small.scaled
        assert (small.width * 8, small.height * 8) == (width, height)
    refused: tuple[tuple[int | None, int | None], ...] = ((512, 512), (1024, None), (None, 1024))
    for wide, high in refused:
        with pytest.raises(InvalidRequest):
            image_size(wide, high, 1024)
