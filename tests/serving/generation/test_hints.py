"""Hints fill what a request leaves out, in order, and make no request dearer for others' sake."""

from __future__ import annotations

from typing import Any

import pytest

from assets.asset import Asset, AssetKind
from assets.hints import Hints
from assets.ingest.few_steps import guess
from assets.report import Report
from serving.generation.contract import AppliedHint, GenerationParams, GenerationRequest
from serving.generation.hints import Advice, Hinted, defaulted, with_hints
from serving.generation.sizes import ImageSizes

SIZES = ImageSizes(1024)


def hinted(*advice: Advice, given: tuple[str, ...] = (), **params: Any) -> Hinted:
    request = GenerationRequest(
        params=GenerationParams(prompt="a star", **params), seeds=(1,), defaulted=defaulted(given)
    )
    return with_hints(request, advice, SIZES)


def test_the_first_asset_with_advice_wins_field_by_field() -> None:
    first = Advice("lora", Hints(sampler="LCM", steps=8))
    second = Advice("base", Hints(sampler="DDIM", schedule="trailing", cfg_scale=5.0, clip_skip=3))
    found = hinted(first, second)
    params = found.request.params
    assert (params.sampler, params.schedule, params.steps) == ("LCM", None, 8)
    assert (params.cfg_scale, params.clip_skip) == (5.0, 3)
    assert found.applied == (
        AppliedHint("sampler", "LCM", "lora"), AppliedHint("steps", 8, "lora"),
        AppliedHint("cfg_scale", 5.0, "base"), AppliedHint("clip_skip", 3, "base"),
    )  # fmt: skip
    explicit = hinted(first, second, given=("steps", "sampler"), steps=20).request.params
    assert (explicit.steps, explicit.sampler, explicit.cfg_scale) == (20, "DDIM", 5.0)
    silent = GenerationRequest(params=GenerationParams(prompt="a"), seeds=(1,))
    assert with_hints(silent, [first], SIZES) == Hinted(silent)


@pytest.mark.parametrize(
    ("hints", "told"),
    [
        (Hints(sampler="NEWEST"), "unknown sampler"),
        (Hints(schedule="newest"), "unknown schedule"),
        (Hints(sampler="LCM", schedule="karras"), "evenly in time"),
        (Hints(width=4096, height=4096), "more than"),
        (Hints(width=1000, height=1001), "multiple of 8"),
        (Hints(prompt="<lora:x:1> {prompt}"), "names other assets"),
        (Hints(negative_prompt="embedding:x"), "names other assets"),
        (Hints(prompt="{prompt} [a|b]"), "is read as text"),
    ],
)
def test_what_cannot_be_used_is_left_out_with_a_warning(hints: Hints, told: str) -> None:
    found = hinted(Advice("odd", hints))
    assert found.applied == ()
    assert found.request.params.sampler == "DDIM"
    (warning,) = found.warnings
    assert "'odd'" in warning
    assert told in warning


def test_another_tenants_asset_makes_no_request_dearer() -> None:
    dear = Hints(sampler="HEUN", steps=200, width=1344, height=1344)
    found = hinted(Advice("other:greedy", dear, is_foreign=True))
    assert found.applied == ()
    assert len(found.warnings) == 3
    cheap = hinted(Advice("other:fast", Hints(sampler="LCM", steps=4), is_foreign=True))
    assert cheap.request.params.steps == 4
    own = hinted(Advice("mine", dear))
    assert own.request.params.steps == 200


def test_templates() -> None:
    pony = Advice("pony", Hints(prompt="score_9, {prompt}", negative_prompt="score_4"))
    styles = hinted(pony).request.params.styles
    assert [(style.name, style.prompt) for style in styles] == [("pony", "score_9, {prompt}")]
    assert styles[0].negative_prompt == "score_4"
    styles = hinted(pony, negative_prompt="bad").request.params.styles
    assert styles[0].negative_prompt == ""
    request = GenerationRequest(
        params=GenerationParams(prompt="Score_9, a star", negative_prompt=""),
        seeds=(1,), defaulted=("prompt",),
    )  # fmt: skip
    assert with_hints(request, [pony], SIZES).request == request


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("sdxl_lightning_4step_lora", "lora", ("K_EULER", "trailing", 4, 1.0)),
        ("SDXL-Lightning-8steps", "checkpoint", ("K_EULER", "trailing", 8, 1.0)),
        (
            "juggernautXL_v9Rdphoto2Lightning",
            "checkpoint",
            ("K_EULER", "trailing", 4, 1.0),
        ),
        (
            "dreamshaperXL_lightningDPMSDE",
            "checkpoint",
            ("K_EULER", "trailing", 4, 1.0),
        ),
        ("juggernaut-xl-lightning", "checkpoint", ("K_EULER", "trailing", 4, 1.0)),
        ("Hyper-SDXL-8steps-lora", "lora", ("DDIM", "trailing", 8, 1.0)),
        ("Hyper-SDXL-8steps-CFG-lora", "lora", ("DDIM", "trailing", 8, 5.0)),
        ("lcm-lora-sdxl", "lora", ("LCM", None, 8, 1.0)),
        ("dmd2_sdxl_4step_lora_fp16", "lora", ("LCM", "trailing", 4, 1.0)),
        ("sd_xl_turbo_1.0", "checkpoint", ("K_EULER_ANCESTRAL", "trailing", 4, 1.0)),
        ("lightning-bolts", "lora", None),
        ("turbo-car", "lora", None),
        ("hyperrealism", "lora", None),
        ("hyperrealism-4steps", "lora", None),
        ("watercolour", "lora", None),
    ],
)
def test_few_step_models_are_recognised(
    name: str, kind: AssetKind, expected: tuple[str, str | None, int, float] | None
) -> None:
    asset = Asset("asset_1", "t", "t", name, kind, 0.0)
    found = guess(asset, Report())
    hints = Hints.from_json(found.get("hints"))
    told = (hints.sampler, hints.schedule, hints.steps, hints.cfg_scale)
    assert told == (expected or (None, None, None, None))
    assert ("hints_evidence" in found) == (expected is not None)


def test_metadata_tells_a_few_step_model() -> None:
    asset = Asset("asset_1", "t", "t", "mine", "lora", 0.0)
    found = guess(asset, Report(training={"modelspec.title": "SDXL Lightning 2-step"}))
    assert found["hints"]["steps"] == 2
    assert "modelspec.title" in found["hints_evidence"]


def test_a_schedule_that_the_checkpoint_cannot_use_is_left_out() -> None:
    request = GenerationRequest(
        params=GenerationParams(prompt="a"), seeds=(1,), defaulted=defaulted(())
    )
    late = Advice("late", Hints(schedule="leading"))
    found = with_hints(request, [late], SIZES, "v_prediction_zero_snr")
    assert found.request == request
    assert "zero terminal SNR" in found.warnings[0]
    assert with_hints(request, [late], SIZES).request.params.schedule == "leading"
