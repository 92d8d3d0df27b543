"""The generation request and answer as OctoAI's clients write and read them."""

from __future__ import annotations

import base64
from typing import Annotated, Any

from pydantic import ConfigDict, Field, model_validator

from assets.library.resolve import MAX_INVERSIONS, MAX_LORA_WEIGHT, MAX_LORAS, AssetSelection
from serving.api.request_model import RequestModel
from serving.errors import InvalidRequest
from serving.generation.contract import ImageEncoding, Sampler
from serving.generation.service import MAX_SEED, Generation, GenerationRequest, fixed_seeds

Prompt = Annotated[str, Field(max_length=10_000)]
#: An asset's id, or ``owner:name@version``.
Reference = Annotated[str, Field(max_length=256)]
Word = Annotated[str, Field(max_length=128)]
Weight = Annotated[float, Field(ge=-MAX_LORA_WEIGHT, le=MAX_LORA_WEIGHT)]
Pixels = Annotated[int, Field(ge=1, le=16_384)]
MAX_IMAGES = 16
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]

#: Fields of the wire that this server does not serve yet, with the values that ask for nothing.
_UNSERVED: dict[str, tuple[Any, ...]] = {
    "init_image": (None,),
    "strength": (None, 0.8),
    "mask_image": (None,),
    "outpainting": (None, False),
    "inpaint_full_res": (None, False),
    "inpaint_full_res_padding": (None, 32),
    "style_preset": (None, "base"),
    "use_refiner": (None, True, False),
    "high_noise_frac": (None, 0.8),
    "clip_skip": (None,),
    "controlnet": (None,),
    "controlnet_image": (None,),
    "controlnet_conditioning_scale": (None, 1.0),
    "controlnet_early_stop": (None,),
    "controlnet_preprocess": (None, True, False),
    "transfer_images": (None,),
}
#: Accepted and of no effect: an older client always sends the first.
_IGNORED = ("enable_safety", "force_asset_download", "force_asset_gpu_copy", "log_prompt")


class LoraWeights(RequestModel):
    """A LoRA's weights where the UNet and the text encoders are to have different ones."""

    model_config = ConfigDict(extra="forbid")

    unet: Weight
    text_encoders: Weight


class GenerateRequest(RequestModel):
    """An explicit null means the default, as older clients send it."""

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
    height: Pixels | None = None
    width: Pixels | None = None
    cfg_scale: float = Field(12.0, gt=0, le=50)
    steps: int = Field(30, gt=0, le=200)
    num_images: int = Field(1, ge=1, le=MAX_IMAGES)
    seed: Seed | Annotated[list[Seed | None], Field(max_length=MAX_IMAGES)] | None = None
    image_encoding: ImageEncoding = "jpeg"
    #: Ours: among the requests of one's own organisation that wait, the higher goes first.
    priority: int = Field(0, ge=-10, le=10)
    #: Ours: the pool of GPUs, by its name or its kind; else the tenant's own.
    gpu: str | None = Field(None, max_length=64)

    @model_validator(mode="before")
    @classmethod
    def _wire(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        kept = {}
        for name, given in value.items():
            if name in _UNSERVED:
                if given not in _UNSERVED[name]:
                    raise ValueError(f"{name} is not served here yet; leave it out")
            elif name not in _IGNORED and (given is not None or name == "prompt"):
                kept[name] = given
        return kept

    def _wanted(self) -> AssetSelection:
        weights, text_weights = {}, {}
        for name, given in self.loras.items():
            if isinstance(given, LoraWeights):
                weights[name], text_weights[name] = given.unet, given.text_encoders
            else:
                weights[name] = given
        return AssetSelection(
            self.checkpoint, self.vae, weights, self.textual_inversions, text_weights
        )

    def order(self) -> GenerationRequest:
        """Raises InvalidRequest when the seeds do not fit the number of images."""
        if isinstance(self.seed, list) and len(self.seed) > self.num_images:
            raise InvalidRequest("seed", f"{len(self.seed)} seeds for {self.num_images} images")
        return GenerationRequest(
            prompt=self.prompt,
            prompt_2=self.prompt_2,
            negative_prompt=self.negative_prompt,
            negative_prompt_2=self.negative_prompt_2,
            seeds=fixed_seeds(self.seed, self.num_images),
            wanted=self._wanted(),
            width=self.width,
            height=self.height,
            sampler=self.sampler,
            steps=self.steps,
            cfg_scale=self.cfg_scale,
            encoding=self.image_encoding,
            priority=self.priority,
            gpu=self.gpu or "",
        )


def answer(generated: Generation) -> dict[str, Any]:
    """OctoAI's answer; ``request_id``, ``receipt`` and ``timings_ms`` are ours."""
    result = generated.result
    timings = result.timings
    return {
        "images": [
            {
                "image_b64": base64.b64encode(image).decode("ascii"),
                "removed_for_safety": False,
                "safety_score": None,
                "seed": seed,
            }
            for image, seed in zip(result.images, generated.seeds, strict=True)
        ],
        "prediction_time_ms": timings.engine_s * 1000,
        "request_id": generated.request_id,
        "receipt": receipt(generated),
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


def receipt(generated: Generation) -> dict[str, Any]:
    """What was used, where it was found, and what was done about it."""
    result, size = generated.result, generated.size
    return {
        "assets": [
            {
                "asset": generated.names.get(found.key, ""),
                "content_key": found.key,
                "found_on": found.tier,
                "bytes_moved": found.bytes_moved,
                "fetch_ms": found.fetch_s * 1000,
                "matched_parameters": result.matched.get(found.key),
            }
            for found in result.found
        ],
        "replica": result.replica,
        "swap": {
            "copied": result.swap.copied,
            "touched": result.swap.touched,
            "restored": result.swap.restored,
            "kept": result.swap.kept,
        },
        "size": {"width": size.width, "height": size.height, "scaled_to_model": size.scaled},
        "warnings": list(result.warnings),
    }
