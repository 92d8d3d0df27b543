"""A compiled engine: no recipe compiles anything."""

from __future__ import annotations

import random
from typing import Any

from assets.recipe import LoraUse, Recipe
from serving.engine.compiled import compilations
from serving.engine.options import EngineOptions
from tests.support.generation import task_of


def test_a_hundred_mixed_recipes_compile_nothing(bench: Any, samples: dict[str, Any]) -> None:
    """Recipes with various LoRAs, text encoders included, on two checkpoints give eager images.

    Dynamo's guards are the same for every backend; aot_eager compiles quickly.
    """
    from serving.miniature.catalogue import weights_file

    options = EngineOptions(compile="regional", compile_backend="aot_eager")
    engine, plain = bench.engine(options=options), bench.engine()
    engine.warm_up([(64, 64)])
    for compiled in (engine.unet.compiled, engine.decoder.compiled):
        compiled.forbid_fallbacks()
    graphs = compilations()["graphs"]
    assert graphs > 0
    uses = [samples[name].parts["lora"] for name in ("lora_all", "lora_cross", "lora_alpha")]
    uses += [bench.ingest(weights_file(n), "lora").parts["lora"] for n in ("outline", "dots")]
    other = samples["checkpoint"].parts["unet"]
    dice = random.Random(3)
    parts = dict(engine.base.components())
    for index in range(100):
        chosen = dice.sample(uses, dice.randint(0, 3))
        loras = tuple(LoraUse(blob, dice.uniform(-1, 1)) for blob in chosen)
        recipe = Recipe(**{**parts, "unet": dice.choice((parts["unet"], other))}, loras=loras)
        request = task_of(
            "r", recipe, "a red star", 64, 64, (7,), steps=1,
            cfg_scale=dice.choice((1.0, 5.0)), encoding="png",
            sampler=dice.choice(("DDIM", "K_EULER")),
        )  # fmt: skip
        images = []
        for each in (engine, plain) if index % 25 == 0 else (engine,):
            prepared = each.prepare(recipe)
            images.append(each.generate(prepared, request).images)
            prepared.release()
        assert len(set(images)) == 1
    assert compilations()["graphs"] == graphs
