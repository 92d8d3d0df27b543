"""Neither pristine weights' place nor kernels' memory order changes images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from assets.recipe import LoraUse, Recipe
from orchestrator.device_tier import DeviceTier
from serving.engine.device_cache import DeviceCache
from serving.engine.slabs import layouts_of
from serving.engine.working import WorkingSet, target_weights
from tests.support.generation import task_of


@pytest.fixture(scope="module")
def recipes(bench: Any, samples: dict[str, Any], conv_lora: Any) -> list[Recipe]:
    parts = bench.manifest.parts
    base = Recipe(parts["unet"], parts["text_encoder"], parts["text_encoder_2"], parts["vae"])
    uses = [LoraUse(samples["lora_all"].parts["lora"], 0.8), LoraUse(conv_lora, 0.6)]
    other = samples["checkpoint"].parts["unet"]
    return [
        base,
        replace(base, loras=(uses[0],)),
        replace(base, unet=other, loras=tuple(uses)),
        replace(base, loras=(uses[1],)),
        base,
    ]


@pytest.fixture(scope="module")
def conv_lora(bench: Any) -> Any:
    """The library's LoKr, convolutions included."""
    from serving.miniature.catalogue import weights_file

    return bench.ingest(weights_file("outline"), "lora").parts["lora"]


def test_pristine_weights_in_host_memory_give_the_same_images(
    bench: Any, recipes: list[Recipe]
) -> None:
    """As on a small GPU: copied from host memory, changed in place."""
    near, apart = bench.engine("near"), bench.engine("apart", pristine_budget_bytes=1 << 30)
    for recipe in recipes:
        request = task_of("r", recipe, "a red star", 64, 64, (7,), steps=2, encoding="png")
        images = []
        for engine in (near, apart):
            prepared = engine.prepare(recipe)
            images.append(engine.generate(prepared, request).images)
            prepared.release()
        assert images[0] == images[1]
        assert near.digest() == apart.digest()
    again = apart.prepare(recipes[2])
    tiers = {fetch.key: fetch.tier for fetch in again.fetches}
    assert tiers[recipes[2].unet.key] == "host"
    assert tiers[recipes[2].loras[0].blob.key] == "gpu"
    again.release()
    unets = {recipe.unet.key for recipe in recipes}
    assert not unets & apart.resident()["gpu"]
    assert unets <= apart.resident()["host"]
    apart.tier.check_integrity()
    apart.device_cache.pristine_tier.check_integrity()


def test_a_large_change_is_written_piece_by_piece(
    bench: Any, recipes: list[Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Changes that need a buffer, as a LoKr's."""
    from serving.engine import working

    digests: list[list[str]] = []
    for limit in (working._CHANGED_AT_ONCE, 1):
        monkeypatch.setattr(working, "_CHANGED_AT_ONCE", limit)
        engine = bench.engine()
        digests.append([])
        for recipe in recipes:
            prepared = engine.prepare(recipe)
            engine.switch_to(prepared)
            prepared.release()
            digests[-1].append(engine.digest())
    assert digests[0] == digests[1]
    assert digests[0][0] == digests[0][-1] != digests[0][-2]


def test_channels_last_kernels_hold_the_same_weights(bench: Any, recipes: list[Recipe]) -> None:
    """Within a rounding error: channels-last changes are computed, then added."""
    engine = bench.engine()
    layouts = layouts_of(bench.manifest.schema, channels_last=True)
    cpu = torch.device("cpu")
    tier: DeviceTier[Any] = DeviceTier(4 << 30)
    schema = bench.manifest.schema
    device_cache = DeviceCache(
        engine.device_cache._provisioner, schema, layouts, cpu, engine._dtypes, tier
    )
    working = WorkingSet(layouts, cpu, engine._dtypes)
    kernel = working.parameter("unet", "conv_in.weight")
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    for recipe in recipes:
        prepared = engine.prepare(recipe)
        engine.switch_to(prepared)
        prepared.release()
        prepared = device_cache.prepare(recipe)
        uses = [(use, prepared.lora(use.blob)) for use in recipe.loras]
        blobs: dict[Any, Any] = dict(recipe.components())
        working.switch_to(
            target_weights({c: blob.key for c, blob in blobs.items()}, uses),
            {c: prepared.pristine(blob) for c, blob in blobs.items()},
            {use.blob.key: lora for use, lora in uses},
        )
        for component, names in bench.manifest.schema.components.items():
            for name in names:
                torch.testing.assert_close(
                    working.parameter(component, name),
                    engine._working.parameter(component, name),
                    atol=1e-6, rtol=1e-6,
                )  # fmt: skip
        prepared.release()
