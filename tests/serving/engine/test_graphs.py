"""Captured calls: inputs are copied in, outputs copied out, every recipe is served.

A CPU stand-in re-runs the call on static buffers; tests/gpu has CUDA graphs.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from assets.recipe import LoraUse, Recipe
from serving.engine.graphs import CaptureFailed, StandInCapture, UnetKey
from serving.engine.options import EngineOptions
from serving.generation.contract import MAX_BATCH, GenerationTask
from serving.generation.samplers import SAMPLERS
from tests.support.generation import changed, image_of, task_of

PLAIN = EngineOptions(graphs="off", keep_cross_kv=False, prompt_cache_bytes=0, max_batch=MAX_BATCH)


def request(recipe: Recipe, **changes: Any) -> GenerationTask:
    first = task_of(
        "r", recipe, "a red star", 64, 64, (7,), steps=3, cfg_scale=5.0, encoding="png",
        tenant_id="ada",
    )  # fmt: skip
    return changed(first, **changes)


@pytest.fixture(scope="module")
def plain(bench: Any) -> Any:
    return bench.engine(options=PLAIN)


@pytest.fixture(scope="module")
def graphed(bench: Any) -> Any:
    engine = bench.engine(options=EngineOptions(graphs="on"))
    engine.warm_up([(64, 64), (64, 96)], batches=(1, 2))
    return engine


@pytest.fixture(scope="module")
def recipes(bench: Any, samples: dict[str, Any]) -> list[Recipe]:
    parts = dict(bench.manifest.parts)
    base = Recipe(parts["unet"], parts["text_encoder"], parts["text_encoder_2"], parts["vae"])
    loras = [LoraUse(samples[f"lora_{n}"].parts["lora"], 0.7) for n in ("all", "cross")]
    other = samples["checkpoint"].parts["unet"]
    return [base, *(replace(base, loras=(lora,)) for lora in loras), replace(base, unet=other)]


def test_captured_calls_serve_every_recipe(plain: Any, graphed: Any, recipes: list[Recipe]) -> None:
    """The same bits as plain calls, in any order; nothing runs without a graph."""
    dice = random.Random(2)
    before = graphed.unet.fallbacks.total()
    for _ in range(24):
        task = request(
            dice.choice(recipes),
            sampler=dice.choice(tuple(SAMPLERS)),
            cfg_scale=dice.choice((1.0, 5.0)),
            height=dice.choice((64, 96)),
            seeds=tuple(range(dice.choice((1, 2)))),
            prompt=dice.choice(("a red star", "a ring")),
        )
        images = []
        for engine in (plain, graphed):
            with engine.prepare(task.recipe) as prepared:
                images.append(engine.generate(prepared, task).images)
        assert images[0] == images[1], task
    assert graphed.unet.fallbacks.total() == before
    assert len(graphed.unet.graphs) == 8


def test_a_shape_that_was_not_warmed_runs_and_is_counted(
    plain: Any, graphed: Any, recipes: list[Recipe]
) -> None:
    task = request(recipes[1], width=128, height=64, steps=5)
    with graphed.prepare(task.recipe) as prepared:
        result = graphed.generate(prepared, task)
    assert result.images[0] == image_of(plain, task)
    assert result.fallbacks == {"128x64, batch 1, guided": 5}


def test_an_output_is_read_before_the_next_replay() -> None:
    """A graph's predictions share memory: the denoiser must copy."""
    inputs = torch.zeros(3)
    captured = StandInCapture()(lambda: inputs * 2)
    inputs.fill_(1)
    captured.replay()
    first = captured.output
    inputs.fill_(5)
    captured.replay()
    assert first.tolist() == [10, 10, 10]


def test_the_key_distinguishes_shapes() -> None:
    key = UnetKey(schema="s", width=64, height=64, batch=2, guided=True)
    assert key.rows == 4
    others = {
        replace(key, schema="t"), replace(key, width=72), replace(key, height=72),
        replace(key, batch=1), replace(key, guided=False), replace(key, context_chunks=2),
        replace(key, controls=("c",)),
    }  # fmt: skip
    assert len(others | {key}) == 8
    assert str(replace(key, context_chunks=3)) == "64x64, batch 2, guided, 3 chunks"


def test_the_number_of_fallback_names_is_bounded(bench: Any) -> None:
    runner = bench.engine(options=EngineOptions(graphs="on")).unet
    for width in range(100):
        runner.count(f"{width}x8")
    assert len(runner.fallbacks) == 65
    assert runner.fallbacks["other"] == 36


@pytest.mark.parametrize("guided", [True, False])
def test_kept_keys_and_values_are_the_same_bits(
    bench: Any, plain: Any, recipes: list[Recipe], guided: bool
) -> None:
    kept = bench.engine(options=replace(PLAIN, keep_cross_kv=True))
    for recipe in recipes:  # they change to_k and to_v
        for prompt in ("a red star", "rings"):
            task = request(recipe, prompt=prompt, cfg_scale=5.0 if guided else 1.0)
            assert image_of(kept, task) == image_of(plain, task)


def test_a_failed_guard_is_counted(bench: Any, recipes: list[Recipe]) -> None:
    """A changed global setting makes compiled code fall back silently."""
    options = EngineOptions(compile="regional", compile_backend="aot_eager")
    engine = bench.engine(options=options)
    engine.warm_up([(64, 64)])
    task = request(recipes[0], steps=2)
    with engine.prepare(task.recipe) as prepared:
        assert engine.generate(prepared, task).fallbacks == {}
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            result = engine.generate(prepared, task)
        finally:
            torch.set_num_threads(threads)
    assert result.fallbacks == {"64x64, batch 1, guided": 2, "VAE, 64x64": 1}


def test_a_call_that_cannot_be_captured_runs_without_a_graph(
    bench: Any, plain: Any, recipes: list[Recipe], caplog: pytest.LogCaptureFixture
) -> None:
    class FailingCapture(StandInCapture):
        def __call__(self, call: Any) -> Any:
            raise CaptureFailed("operation not permitted when stream is capturing")

    engine = bench.engine(options=EngineOptions(graphs="on"))
    engine.unet._capture = FailingCapture()
    engine.warm_up([(64, 64)])
    assert "cannot be captured for 64x64, batch 1, guided" in caplog.text
    task = request(recipes[0], steps=2)
    with engine.prepare(task.recipe) as prepared:
        result = engine.generate(prepared, task)
    assert result.images[0] == image_of(plain, task)
    assert result.fallbacks == {"64x64, batch 1, guided": 2}
