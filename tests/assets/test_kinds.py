"""Every registry knows every kind of asset."""

from __future__ import annotations

import pytest

from assets.asset import ASSET_KINDS, AssetKind
from assets.content import Blob, Component
from assets.ingest.convert import CONVERTERS
from assets.kinds import KINDS, kinds_with
from assets.recipe import Recipe
from assets.selection import AssetSelection

UNET, TEXT, TEXT_2, VAE = (Blob(name, name, 1) for name in ("unet", "text", "text 2", "vae"))
BASE = Recipe(UNET, TEXT, TEXT_2, VAE)
OWN = Blob("own", "own", 1)
PARTS: dict[AssetKind, dict[Component, Blob]] = {
    "checkpoint": {"unet": OWN}, "lora": {"lora": OWN},
    "textual_inversion": {"textual_inversion": OWN}, "vae": {"vae": OWN}, "style": {},
}  # fmt: skip


def test_every_registry_knows_every_kind() -> None:
    assert set(KINDS) == set(PARTS) == set(ASSET_KINDS)
    assert set(CONVERTERS) == set(kinds_with(lambda traits: traits.has_file))


@pytest.mark.parametrize("kind", ASSET_KINDS)
def test_a_kind_is_selected_and_placed(kind: AssetKind) -> None:
    traits = KINDS[kind]
    assert traits.select("it", 0.5) != AssetSelection()
    recipe = traits.place(BASE, PARTS[kind], "word")
    assert (OWN in recipe.blobs()) == traits.has_file
    assert {use.token for use in recipe.inversions} <= {"word"}
    assert traits.has_trigger_words or not traits.needs_trigger_word


def test_what_kinds_have() -> None:
    assert kinds_with(lambda traits: traits.has_prediction_type) == ("checkpoint",)
    assert kinds_with(lambda traits: traits.has_adapter_config) == ("lora",)
