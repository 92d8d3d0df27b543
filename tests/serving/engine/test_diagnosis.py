"""Who is blamed for an image that is not finite, and what finding it costs."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assets.content import Blob
from assets.recipe import InversionUse, LoraUse, Recipe
from serving.engine.diagnosis import blame

UNET, *OTHERS = (Blob(f"p{name}", name, 1) for name in ("unet", "one", "two", "vae"))
NAMES = [f"a{index}" for index in range(8)]


@dataclass
class Model:
    """Breaks at a step when all of ``guilty`` are in the recipe."""

    guilty: set[str]
    step: int
    steps: int = 0
    tried: list[frozenset[str]] = field(default_factory=list)

    def breaks_at(self, recipe: Recipe, within: int) -> int | None:
        there = {use.blob.sha256 for use in (*recipe.loras, *recipe.inversions)}
        self.tried.append(frozenset(there))
        is_broken = self.guilty <= there and self.step <= within
        self.steps += self.step if is_broken else within
        return self.step if is_broken else None


def recipe(loras: dict[str, float], inversions: tuple[str, ...] = ()) -> Recipe:
    uses = tuple(LoraUse(Blob(f"t{name}", name, 1), weight) for name, weight in loras.items())
    words = tuple(InversionUse(Blob(f"t{name}", name, 1), name) for name in inversions)
    return Recipe(UNET, *OTHERS, loras=uses, inversions=words)


@pytest.mark.parametrize("guilty", NAMES)
def test_one_of_many_that_breaks_early_is_named(guilty: str) -> None:
    model = Model({guilty}, step=1)
    found = blame(recipe(dict.fromkeys(NAMES, 1.0)), 40, model.breaks_at)
    assert found.blamed == (f"t{guilty}",)
    assert "at weight 1" in str(found)


def test_what_has_no_weight_is_not_suspected() -> None:
    model = Model({"a0"}, step=39)
    found = blame(recipe({**dict.fromkeys(NAMES, 0.0), "a0": 2.0}), 40, model.breaks_at)
    assert found.blamed == ("ta0",)
    assert model.tried == [frozenset()]
    nobody = Model(set(), step=39)
    assert "checkpoint" in str(blame(recipe(dict.fromkeys(NAMES, 0.0)), 40, nobody.breaks_at))
    assert nobody.steps == 0


def test_a_checkpoint_that_has_worked_is_not_tried() -> None:
    model = Model({"a0"}, step=39)
    found = blame(recipe({"a0": 2.0}), 40, model.breaks_at, is_proven=True)
    assert found.blamed == ("ta0",)
    assert model.steps == 0


def test_the_checkpoint_an_inversion_and_two_together() -> None:
    words = recipe({"a0": 1.0}, ("a1",))
    assert "the checkpoint" in str(blame(words, 4, Model(set(), step=2).breaks_at))
    assert "the inversion" in str(blame(words, 4, Model({"a1"}, step=1).breaks_at))
    together = blame(words, 4, Model({"a0", "a1"}, step=1).breaks_at)
    assert "together" in str(together)
    assert together.blamed == ("ta0", "ta1")


@given(st.integers(1, 60), st.data())
def test_it_costs_less_than_twice_what_failed_and_names_the_guilty(
    steps: int, data: st.DataObject
) -> None:
    guilty = data.generate(st.sets(st.sampled_from(NAMES), min_size=1))
    model = Model(guilty, step=data.generate(st.integers(1, steps)))
    found = blame(recipe(dict.fromkeys(NAMES, 1.0)), steps, model.breaks_at)
    assert model.steps <= max(1.75 * steps, 10)
    assert {f"t{name}" for name in guilty} & set(found.blamed)
