"""The engine: isolation, the plan, and stock diffusers as the oracle."""

from __future__ import annotations

import io
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from assets.prediction import Prediction, key_suffix
from assets.recipe import InversionUse, LoraUse, Recipe
from assets.storage.object_paths import blob_key
from serving.engine.weight_update import TargetWeights, WeightUpdate, plan_update
from serving.errors import Cancelled
from serving.generation.contract import GenerationTask
from tests.generation import image_of

#: Not one token of the vocabulary, so that diffusers takes it as a new one.
WORD = "qzebra"


def request(recipe: Recipe, **changes: Any) -> GenerationTask:
    first = GenerationTask(
        "r", recipe, "a small red star", 128, 128, (7,), steps=4, cfg_scale=5.0, encoding="png"
    )
    return replace(first, **changes)


def generate(engine: Any, recipe: Recipe, **changes: Any) -> bytes:
    return image_of(engine, request(recipe, **changes))


def pixels(image: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image))).astype(np.int16)


@pytest.fixture(scope="module")
def engine(bench: Any) -> Any:
    return bench.engine()


@pytest.fixture(scope="module")
def recipes(engine: Any, samples: dict[str, Any]) -> dict[str, Recipe]:
    base = engine.base

    def loras(**weights: float) -> tuple[LoraUse, ...]:
        return tuple(LoraUse(samples[n].parts["lora"], w) for n, w in weights.items())

    inversion = InversionUse(samples["inversion"].parts["textual_inversion"], WORD)
    parts = samples["checkpoint"].parts
    other = Recipe(parts["unet"], parts["text_encoder"], parts["text_encoder_2"], parts["vae"])
    return {
        "base": base,
        "lora": replace(base, loras=loras(lora_all=1.0)),
        "weaker": replace(base, loras=loras(lora_all=0.4)),
        "negative": replace(base, loras=loras(lora_all=-0.7)),
        "cross": replace(base, loras=loras(lora_cross=1.0)),
        "three": replace(base, loras=loras(lora_all=0.5, lora_cross=1.0, lora_alpha=0.8)),
        "inversion": replace(base, inversions=(inversion,)),
        "checkpoint": other,
        "everything": replace(
            other, loras=loras(lora_all=0.9, lora_alpha=0.3), inversions=(inversion,)
        ),
    }


def test_every_recipe_draws_something_of_its_own(engine: Any, recipes: dict[str, Recipe]) -> None:
    images = {n: generate(engine, r, prompt="a qzebra star") for n, r in recipes.items()}
    assert len(set(images.values())) == len(images)


def test_200_random_recipes_leave_no_trace(
    bench: Any, engine: Any, recipes: dict[str, Recipe]
) -> None:
    """The base digest and picture are those of the start, and every recipe's digest is the
    one that a freshly built engine has."""
    before = generate(engine, recipes["base"])
    digest = engine.digest()
    fresh: dict[str, str] = {}
    for name, recipe in recipes.items():
        new = bench.engine()
        with_new = new.prepare(recipe)
        new.switch_to(with_new)
        fresh[name] = new.digest()
        with_new.release()
    dice = random.Random(5)
    for _ in range(200):
        name = dice.choice(list(recipes))
        prepared = engine.prepare(recipes[name])
        engine.switch_to(prepared)
        prepared.release()
        assert engine.digest() == fresh[name], name
    assert generate(engine, recipes["base"]) == before
    assert engine.digest() == digest
    engine.tier.check_integrity()


def test_a_swap_that_fails_half_way_is_repaired(engine: Any, recipes: dict[str, Recipe]) -> None:
    before = generate(engine, recipes["base"])
    prepared = engine.prepare(recipes["three"])
    broken = dict(prepared.leases)
    key = recipes["three"].loras[-1].blob.key
    real = prepared.leases[key].value

    groups = dict(real.groups)
    last = sorted(groups)[-1]
    factors = groups[last][0]
    refused = {**factors.pieces, "up": factors.pieces["up"][:, :1]}  # by the product
    groups[last] = (replace(factors, pieces=refused),)
    prepared.leases[key].value = replace(real, groups=groups)
    with pytest.raises(RuntimeError):
        engine.switch_to(prepared)
    prepared.leases[key].value = real
    prepared.leases = broken
    prepared.release()
    assert generate(engine, recipes["base"]) == before


def rows_of(steps: WeightUpdate) -> dict[Any, Any]:
    """Who moves which of the rows to be written."""
    return {
        (component, shape, row): movers
        for (component, shape, movers), rows in steps.touch.items()
        for row in rows
    }


def test_plan_is_the_least_writing() -> None:
    a, b = ("unet", (2, 2), 0), ("unet", (2, 2), 1)
    te = ("text_encoder", (2, 2), 0)
    keys = {"unet": "u", "text_encoder": "t"}
    m1 = (("l", 1.0, 0),)
    now = TargetWeights(keys, {a: m1, b: m1, te: m1})  # type: ignore[arg-type,dict-item]
    steps = plan_update(now, TargetWeights(keys, {a: m1, b: m1}))  # type: ignore[arg-type,dict-item]
    assert (steps.copy, set(steps.restore), rows_of(steps), steps.kept) == (
        frozenset(),
        {te},
        {},
        2,
    )
    steps = plan_update(now, TargetWeights({**keys, "unet": "v"}, {a: m1}))  # type: ignore[arg-type,dict-item]
    assert (set(steps.copy), set(steps.restore), rows_of(steps)) == ({"unet"}, {te}, {a: m1})
    assert plan_update(None, now).copy == {"unet", "text_encoder"}
    same = plan_update(now, now)
    assert (same.copy, same.restore, dict(same.touch), same.kept) == (
        frozenset(),
        frozenset(),
        {},
        3,
    )


def test_a_group_of_rows_is_written_whole() -> None:
    """Whatever was written before: the rows of one product depend on the wanted recipe alone."""
    rows = [("unet", (2, 2), index) for index in range(4)]
    keys, movers, other = {"unet": "u"}, (("l", 1.0, 0),), (("k", 1.0, 0),)
    wanted = TargetWeights(keys, dict.fromkeys(rows, movers))  # type: ignore[arg-type]
    for known in range(4):  # so many rows are right already
        held = {row: movers if index < known else other for index, row in enumerate(rows)}
        steps = plan_update(TargetWeights(keys, held), wanted)  # type: ignore[arg-type]
        assert rows_of(steps) == dict.fromkeys(rows, movers)
        assert steps.kept == 0
    # And if the rows were written in a larger group, whose product was another one.
    larger = {**wanted.moved, ("unet", (2, 2), 4): movers}
    steps = plan_update(TargetWeights(keys, larger), wanted)  # type: ignore[arg-type]
    assert rows_of(steps) == dict.fromkeys(rows, movers)


def test_bits_do_not_depend_on_history(
    bench: Any, recipes: dict[str, Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a batched product whose last bits depend on the number of matrices, as cuBLAS' do."""
    real = torch.baddbmm

    def by_count(base: Any, up: Any, down: Any, *, out: Any) -> Any:
        return real(base, up, down, out=out).mul_(1 + len(up) * 2**-22)

    monkeypatch.setattr(torch, "baddbmm", by_count)
    both = (*recipes["lora"].loras, *recipes["cross"].loras)
    # From the first to the second, part of a group keeps its movers.
    histories = [replace(recipes["base"], loras=both), *(recipes[n] for n in ("lora", "three"))]
    expected: dict[Recipe, str] = {}
    for recipe in histories:
        fresh = bench.engine()
        with fresh.prepare(recipe) as prepared:
            fresh.switch_to(prepared)
        expected[recipe] = fresh.digest()
    engine = bench.engine()
    dice = random.Random(4)
    for recipe in [*histories, *dice.choices(histories, k=30)]:
        with engine.prepare(recipe) as prepared:
            engine.switch_to(prepared)
        assert engine.digest() == expected[recipe]


def test_a_weight_change_moves_no_bytes(engine: Any, recipes: dict[str, Recipe]) -> None:
    engine.prepare(recipes["lora"]).release()
    prepared = engine.prepare(recipes["weaker"])
    assert {found.tier for found in prepared.found} == {"gpu"}
    assert sum(found.bytes_moved for found in prepared.found) == 0
    prepared.release()


def test_cancelled_within_one_step(engine: Any, recipes: dict[str, Recipe]) -> None:
    prepared = engine.prepare(recipes["base"])
    asked: list[int] = []

    def at_third() -> bool:
        asked.append(1)
        return len(asked) == 3

    with pytest.raises(Cancelled):
        engine.generate(prepared, request(recipes["base"], steps=10), at_third)
    assert len(asked) == 3
    prepared.release()


def test_seeds_and_batches(engine: Any, recipes: dict[str, Recipe]) -> None:
    prepared = engine.prepare(recipes["base"])
    many = engine.generate(prepared, request(recipes["base"], seeds=(7, 8, 7, 9, 7))).images
    prepared.release()
    assert len(many) == 5
    assert many[0] == many[2]
    assert len(set(many)) >= 3


def test_the_receipt_warns_of_what_did_nothing(engine: Any, recipes: dict[str, Recipe]) -> None:
    prepared = engine.prepare(recipes["inversion"])
    result = engine.generate(prepared, request(recipes["inversion"]))
    assert any(WORD in warning for warning in result.warnings)
    long = engine.generate(
        prepared, request(recipes["inversion"], prompt=f"{WORD} " + "star " * 100)
    )
    assert any("too long" in warning for warning in long.warnings)
    prepared.release()


@pytest.fixture(scope="module")
def pipeline(miniature: Path) -> Any:
    """Stock diffusers over the miniature's published files."""
    import warnings

    from diffusers import StableDiffusionXLPipeline

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = StableDiffusionXLPipeline.from_pretrained(miniature, local_files_only=True)
    pipe.to(torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def stock(pipeline: Any, prompt: str = "a small red star", **options: Any) -> np.ndarray:
    return np.asarray(run_stock(pipeline, prompt, **options)[0]).astype(np.int16)


def stock_latents(pipeline: Any, **options: Any) -> torch.Tensor:
    latents: torch.Tensor = run_stock(pipeline, output_type="latent", **options)
    return latents


def run_stock(pipeline: Any, prompt: str = "a small red star", **options: Any) -> Any:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = pipeline(
            prompt,
            num_inference_steps=4,
            guidance_scale=5.0,
            width=128,
            height=128,
            generator=torch.Generator().manual_seed(7),
            **options,
        )
    return result.images


SCHEDULERS = [
    ("DDIM", "DDIMScheduler"),
    ("K_EULER", "EulerDiscreteScheduler"),
    ("K_EULER_ANCESTRAL", "EulerAncestralDiscreteScheduler"),
    ("DPM_PLUS_PLUS_2M_KARRAS", "DPMSolverMultistepScheduler"),
]


@pytest.mark.parametrize(("sampler", "scheduler"), SCHEDULERS)
def test_base_picture_is_stock_diffusers(
    engine: Any, recipes: dict[str, Recipe], pipeline: Any, sampler: str, scheduler: str
) -> None:
    """The same modules, the same weights, the same noise: not one level of difference."""
    import diffusers

    options = {"use_karras_sigmas": True} if "KARRAS" in sampler else {}
    before = pipeline.scheduler
    pipeline.scheduler = getattr(diffusers, scheduler).from_config(before.config, **options)
    try:
        theirs = stock(pipeline)
    finally:
        pipeline.scheduler = before
    ours = pixels(generate(engine, recipes["base"], sampler=sampler))
    assert np.abs(ours - theirs).max() == 0


@pytest.mark.parametrize("prediction", ["v_prediction", "v_prediction_zero_snr"])
@pytest.mark.parametrize(("sampler", "scheduler"), SCHEDULERS)
def test_velocity_is_read_as_stock_diffusers_reads_it(
    engine: Any,
    bench: Any,
    recipes: dict[str, Recipe],
    pipeline: Any,
    sampler: str,
    scheduler: str,
    prediction: Prediction,
) -> None:
    """The same weights under the other prediction's key: latents equal the pipeline's, whose
    scheduler is configured so and, where the schedule ends in noise alone, rescales guidance."""
    import diffusers

    unet = recipes["base"].unet
    same = replace(unet, key=unet.key + key_suffix(prediction))
    bench.store.copy(blob_key(unet), blob_key(same))
    recipe = replace(recipes["base"], unet=same)
    options: dict[str, Any] = {"prediction_type": "v_prediction"}
    options |= {"use_karras_sigmas": True} if "KARRAS" in sampler else {}
    rescale = 0.0
    if prediction == "v_prediction_zero_snr":
        options |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        rescale = 0.7
    before = pipeline.scheduler
    pipeline.scheduler = getattr(diffusers, scheduler).from_config(before.config, **options)
    try:
        theirs = stock_latents(pipeline, guidance_rescale=rescale)
    finally:
        pipeline.scheduler = before
    prepared = engine.prepare(recipe)
    engine.switch_to(prepared)
    asked = request(recipe, sampler=sampler)
    positive, negative, _ = engine.prompts.encode(prepared, asked)
    with torch.inference_mode():
        *_, ours = engine._denoiser.steps(asked, asked.seeds, positive, negative, lambda: False)
    prepared.release()
    plain = pixels(generate(engine, recipes["base"], sampler=sampler))
    assert not np.array_equal(pixels(generate(engine, recipe, sampler=sampler)), plain)
    assert float((ours - theirs).abs().max() / theirs.abs().max()) <= 1e-5


def test_negative_prompt_and_second_prompts_are_stock_diffusers(
    engine: Any, recipes: dict[str, Recipe], pipeline: Any
) -> None:
    extra = {"prompt_2": "blue", "negative_prompt": "rings", "negative_prompt_2": "grey"}
    ours = pixels(generate(engine, recipes["base"], **extra))
    assert np.abs(ours - stock(pipeline, **extra)).max() == 0


@pytest.mark.parametrize(
    ("recipe", "adapters"),
    [
        ("lora", {"lora_all": 1.0}),
        ("weaker", {"lora_all": 0.4}),
        ("three", {"lora_all": 0.5, "lora_cross": 1.0, "lora_alpha": 0.8}),
    ],
)
def test_lora_picture_is_stock_diffusers(
    engine: Any,
    recipes: dict[str, Recipe],
    pipeline: Any,
    sample_files: dict[str, Path],
    recipe: str,
    adapters: dict[str, float],
) -> None:
    """Within 2 of 255 levels: diffusers adds the LoRA's output to the layer's, we add its
    product to the weight, so float32 sums have other orders."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in adapters:
            pipeline.load_lora_weights(
                sample_files[name].parent, weight_name=sample_files[name].name, adapter_name=name
            )
        pipeline.set_adapters(list(adapters), list(adapters.values()))
        try:
            theirs = stock(pipeline)
        finally:
            pipeline.unload_lora_weights()
    ours = pixels(generate(engine, recipes[recipe]))
    base = pixels(generate(engine, recipes["base"]))
    assert np.abs(ours - theirs).max() <= 2
    assert np.abs(ours - base).mean() > 2


def test_inversion_is_stock_diffusers(
    engine: Any,
    recipes: dict[str, Recipe],
    miniature: Path,
    sample_files: dict[str, Path],
    pipeline: Any,
) -> None:
    """Diffusers adds tokens to the tokenizer and rows to the table; we do neither."""
    import copy
    import warnings

    from safetensors.torch import load_file

    vectors = load_file(sample_files["inversion"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = copy.deepcopy(pipeline)
        pipe.load_textual_inversion(
            vectors["clip_l"].float(),
            WORD,
            text_encoder=pipe.text_encoder,
            tokenizer=pipe.tokenizer,
        )
        pipe.load_textual_inversion(
            vectors["clip_g"].float(),
            WORD,
            text_encoder=pipe.text_encoder_2,
            tokenizer=pipe.tokenizer_2,
        )
        # Their new ids exceed the end token's, whose place they find as the highest id:
        # the pooled vector would be taken from the inversion. Ours is taken from the end.
        theirs_context = pipe.encode_prompt("a qzebra star", do_classifier_free_guidance=False)[0]
    prepared = engine.prepare(recipes["inversion"])
    engine.switch_to(prepared)
    from serving.engine.values import Inversion

    use = recipes["inversion"].inversions[0]
    value = prepared.inversion(use.blob)
    assert isinstance(value, Inversion)
    texts = {"text_encoder": "a qzebra star", "text_encoder_2": "a qzebra star"}
    ours = engine.prompts.text.encode(texts, {WORD: value})
    prepared.release()
    assert ours.seen == {WORD}
    assert torch.allclose(ours.embeddings.context, theirs_context, atol=1e-5)
