"""Cached embeddings: bit-identical, per tenant, within a budget."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from assets.recipe import InversionUse, LoraUse, Recipe
from serving.engine.options import EngineOptions
from serving.engine.prompt_cache import PromptCache, PromptKey
from serving.engine.text import Embeddings, Encoded
from serving.generation.contract import GenerationTask
from serving.generation.prompts import PromptPiece
from tests.support.generation import changed, image_of, task_of


@pytest.fixture
def engine(bench: Any) -> Any:
    """Counts encoded prompts in ``engine.encoded``."""
    engine = bench.engine()
    encode, engine.encoded = engine.prompts.text.encode, 0

    def count_and_encode(*arguments: Any) -> Any:
        engine.encoded += 1
        return encode(*arguments)

    engine.prompts.text.encode = count_and_encode
    return engine


def request(recipe: Recipe, **changes: Any) -> GenerationTask:
    first = task_of(
        "r", recipe, "a qzebra star", 64, 64, (7,), steps=1, encoding="png", tenant_id="ada",
        negative_prompt="blurred",
    )  # fmt: skip
    return changed(first, **changes)


def test_a_repeated_prompt_is_not_encoded_again(bench: Any, engine: Any) -> None:
    uncached = bench.engine(options=EngineOptions(prompt_cache_bytes=0))
    task = request(engine.base)
    assert image_of(engine, task) == image_of(engine, task) == image_of(uncached, task)
    assert engine.encoded == 2
    image_of(engine, changed(task, prompt="a ring"))
    assert engine.encoded == 3


def test_a_tenant_cannot_detect_anothers_prompts(engine: Any) -> None:
    """A prompt takes the same time if another tenant has used it."""
    task = request(engine.base)
    images = {image_of(engine, changed(task, tenant_id=t)) for t in ("ada", "bob", "eve")}
    assert len(images) == 1
    assert engine.encoded == 6
    image_of(engine, changed(task, tenant_id="bob"))
    assert engine.encoded == 6
    for _ in range(2):  # nothing is cached without a tenant
        image_of(engine, changed(task, tenant_id=""))
    assert engine.encoded == 10


def test_the_key_depends_on_everything_that_changes_embeddings(
    bench: Any, engine: Any, samples: dict[str, Any]
) -> None:
    uncached = bench.engine(options=EngineOptions(prompt_cache_bytes=0))
    lora = LoraUse(samples["lora_all"].parts["lora"], 0.8)
    inversion = InversionUse(samples["inversion"].parts["textual_inversion"], "qzebra")
    base = engine.base
    recipes = [
        base,
        replace(base, loras=(lora,)),
        replace(base, loras=(replace(lora, weight=0.3),)),
        replace(base, loras=(replace(lora, text_weight=0.0),)),
        replace(base, inversions=(inversion,)),
        replace(base, inversions=(replace(inversion, token="star"),)),
    ]
    for recipe in (*recipes, *recipes):
        task = request(recipe)
        assert image_of(engine, task) == image_of(uncached, task)
    # A LoRA without effect on text encoders shares the base's embeddings.
    assert engine.encoded == 2 * 5
    engine.forget({lora.blob.key})
    image_of(engine, request(recipes[1]))
    assert engine.encoded == 2 * 6
    image_of(engine, request(base))
    assert engine.encoded == 2 * 6


def test_the_cache_keeps_to_its_budget() -> None:
    def encoded() -> Encoded:
        return Encoded(Embeddings(torch.zeros(100), torch.zeros(0)), (), frozenset())

    def key(number: int) -> PromptKey:
        return PromptKey(
            "ada", ("a", "b"), (), (), (("text_encoder", ((PromptPiece(str(number)),),)),)
        )

    cache = PromptCache(1000)
    for number in range(3):
        cache.put(key(number), encoded())
    assert [cache.get(key(n)) is not None for n in range(3)] == [False, True, True]
    PromptCache(0).put(key(0), encoded())
    small = PromptCache(399)
    small.put(key(0), encoded())
    assert small.get(key(0)) is None
    cache.clear()
    assert cache.get(key(1)) is None
