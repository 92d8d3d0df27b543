"""Previews: re-encoding; decompression bombs are refused undecoded."""

from __future__ import annotations

import io
import resource
import struct
import zlib

import pytest
from PIL import Image

from assets.errors import InvalidAsset
from assets.library.preview import KEPT_SIDE, MAX_BYTES, preview_of


def encoded(size: tuple[int, int], kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, "green").save(out, kind, **options)
    return out.getvalue()


def bomb(width: int, height: int) -> bytes:
    """Return a PNG of kilobytes with many black pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    packer = zlib.compressobj(9)
    row = b"\0" * (width + 1)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("size", [(1, 1), (512, 512), (2048, 2048), (4000, 10)])
def test_stored_as_a_small_png(kind: str, size: tuple[int, int]) -> None:
    with Image.open(io.BytesIO(preview_of(encoded(size, kind)))) as kept:
        assert kept.format == "PNG"
        assert max(kept.size) <= KEPT_SIDE
        assert not kept.info.get("exif")


@pytest.mark.parametrize("side", [2049, 9_000, 13_000])
def test_decompression_bomb_is_not_decoded(side: int) -> None:
    data = bomb(side, side)
    assert len(data) < 400_000
    before = peak_bytes()
    with pytest.raises(InvalidAsset, match=r"pixels|Bomb"):
        preview_of(data)
    grown = peak_bytes() - before
    assert grown < 16 << 20
    print(f"{len(data)} bytes of {side} × {side} pixels: {grown / 2**20:.1f} MiB more")


def test_invalid_images_are_refused() -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    animated = io.BytesIO()
    frames[0].save(animated, "WEBP", save_all=True, append_images=frames[1:])
    whole = encoded((300, 300))
    for data in (
        b"", b"x", encoded((8, 8), "GIF"), encoded((8, 8), "BMP"), animated.getvalue(),
        whole[: len(whole) // 2], b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"\x89PNG\r\n\x1a\n" + b"\0" * 100, b"x" * (MAX_BYTES + 1),
    ):  # fmt: skip
        with pytest.raises(InvalidAsset):
            preview_of(data)
