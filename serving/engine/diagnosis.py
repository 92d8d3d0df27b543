"""Whose fault is it that a picture is not finite? Asked only once it has happened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from assets.recipe import Recipe
from serving.engine.compiled import eagerly
from serving.errors import NotFinite

#: Draws a recipe for at most so many steps (None: all); after which step it was not finite.
BreaksAt = Callable[[Recipe, int | None], int | None]


def blame(recipe: Recipe, breaks_at: BreaksAt) -> NotFinite:
    """The error about ``recipe``: it is drawn again up to the step where it broke, the
    checkpoint alone and then with each other asset alone; the first that breaks it is it."""
    step = breaks_at(recipe, None)
    bare = replace(recipe, loras=(), inversions=())
    if breaks_at(bare, step):
        parts = (recipe.unet, recipe.text_encoder, recipe.text_encoder_2)
        keys = tuple(blob.key for blob in parts)
        return NotFinite("the checkpoint {assets} draws nothing finite at these settings", keys)
    for lora in recipe.loras:
        if breaks_at(replace(bare, loras=(lora,)), step):
            message = f"the LoRA {{assets}} at weight {lora.weight:g} drives the model out of range"
            return NotFinite(message, (lora.blob.key,))
    for inversion in recipe.inversions:
        if breaks_at(replace(bare, inversions=(inversion,)), step):
            message = "the inversion {assets} drives the model out of range"
            return NotFinite(message, (inversion.blob.key,))
    together = (
        *(lora.blob.key for lora in recipe.loras),
        *(inversion.blob.key for inversion in recipe.inversions),
    )
    return NotFinite("{assets} together drive the model out of range", together)


def blame_vae(vae: Any, key: str, latents: torch.Tensor, dtype: torch.dtype) -> NotFinite:
    """The error about a VAE whose picture of these (finite) latents is not finite in
    ``dtype``: its weights, or the precision that it runs in?"""
    decoded = latents.float()
    try:
        with eagerly():
            for module in (vae.post_quant_conv, vae.decoder):
                exact = {name: parameter.float() for name, parameter in module.named_parameters()}
                decoded = torch.func.functional_call(module, exact, (decoded,))
        is_finite = bool(torch.isfinite(decoded).all())
    except torch.OutOfMemoryError:  # float32 takes twice the memory: it cannot be told
        is_finite = False
    if is_finite and dtype != torch.float32:
        name = str(dtype).removeprefix("torch.")
        return NotFinite(f"the VAE {{assets}} overflows in {name}, and not in float32", (key,))
    return NotFinite("the VAE {assets} makes no finite picture of these latents", (key,))
