"""A LoRA's two weights: UNet and text encoders."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from assets.errors import InvalidAsset
from assets.principal import Principal
from assets.recipe import LoraUse
from assets.selection import AssetSelection
from serving.api.dialects.octoai.generate import GenerateRequest


def test_the_text_encoders_may_have_a_separate_weight(bench: Any, samples: dict[str, Any]) -> None:
    blob = samples["lora_all"].parts["lora"]
    engine = bench.engine()

    def moved(*uses: LoraUse) -> dict[str, int]:
        prepared = engine.prepare(replace(engine.base, loras=uses))
        engine.switch_to(prepared)
        prepared.release()
        counts: dict[str, int] = {}
        for component, _, _ in engine._working._current.moved:
            counts[component] = counts.get(component, 0) + 1
        return counts

    everything = moved(LoraUse(blob, 0.5))
    assert everything.keys() == {"unet", "text_encoder", "text_encoder_2"}
    digest = engine.digest()
    assert moved(LoraUse(blob, 0.5, 0.0)) == {"unet": everything["unet"]}
    assert "unet" not in moved(LoraUse(blob, 0.0, 0.5))
    assert moved(LoraUse(blob, 0.5, 0.25)) == everything
    assert engine.digest() != digest
    moved(LoraUse(blob, 0.5, 0.5))
    assert engine.digest() == digest
    assert LoraUse(blob, 0.5, 0.5) == LoraUse(blob, 0.5)


def test_weights_on_the_wire(bench: Any, samples: dict[str, Any]) -> None:
    name = samples["lora_all"].name
    who = Principal("t1", "t1")

    def used(weight: Any) -> LoraUse:
        request = GenerateRequest.model_validate(
            {"prompt": "p", "loras": {name: weight}}
        ).to_request()
        use: LoraUse = bench.library.resolve(who, request.selection).recipe.loras[0]
        return use

    blob = samples["lora_all"].parts["lora"]
    assert used(0.5) == LoraUse(blob, 0.5)
    assert used({"unet": 0.8, "text_encoders": 0.3}) == LoraUse(blob, 0.8, 0.3)
    with pytest.raises(InvalidAsset, match="between"):
        bench.library.resolve(
            who, AssetSelection(loras={name: 1.0}, lora_text_weights={name: 99.0})
        )
