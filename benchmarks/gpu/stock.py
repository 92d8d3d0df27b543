"""Stock diffusers with the weights of our base model, without files."""

from __future__ import annotations

from typing import Any, cast

import torch
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from assets.base_model.manifest import ModelManifest
from assets.content import Component
from assets.families.sdxl import SDXL_SCHEDULE
from orchestrator.device_tier import DeviceTier
from serving.engine.modules import clip_config, published_names
from serving.engine.slabs import layouts_of
from serving.engine.values import DeviceValue, Pristine
from serving.engine.vocabulary import tokenizer


def stock_pipeline(
    manifest: ModelManifest, tier: DeviceTier[DeviceValue], device: torch.device
) -> Any:
    """Make stock's pipeline with copies of ``tier``'s base weights, in NCHW."""
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )

    configs = manifest.configs
    with torch.device("meta"):
        modules: dict[Component, Any] = {
            "unet": UNet2DConditionModel.from_config(dict(configs["unet"])),
            "text_encoder": CLIPTextModel(clip_config(configs["text_encoder"])),
            "text_encoder_2": CLIPTextModelWithProjection(clip_config(configs["text_encoder_2"])),
            "vae": AutoencoderKL.from_config({**configs["vae"], "force_upcast": True}),
        }
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    layouts = layouts_of(manifest.schema)
    for component, module in modules.items():
        lease = tier.lease(manifest.parts[component].key)
        assert lease is not None
        slabs = cast(Pristine, lease.value).slabs
        for name, published in published_names(component, module).items():
            place = layouts[component].places[published]
            owner, _, leaf = name.rpartition(".")
            weight = (
                slabs[place.shape][place.row]
                .to(dtype)
                .contiguous()
                .clone(memory_format=torch.contiguous_format)
            )
            parameter = torch.nn.Parameter(weight, requires_grad=False)
            module.get_submodule(owner)._parameters[leaf] = parameter
        for name, buffer in list(module.named_buffers()):
            owner, _, leaf = name.rpartition(".")
            positions = torch.arange(buffer.shape[-1], device=device).expand(buffer.shape)
            module.get_submodule(owner)._buffers[leaf] = positions
        module.eval()
        lease.release()
    schedule = dict(SDXL_SCHEDULE)
    scheduler = DDIMScheduler(**schedule, clip_sample=False, set_alpha_to_one=False)
    pipeline = StableDiffusionXLPipeline(
        **modules, tokenizer=tokenizer(), tokenizer_2=tokenizer("!"), scheduler=scheduler
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
