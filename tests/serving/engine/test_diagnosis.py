"""Finding the asset behind a non-finite image, and the steps it costs."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assets.content import Blob
from assets.recipe import InversionUse, LoraUse, Recipe
from serving.engine.diagnosis import blame

UNET, ONE, TWO, VAE = (Blob(f"p{name}", name, 1) for name in ("unet", "one", "two", "vae"))
NAMES = [f"a{index}" for index in range(8)]


@dataclass
class Model:
    """Fails at ``step`` with all of ``guilty``."""

    guilty: set[str]
    step: int
    steps: int = 0
    tried: list[frozenset[str]] = field(default_factory=list)

    def breaks_at(self, recipe: Recipe, within: int) -> int | None:
        uses: tuple[LoraUse | InversionUse, ...] = (*recipe.loras, *recipe.inversions)
        names = {use.blob.sha256 for use in uses}
        self.tried.append(frozenset(names))
        is_broken = self.guilty <= names and self.step <= within
        self.steps += self.step if is_broken else within
        return self.step if is_broken else None


def recipe(loras: dict[str, float], inversions: tuple[str, ...] = ()) -> Recipe:
    uses = tuple(LoraUse(Blob(f"t{name}", name, 1), weight) for name, weight in loras.items())
    words = tuple(InversionUse(Blob(f"t{name}", name, 1), name) for name in inversions)
    return Recipe(UNET, ONE, TWO, VAE, loras=uses, inversions=words)


@pytest.mark.parametrize("guilty", NAMES)
def test_one_culprit_of_many_is_named(guilty: str) -> None:
    model = Model({guilty}, step=1)
    error = blame(recipe(dict.fromkeys(NAMES, 1.0)), 40, model.breaks_at)
    assert error.blamed == (f"t{guilty}",)
    assert "at weight 1" in str(error)


def test_loras_of_weight_zero_are_not_suspects() -> None:
    model = Model({"a0"}, step=39)
    error = blame(recipe({**dict.fromkeys(NAMES, 0.0), "a0": 2.0}), 40, model.breaks_at)
    assert error.blamed == ("ta0",)
    assert model.tried == [frozenset()]
    no_culprit = Model(set(), step=39)
    assert "checkpoint" in str(blame(recipe(dict.fromkeys(NAMES, 0.0)), 40, no_culprit.breaks_at))
    assert no_culprit.steps == 0


def test_a_proven_checkpoint_is_not_tried() -> None:
    model = Model({"a0"}, step=39)
    error = blame(recipe({"a0": 2.0}), 40, model.breaks_at, is_proven=True)
    assert error.blamed == ("ta0",)
    assert model.steps == 0


def test_the_checkpoint_an_inversion_or_two_assets_together_are_named() -> None:
    words = recipe({"a0": 1.0}, ("a1",))
    assert "the checkpoint" in str(blame(words, 4, Model(set(), step=2).breaks_at))
    assert "the inversion" in str(blame(words, 4, Model({"a1"}, step=1).breaks_at))
    together = blame(words, 4, Model({"a0", "a1"}, step=1).breaks_at)
    assert "together" in str(together)
    assert together.blamed == ("ta0", "ta1")


@given(st.integers(1, 60), st.data())
def test_the_search_is_bounded_and_names_a_culprit(steps: int, data: st.DataObject) -> None:
    guilty = data.draw(st.sets(st.sampled_from(NAMES), min_size=1))
    model = Model(guilty, step=data.draw(st.integers(1, steps)))
    error = blame(recipe(dict.fromkeys(NAMES, 1.0)), steps, model.breaks_at)
    assert model.steps <= max(1.75 * steps, 10)
    assert {f"t{name}" for name in guilty} & set(error.blamed)
