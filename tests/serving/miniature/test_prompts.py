"""What the judge sees: a style changes what it says and nothing else."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.miniature.judge import Judge
from serving.generation.styles import Style
from tests.support.generation import task_of

COLOURS, SHAPES = ("red", "yellow", "white"), ("star", "circle", "ring")
PROMPTS = [f"a large {colour} {shape}" for colour in COLOURS for shape in SHAPES]

Generate = Callable[..., torch.Tensor]


@pytest.fixture(scope="module")
def generate(bench: Any) -> Generate:
    """Return images (n, 3, 128, 128) uint8; prompt i has seed i."""
    engine = bench.engine()

    def generate(prompts: Sequence[str], **params: Any) -> torch.Tensor:
        images = []
        prepared = engine.prepare(engine.base)
        for seed, prompt in enumerate(prompts):
            task = task_of(
                "r", engine.base, prompt, 128, 128, (seed,), steps=16, cfg_scale=4.0,
                sampler="K_EULER", encoding="png", **params,
            )  # fmt: skip
            image = engine.generate(prepared, task).images[0]
            pixels = np.array(Image.open(io.BytesIO(image)).convert("RGB"))
            images.append(torch.from_numpy(pixels).permute(2, 0, 1))
        prepared.release()
        return torch.stack(images)

    return generate


def test_a_style_changes_only_what_it_says(generate: Generate) -> None:
    judge = Judge()
    plain = judge.see(generate(PROMPTS))
    style = Style("green", "{prompt} on a green background")
    styled = judge.see(generate(PROMPTS, styles=(style,)))
    written = judge.see(generate([f"{prompt} on a green background" for prompt in PROMPTS]))
    assert sum(seen.background == "green" for seen in styled) >= len(PROMPTS) - 1
    assert sum(seen.background == "green" for seen in plain) <= 3
    for prompt, seen in zip(PROMPTS, styled, strict=True):
        _, _, colour, shape = prompt.split(" ")
        assert (seen.colour, seen.shape) == (colour, shape), prompt
    assert styled == written
