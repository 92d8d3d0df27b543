"""What the platform knows of each kind of asset, as one value each.

A new kind is an entry here, one in the converters (assets/ingest/convert.py), what recognises its
files (assets/formats/identify.py) and what the engine does with its blobs. A test holds that all
registries know the same kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from assets.asset import AssetKind
from assets.content import MODEL_COMPONENTS, Blob, Component
from assets.recipe import InversionUse, LoraUse, Recipe
from assets.selection import AssetSelection

Parts = Mapping[Component, Blob]


@dataclass(frozen=True, slots=True)
class KindTraits:
    """One kind of asset.

    ``select(reference, weight)`` names one asset in a request; ``place(recipe, parts, word)`` puts
    its blobs into a recipe, with ``word`` as trigger word where one is needed.
    """

    select: Callable[[str, float], AssetSelection]
    place: Callable[[Recipe, Parts, str], Recipe]
    #: What its coverage counts, and the total's name in the report.
    counted: str = "tensors"
    total: Literal["tensors_for_the_model", "modules"] = "tensors_for_the_model"
    has_trigger_words: bool = False
    needs_trigger_word: bool = False
    #: Its UNet predicts noise or velocity, which its owner may declare.
    has_prediction_type: bool = False
    #: Its owner may name the checkpoint that it was trained on.
    names_checkpoint: bool = False
    #: PEFT's ``adapter_config.json`` belongs to it.
    has_adapter_config: bool = False
    #: Its bytes are uploaded; otherwise its hints are all of it.
    has_file: bool = True


def _model_parts(recipe: Recipe, parts: Parts, _word: str) -> Recipe:
    changed = {component: parts[component] for component in MODEL_COMPONENTS if component in parts}
    return replace(recipe, **changed)  # type: ignore[arg-type]


KINDS: Mapping[AssetKind, KindTraits] = {
    "checkpoint": KindTraits(
        lambda reference, _: AssetSelection(checkpoint=reference),
        _model_parts,
        has_prediction_type=True,
    ),
    "lora": KindTraits(
        lambda reference, weight: AssetSelection(loras={reference: weight}),
        lambda recipe, parts, _: replace(recipe, loras=(LoraUse(parts["lora"], 1.0),)),
        counted="modules",
        total="modules",
        has_trigger_words=True,
        names_checkpoint=True,
        has_adapter_config=True,
    ),
    "textual_inversion": KindTraits(
        lambda reference, _: AssetSelection(inversions={reference: ""}),
        lambda recipe, parts, word: replace(
            recipe, inversions=(InversionUse(parts["textual_inversion"], word),)
        ),
        has_trigger_words=True,
        needs_trigger_word=True,
    ),
    "vae": KindTraits(lambda reference, _: AssetSelection(vae=reference), _model_parts),
    "style": KindTraits(
        lambda reference, _: AssetSelection(styles=(reference,)),
        lambda recipe, parts, _: recipe,
        has_file=False,
    ),
}


def kinds_with(has: Callable[[KindTraits], bool]) -> tuple[AssetKind, ...]:
    return tuple(kind for kind, traits in KINDS.items() if has(traits))
