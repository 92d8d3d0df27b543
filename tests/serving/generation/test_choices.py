"""Random choices by seed."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assets.selection import AssetSelection
from serving.errors import InvalidRequest
from serving.generation.choices import of_image
from serving.generation.contract import GenerationParams, GenerationRequest, Wildcard
from serving.generation.resolution import selection_of

COLORS = ("red", "green", "blue")


def chosen(prompt: str, seed: int, **wildcards: tuple[str, ...]) -> str:
    named = tuple(Wildcard(name, texts) for name, texts in wildcards.items())
    params = GenerationParams(prompt=prompt, dynamic_prompts=True, wildcards=named)
    return of_image(params, seed).prompt


def test_a_seed_chooses_the_same_and_seeds_choose_evenly() -> None:
    prompt = "a {red|green|blue} {star|{big|small} moon}"
    found = Counter(chosen(prompt, seed) for seed in range(900))
    assert len(found) == 9
    assert chosen(prompt, 5) == chosen(prompt, 5)
    stars = [count for text, count in found.items() if "star" in text]
    assert sum(stars) / 900 == pytest.approx(0.5, abs=0.06)
    for color in COLORS:
        of_color = sum(count for text, count in found.items() if color in text)
        assert of_color / 900 == pytest.approx(1 / 3, abs=0.06)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a {star}", "a {star}"), ("{|}", ""), (r"\{a|b\}", r"\{a|b\}"), ("{a|b", "{a|b"),
        ("a|b}", "a|b}"), ("__no-such__", "__no-such__"), ("({x|x}:1.2)", "(x:1.2)"),
        ("__one__ star", "red star"), ("{__one__|__one__}", "red"), ("__nested__", "red"),
    ],
)  # fmt: skip
def test_examples(prompt: str, expected: str) -> None:
    assert chosen(prompt, 1, one=("red",), nested=("{__one__|__one__}",)) == expected


def test_second_prompts_take_the_choices_of_the_first() -> None:
    params = GenerationParams(
        prompt="{a|b|c}", prompt_2="{a|b|c}", negative_prompt="{a|b|c}", dynamic_prompts=True
    )
    images = [of_image(params, seed) for seed in range(30)]
    assert all(image.prompt == image.prompt_2 for image in images)
    assert any(image.prompt != image.negative_prompt for image in images)
    assert of_image(params, 2**64 - 1).prompt in "abc"
    plain = GenerationParams(prompt="{a|b}")
    assert of_image(plain, 1) is plain


def test_what_cannot_end_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="deep"):
        chosen("__loop__", 1, loop=("__loop__",))
    chain = {f"w{index}": (f"__w{index + 1}__" * 60,) for index in range(9)}
    with pytest.raises(InvalidRequest, match="choices"):
        chosen("__w0__", 1, **chain, w9=("",))
    with pytest.raises(InvalidRequest, match="characters"):
        chosen("__long__" * 100, 1, long=("x" * 500,))


@pytest.mark.parametrize(
    "prompt", ["{" * 10_000, "{a" * 3_000, "{a|" * 3_000, "__long__" * 150, "}" * 9_000, "\\" * 999]
)
def test_hostile_prompts_are_fast(prompt: str) -> None:
    """Quadratic time would be minutes."""
    with suppress(InvalidRequest):
        chosen(prompt, 1, long=("{" * 500,))


def test_choices_do_not_change_the_assets() -> None:
    def selected(prompt: str) -> AssetSelection:
        wildcards = (Wildcard("w", ("one", "two")),)
        params = GenerationParams(prompt=prompt, dynamic_prompts=True, wildcards=wildcards)
        request = GenerationRequest(params=params, seeds=tuple(range(12)))
        return selection_of(request)[0]

    for prompt in ("{<lora:a:1>|b}", "<lora:__w__:1>", "<lora:{a|b}:1>", "<{lora|x}:n:1>"):
        with pytest.raises(InvalidRequest, match="outside"):
            selected(prompt)
    found = selected("{red|green} star <lora:x:1> {big|small}")
    assert found.loras == {"x": 1.0}


@given(st.text("{}|\\_ab", max_size=60), st.integers(0, 2**64 - 1))
def test_any_text_is_expanded(prompt: str, seed: int) -> None:
    chosen(prompt, seed, a=("b", "{a|b}"))


def test_images_of_one_request_have_their_own_prompts(bench: Any) -> None:
    from tests.support.generation import changed, image_of, task_of

    engine = bench.engine()
    task = task_of(
        "r", engine.base, "a {red|green} star", 64, 64, tuple(range(4)), steps=2, encoding="png",
        dynamic_prompts=True,
    )  # fmt: skip
    prepared = engine.prepare(task.recipe)
    images = engine.generate(prepared, task).images
    prepared.release()
    prompts = [of_image(task.params, seed).prompt for seed in task.seeds]
    assert len(set(prompts)) == 2
    for seed, prompt, image in zip(task.seeds, prompts, images, strict=True):
        alone = changed(task, prompt=prompt, dynamic_prompts=False, seeds=(seed,))
        assert image_of(engine, alone) == image
