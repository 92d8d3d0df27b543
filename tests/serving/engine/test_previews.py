"""Previews: small images of unfinished latents, without effect on the finished ones."""

from __future__ import annotations

import io

import torch
from PIL import Image

from serving.engine.previews import Previewer


def test_a_preview_of_each_image_an_eighth_of_its_size() -> None:
    latents = torch.randn(2, 4, 6, 10, generator=torch.Generator().manual_seed(0))
    before = latents.clone()
    images = [
        Image.open(io.BytesIO(data)) for data in Previewer(torch.device("cpu")).start(latents)()
    ]
    assert [(image.format, image.size) for image in images] == [("JPEG", (10, 6))] * 2
    assert torch.equal(latents, before)


def test_the_first_channel_is_brightness() -> None:
    def mean(value: float) -> float:
        latents = torch.zeros(1, 4, 8, 8)
        latents[:, 0] = value
        (data,) = Previewer(torch.device("cpu")).start(latents)()
        levels = Image.open(io.BytesIO(data)).convert("L").tobytes()
        return float(sum(levels) / len(levels))

    assert mean(-3.0) < 5
    assert 120 < mean(0.0) < 160
    assert mean(3.0) > 250


def test_other_latents_have_no_previews() -> None:
    assert Previewer(torch.device("cpu")).start(torch.zeros(1, 16, 8, 8))() == ()
