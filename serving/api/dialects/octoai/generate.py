"""Request and response bodies of OctoAI's image generation."""

from __future__ import annotations

import re
from typing import Annotated, Any

import msgspec
from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from assets.library.resolve import MAX_INVERSIONS, MAX_LORA_WEIGHT, MAX_LORAS
from assets.selection import AssetSelection
from serving.api.models.generation import Receipt
from serving.api.request_model import RequestModel
from serving.errors import InvalidRequest
from serving.generation.contract import (
    GenerationParams,
    GenerationRequest,
    ImageEncoding,
    Wildcard,
)
from serving.generation.hints import defaulted
from serving.generation.prompts import Syntax
from serving.generation.samplers import Sampler, Schedule, refusal
from serving.generation.seeds import MAX_SEED, fixed_seeds, json_seed
from serving.generation.service import Generation
from serving.generation.style_presets import presets
from serving.generation.styles import MAX_STYLES

Prompt = Annotated[str, Field(max_length=10_000)]
#: An id, or ``owner:name@version``.
Reference = Annotated[str, Field(max_length=256)]
Word = Annotated[str, Field(max_length=128)]
Choices = Annotated[
    list[Annotated[str, Field(max_length=500)]], Field(min_length=1, max_length=200)
]
Weight = Annotated[float, Field(ge=-MAX_LORA_WEIGHT, le=MAX_LORA_WEIGHT)]
Pixels = Annotated[int, Field(ge=1, le=16_384)]
MAX_IMAGES = 16


#: Without leading zeros, at most as long as the largest seed.
_DIGITS = re.compile("(0|[1-9][0-9]{0,18}|1[0-8][0-9]{18})")


def _seed(value: object) -> object:
    if not isinstance(value, str):
        return value
    if _DIGITS.fullmatch(value) is None:
        raise ValueError(f"a string of digits up to {MAX_SEED} is accepted")
    return int(value)


#: One of OctoAI's; checked with the others, for a short message.
StylePreset = Annotated[str, Field(max_length=64, json_schema_extra={"enum": list(presets())})]
#: Beyond 2**53 many clients need a string.
Seed = Annotated[
    int,
    BeforeValidator(_seed),
    Field(ge=0, le=MAX_SEED),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 0, "maximum": MAX_SEED},
                {"type": "string", "pattern": f"^{_DIGITS.pattern}$"},
            ]
        }
    ),
]

#: Unsupported, with the values that have no effect.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "init_image": (None,),
    "strength": (None, 0.8),
    "mask_image": (None,),
    "outpainting": (None, False),
    "inpaint_full_res": (None, False),
    "inpaint_full_res_padding": (None, 32),
    "use_refiner": (None, True, False),
    "high_noise_frac": (None, 0.8),
    "controlnet": (None,),
    "controlnet_image": (None,),
    "controlnet_conditioning_scale": (None, 1.0),
    "controlnet_early_stop": (None,),
    "controlnet_preprocess": (None, True, False),
    "transfer_images": (None,),
}
_IGNORED = ("force_asset_download", "force_asset_gpu_copy", "log_prompt")


class LoraWeights(RequestModel):
    """A LoRA's weights by component."""

    model_config = ConfigDict(extra="forbid")

    unet: Weight
    text_encoders: Weight


class GenerateRequest(RequestModel):
    """An image generation; nulls of older clients mean defaults."""

    model_config = ConfigDict(extra="forbid")

    prompt: Prompt
    prompt_2: Prompt | None = None
    negative_prompt: Prompt | None = None
    negative_prompt_2: Prompt | None = None
    checkpoint: Reference | None = None
    vae: Reference | None = None
    loras: dict[Reference, Weight | LoraWeights] = Field(default_factory=dict, max_length=MAX_LORAS)
    textual_inversions: dict[Reference, Word] = Field(
        default_factory=dict, max_length=MAX_INVERSIONS
    )
    sampler: Sampler = "DDIM"
    #: Extension: another schedule for the sampler; null is its own.
    schedule: Schedule | None = None
    style_preset: StylePreset | None = None
    #: Extension: built-in styles and own ones, applied in this order.
    styles: list[Reference] = Field(default_factory=list, max_length=MAX_STYLES)
    clip_skip: int | None = Field(default=None, ge=1, le=12)
    #: Extension: "plain" reads prompts without weights and other syntax.
    prompt_syntax: Syntax = "weighted"
    #: Extension: each image's seed chooses among ``{a|b}`` and ``__name__``, a list of wildcards.
    dynamic_prompts: bool = Field(default=False, strict=True)
    wildcards: dict[Word, Choices] = Field(default_factory=dict, max_length=32)
    #: Extension: let assets' hints fill what this request leaves out.
    asset_hints: bool = Field(default=True, strict=True)
    height: Pixels | None = None
    width: Pixels | None = None
    cfg_scale: float = Field(default=12.0, gt=0, le=50)
    steps: int = Field(default=30, gt=0, le=200)
    num_images: int = Field(default=1, ge=1, le=MAX_IMAGES)
    seed: Seed | Annotated[list[Seed | None], Field(max_length=MAX_IMAGES)] | None = None
    image_encoding: ImageEncoding = "jpeg"
    #: Judge the images, where the operator's policy does so on request. Older clients always do.
    enable_safety: bool = Field(default=False, strict=True)
    #: Extension: write the parameters into the images; null: as the organisation has set it.
    metadata: bool | None = Field(default=None, strict=True)
    #: Extension: higher goes first within the organisation.
    priority: int = Field(default=0, ge=-10, le=10)
    #: Extension: pool or kind of GPU; null is the tenant's default.
    gpu: str | None = Field(default=None, max_length=64)

    @model_validator(mode="before")
    @classmethod
    def _wire(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        fields = {}
        for name, field in value.items():
            if name in _UNSUPPORTED:
                if field not in _UNSUPPORTED[name]:
                    raise ValueError(f"{name} is not supported; leave it out")
            elif name not in _IGNORED and (field is not None or name == "prompt"):
                fields[name] = field
        return fields

    def _asset_selection(self) -> AssetSelection:
        weights, text_weights = {}, {}
        for name, weight in self.loras.items():
            if isinstance(weight, LoraWeights):
                weights[name], text_weights[name] = weight.unet, weight.text_encoders
            else:
                weights[name] = weight
        return AssetSelection(
            self.checkpoint,
            self.vae,
            weights,
            self.textual_inversions,
            text_weights,
            (*([self.style_preset] if self.style_preset else []), *self.styles),
        )

    def to_request(self) -> GenerationRequest:
        """Return the internal request.

        Raises:
            InvalidRequest: more seeds than images; a schedule that the sampler cannot use.
        """
        if reason := refusal(self.sampler, self.schedule):
            raise InvalidRequest("schedule", reason)
        if self.style_preset is not None and self.style_preset not in presets():
            raise InvalidRequest("style_preset", "unknown; GET /v1/styles lists the styles")
        if isinstance(self.seed, list) and len(self.seed) > self.num_images:
            raise InvalidRequest(
                "seed",
                f"{len(self.seed)} seeds for {self.num_images} images; give at most one each",
            )
        return GenerationRequest(
            params=GenerationParams(
                prompt=self.prompt,
                prompt_2=self.prompt_2,
                negative_prompt=self.negative_prompt,
                negative_prompt_2=self.negative_prompt_2,
                sampler=self.sampler,
                schedule=self.schedule,
                steps=self.steps,
                cfg_scale=self.cfg_scale,
                syntax=self.prompt_syntax,
                clip_skip=self.clip_skip,
                dynamic_prompts=self.dynamic_prompts,
                wildcards=tuple(
                    Wildcard(name, tuple(texts)) for name, texts in self.wildcards.items()
                ),
                encoding=self.image_encoding,
            ),
            seeds=fixed_seeds(self.seed, self.num_images),
            selection=self._asset_selection(),
            width=self.width,
            height=self.height,
            defaulted=defaulted(self.model_fields_set) if self.asset_hints else (),
            metadata=self.metadata,
            enable_safety=self.enable_safety,
            priority=self.priority,
            gpu=self.gpu or "",
        )


def answer(generated: Generation) -> bytes:
    """Return OctoAI's response as JSON, with ``request_id``, ``receipt`` and ``timings_ms``."""
    result = generated.result
    timings = result.timings
    body = {
        "images": [
            {
                "image_b64": None if result.is_removed(index) else image,
                "removed_for_safety": result.is_removed(index),
                "safety_score": result.safety[index].score if result.safety else None,
                "seed": json_seed(seed),
            }
            for index, (image, seed) in enumerate(zip(result.images, generated.seeds, strict=True))
        ],
        "prediction_time_ms": timings.engine_s * 1000,
        "request_id": generated.request_id,
        "receipt": Receipt.of(generated).model_dump(),
        "timings_ms": {
            "queue": timings.queue_ms,
            "fetch": timings.fetch_ms,
            "swap": timings.swap_ms,
            "encode_prompt": timings.encode_prompt_ms,
            "denoise": timings.denoise_ms,
            "decode": timings.decode_ms,
            "encode_image": timings.encode_image_ms,
        },
    }
    # Encodes bytes in base64, and large texts several times as fast as the standard library.
    return msgspec.json.encode(body)
