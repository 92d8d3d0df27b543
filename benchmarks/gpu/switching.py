"""Switches between recipes: exactness and time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from benchmarks.gpu.stages import Row
from benchmarks.gpu.world import World, median
from serving.engine.device_cache import Prepared
from serving.engine.engine import Engine


def switch_is_exact(world: World, engine: Engine) -> Row:
    """Check weights after three histories, and the restored base.

    Raises:
        AssertionError: weights depend on earlier recipes.
    """
    base = engine.prepare(world.base)
    engine.switch_to(base)
    before = engine.digest()
    recipes = [engine.prepare(recipe) for recipe in world.recipes(world.scale.recipes)]
    digests: list[list[str]] = []
    for history in ([base], recipes[::-1], [recipes[0], base, recipes[-1]]):
        digests.append([])
        for recipe in recipes:
            for other in history:
                engine.switch_to(other)
            engine.switch_to(recipe)
            digests[-1].append(engine.digest())
    engine.switch_to(base)
    after = engine.digest()
    for prepared in (base, *recipes):
        prepared.release()
    if not all(row == digests[0] for row in digests) or before != after:
        raise AssertionError("the weights of a recipe depend on the recipes before it")
    return {"recipes": len(recipes), "histories": len(digests), "equal": True}


def switch_times(world: World, engine: Engine) -> Row:
    """Time switches to a LoRA, another weight, back, to a checkpoint, and the bare copy."""
    base, other = engine.prepare(world.base), engine.prepare(world.with_checkpoint)
    loras = [engine.prepare(world.with_lora(i)) for i in range(len(world.loras))]
    lighter = [engine.prepare(world.with_lora(i, 0.3)) for i in range(len(world.loras))]
    slabs = base.pristine(world.base.unet).slabs.values()
    copies = [(torch.empty_like(slab), slab) for slab in slabs]
    rows: dict[str, list[float]] = {}

    def measure(name: str, work: Callable[[], object]) -> None:
        rows.setdefault(name, []).append(world.timed_ms(work))

    def bare() -> None:
        for target, source in copies:
            target.copy_(source)

    engine.switch_to(base)
    for index in range(max(3, world.scale.rounds // 3)):
        steps: list[tuple[str, Prepared]] = [
            ("lora_ms", loras[index % len(loras)]),
            ("another_weight_ms", lighter[index % len(loras)]),
            ("base_ms", base),
            ("checkpoint_ms", other),
        ]
        for name, prepared in steps:
            measure(name, partial(engine.switch_to, prepared))
        engine.switch_to(base)
        measure("bare_copy_ms", bare)
    for prepared in (base, other, *loras, *lighter):
        prepared.release()
    medians = {name: median(samples[1:]) for name, samples in rows.items()}
    over_copy = medians["checkpoint_ms"] / medians["bare_copy_ms"]
    return {**medians, "checkpoint_over_copy": over_copy, "samples": rows}
