"""Image sizes: native, scaled to a small model, and any multiple of 8 within the budget."""

from __future__ import annotations

import pytest

from serving.errors import InvalidRequest
from serving.generation.sizes import WIRE_SIZES, ImageSizes, check_wire_size


def test_octoais_sizes() -> None:
    assert ImageSizes(128).size(None, None).width == 128
    assert ImageSizes(1024).size(None, None).scaled is False
    for width, height in WIRE_SIZES:
        check_wire_size(width, height)
        native = ImageSizes(1024).size(width, height)
        assert (native.width, native.height, native.scaled) == (width, height, False)
        small = ImageSizes(128).size(width, height)
        assert small.scaled
        assert (small.width * 8, small.height * 8) == (width, height)
    check_wire_size(None, None)
    with pytest.raises(InvalidRequest, match="POST /generate"):
        check_wire_size(512, 512)


@pytest.mark.parametrize(
    ("width", "height", "told"),
    [
        (1024, None, "both"), (None, 1024, "both"), (60, 64, "multiple of 8"),
        (56, 64, "from 64 on"), (64, 71, "multiple of 8"), (2048, 1032, "2097152 pixels"),
        (16_384, 64 * 3, "pixels"),
    ],
)  # fmt: skip
def test_refused_sizes(width: int | None, height: int | None, told: str) -> None:
    with pytest.raises(InvalidRequest, match=told):
        ImageSizes(1024).size(width, height)


def test_any_multiple_of_eight_within_the_budget() -> None:
    sizes = ImageSizes(1024)
    for width, height in ((64, 64), (72, 1000), (512, 512), (2048, 1024)):
        size = sizes.size(width, height)
        assert (size.width, size.height, size.scaled) == (width, height, False)
    assert ImageSizes(1024, 4096 * 4096).size(4096, 4096).width == 4096
    with pytest.raises(InvalidRequest, match="4096 pixels"):
        ImageSizes(128, 4096).size(72, 64)
