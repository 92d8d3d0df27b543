"""Previews, made in threads, change no process-wide state."""

from __future__ import annotations

import io
import os
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from assets.errors import InvalidAsset
from assets.library.preview import preview_of


def encoded(image: Image.Image, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


def test_concurrent_previews_leave_the_warning_filters() -> None:
    noise = encoded(Image.frombytes("RGB", (600, 600), os.urandom(600 * 600 * 3)))
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(preview_of, [noise] * 32))) == 32
    assert warnings.filters == before


def test_images_that_pillow_warns_about_are_refused() -> None:
    bomb = encoded(Image.new("1", (13_000, 13_000)))
    with pytest.raises(InvalidAsset):
        preview_of(bomb)
