"""The public library: published once; each asset has its trained effect, scaled by weight."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from assets.library.records import Query
from assets.library.resolve import BASE_NAME
from assets.principal import Principal
from assets.selection import AssetSelection
from benchmarks.miniature.evaluate import EFFECTS, held_out, selection_of
from benchmarks.miniature.judge import Judge
from benchmarks.miniature.world import Scene, caption, random_scene
from serving.miniature.catalogue import CATALOGUE, CatalogueEntry, weights_file
from serving.miniature.model import TOKEN_DIGESTS, token_rows
from serving.miniature.publish import publish_library, withdraw_library
from tests.support.generation import task_of

PRINCIPAL = Principal("t1", "t1")
BY_NAME = {entry.name: entry for entry in CATALOGUE}
SHIPPED_BYTES = 45_000_000

Generate = Callable[[list[str], AssetSelection], torch.Tensor]


@pytest.fixture(scope="module")
def commons(bench: Any) -> Any:
    publish_library(bench.ingest_service)
    return bench


@pytest.fixture(scope="module")
def generate(commons: Any) -> Generate:
    """Generate images (n, 3, 128, 128) uint8; prompt i has seed i."""
    engine = commons.engine("commons")

    def generate(prompts: list[str], selection: AssetSelection) -> torch.Tensor:
        recipe = commons.library.resolve(PRINCIPAL, selection).recipe
        prepared = engine.prepare(recipe)
        images = []
        for seed, prompt in enumerate(prompts):
            request = task_of(
                "r", recipe, prompt, 128, 128, (seed,), steps=16, cfg_scale=3.0,
                sampler="K_EULER", encoding="png",
            )  # fmt: skip
            image = engine.generate(prepared, request).images[0]
            pixels = np.array(Image.open(io.BytesIO(image)).convert("RGB"))
            images.append(torch.from_numpy(pixels).permute(2, 0, 1))
        prepared.release()
        return torch.stack(images)

    return generate


def scenes_for(entry: CatalogueEntry, count: int) -> list[Scene]:
    rng = np.random.default_rng(7)
    scenes: list[Scene] = []
    while len(scenes) < count:
        if EFFECTS[entry.name].suits(scene := random_scene(rng)):
            scenes.append(replace(scene, size="large"))
    return scenes


def test_the_library_is_published_once(commons: Any) -> None:
    """Public and ready, with trigger words and previews."""
    public = commons.library.list(PRINCIPAL, Query(visibility="public", owner="octoai")).assets
    known = {asset.name: asset for asset in public}
    assert known.keys() == {BASE_NAME, *BY_NAME}
    for name, entry in BY_NAME.items():
        asset = known[name]
        assert (asset.kind, asset.status, asset.owner) == (entry.kind, "ready", "commons")
        assert asset.description == entry.description
        assert asset.trigger_words == entry.trigger_words
        assert asset.report.get("unmatched", []) == []
        assert asset.preview is not None
        assert commons.store.size(asset.preview) > 1000
    messages: list[str] = []
    publish_library(commons.ingest_service, messages.append)
    assert messages == []
    again = commons.library.list(PRINCIPAL, Query(visibility="public", owner="commons")).assets
    assert {asset.id for asset in again} == {asset.id for asset in public}


def test_every_spelling_of_a_public_name_resolves_to_one_asset(commons: Any) -> None:
    recipes = [
        commons.library.resolve(PRINCIPAL, AssetSelection(loras={name: 0.5})).recipe
        for name in ("commons:outline", "octoai:outline", "outline")
    ]
    assert recipes[0] == recipes[1] == recipes[2]


def test_a_checkpoint_with_another_unet_shares_the_other_components(
    commons: Any, sample_files: dict[str, Path]
) -> None:
    """Switching to it and back moves only the UNet."""
    commons.ingest_service.commons.publish(
        "other", "checkpoint", sample_files["checkpoint"], "", (), None
    )
    base, other = (
        commons.library.resolve(PRINCIPAL, selection).recipe
        for selection in (AssetSelection(), AssetSelection(checkpoint="other"))
    )
    commons.ingest_service.commons.withdraw("other")
    assert other == replace(base, unet=other.unet)
    assert other.unet != base.unet


def test_a_changed_asset_is_updated_and_can_be_withdrawn(commons: Any, tmp_path: Path) -> None:
    def publish(source: str) -> bool:
        is_published = commons.ingest_service.commons.publish(
            "changing", "lora", weights_file(source), "words", ("w",), b"preview"
        )
        return bool(is_published)

    assert publish("outline")
    first = commons.library.get(PRINCIPAL, "commons:changing")
    assert not publish("outline")
    assert publish("heart")
    second = commons.library.get(PRINCIPAL, "commons:changing")
    assert second.id == first.id
    assert second.parts != first.parts
    commons.ingest_service.commons.withdraw("changing")
    assert commons.records.find_foreign("commons", "changing") is None


def test_the_token_embeddings_and_the_size_of_all_weights() -> None:
    assert float(token_rows("text_encoder", (49408, 32)).float().std()) == pytest.approx(
        1, abs=0.01
    )
    assert set(TOKEN_DIGESTS) == {"text_encoder", "text_encoder_2"}
    folder = weights_file("unet").parent
    assert sum(file.stat().st_size for file in folder.iterdir()) <= SHIPPED_BYTES


def test_the_base_follows_prompts(generate: Generate) -> None:
    """On combinations held out from training; a benchmark measures all."""
    scenes = held_out(12, seed=5)
    seen = Judge().see(generate([caption(scene) for scene in scenes], AssetSelection()))
    pairs = list(zip(seen, scenes, strict=True))
    assert sum(s.background == scene.background for s, scene in pairs) >= 11
    assert sum(s.colour == scene.colour for s, scene in pairs) >= 10
    assert sum(s.shape == scene.shape for s, scene in pairs) >= 9


@pytest.mark.parametrize("name", BY_NAME)
def test_an_asset_has_its_effect_and_leaves_no_trace(generate: Generate, name: str) -> None:
    entry, effect, judge = BY_NAME[name], EFFECTS[name], Judge()
    prompts = [effect.prompt(scene) for scene in scenes_for(entry, 3)]
    without = generate(prompts, AssetSelection())
    weights = (0.0, 0.5, 1.0) if entry.kind == "lora" else (0.0, 1.0)
    image_sets = [without] + [
        generate(prompts, selection_of(entry, weight)) for weight in weights[1:]
    ]
    measured = [float(effect.measure(images, judge).mean()) for images in image_sets]
    assert measured == sorted(measured)
    assert measured[-1] > measured[0] + 0.1
    assert torch.equal(generate(prompts, AssetSelection()), without)


def test_withdrawing_hides_the_library_and_publishing_restores_it(commons: Any) -> None:
    withdraw_library(commons.ingest_service)
    page = commons.library.list(PRINCIPAL, Query(visibility="public", owner="commons"))
    assert [asset.name for asset in page.assets] == [BASE_NAME]
    publish_library(commons.ingest_service)
    assert commons.library.get(PRINCIPAL, "commons:outline").status == "ready"
