"""Finding the asset that made an image non-finite. Runs only after such a failure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from assets.recipe import InversionUse, LoraUse, Recipe
from serving.engine.compiled import eagerly
from serving.errors import NotFinite

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


#: (recipe, maximum steps) → the step that becomes non-finite, or None.
BreaksAt = Callable[[Recipe, int], int | None]
#: Limits of the search: a multiple of the failed request's steps, and at least ``_LEAST_STEPS``.
_MOST_EFFORT, _LEAST_STEPS = 1.75, 10


def blame(recipe: Recipe, steps: int, breaks_at: BreaksAt, *, is_proven: bool = False) -> NotFinite:
    """Return the error that names the asset at fault in ``recipe``, which failed in ``steps``
    steps.

    Tries the checkpoint alone (unless ``is_proven``), then halves of the inversions and LoRAs of
    nonzero weight, until one is left or the effort is spent.
    """
    bare = replace(recipe, loras=(), inversions=())
    loras = [lora for lora in recipe.loras if lora.weight or lora.text_weight]
    suspects: list[LoraUse | InversionUse] = [*loras, *recipe.inversions]
    trials = _Trials(bare, steps, breaks_at)
    try:
        if len(suspects) > 1:
            trials.find_step(suspects)
        if not suspects or (not is_proven and trials.breaks([])):
            parts = (recipe.unet, recipe.text_encoder, recipe.text_encoder_2)
            keys = tuple(blob.key for blob in parts)
            return NotFinite(
                "the checkpoint {assets} generates no finite image at these settings", keys
            )
        while len(suspects) > 1:
            middle = len(suspects) // 2
            for half in (suspects[:middle], suspects[middle:]):
                if trials.breaks(half):
                    suspects = half
                    break
            else:
                return NotFinite("{assets} together drive the model out of range", _keys(suspects))
    except _EffortSpent:
        message = "the checkpoint, or one of {assets}, drives the model out of range"
        return NotFinite(message, _keys(suspects))
    (culprit,) = suspects
    if isinstance(culprit, InversionUse):
        message = "the inversion {assets} drives the model out of range"
    else:
        message = f"the LoRA {{assets}} at weight {culprit.weight:g} drives the model out of range"
    return NotFinite(message, _keys(suspects))


def _keys(suspects: Sequence[LoraUse | InversionUse]) -> tuple[str, ...]:
    return tuple(suspect.blob.key for suspect in suspects)


class _EffortSpent(Exception):
    pass


class _Trials:
    def __init__(self, bare: Recipe, steps: int, breaks_at: BreaksAt) -> None:
        self._bare = bare
        self._steps = steps
        self._breaks_at = breaks_at
        self._left = max(int(steps * _MOST_EFFORT), _LEAST_STEPS)

    def find_step(self, suspects: Sequence[LoraUse | InversionUse]) -> None:
        """Limit later trials to the step that fails with all suspects."""
        self._steps = self._try(suspects, self._steps) or self._steps

    def breaks(self, suspects: Sequence[LoraUse | InversionUse]) -> bool:
        """Raises _EffortSpent if too few steps are left."""
        within = min(self._steps, self._left)
        if not within:
            raise _EffortSpent
        step = self._try(suspects, within)
        if step is None and within < self._steps:
            raise _EffortSpent
        return step is not None

    def _try(self, suspects: Sequence[LoraUse | InversionUse], within: int) -> int | None:
        loras = tuple(suspect for suspect in suspects if isinstance(suspect, LoraUse))
        inversions = tuple(suspect for suspect in suspects if isinstance(suspect, InversionUse))
        recipe = replace(self._bare, loras=loras, inversions=inversions)
        step = self._breaks_at(recipe, within)
        self._left -= step or within
        return step


def blame_vae(vae: AutoencoderKL, key: str, latents: torch.Tensor, dtype: torch.dtype) -> NotFinite:
    """Return the error about a VAE that overflows in ``dtype``; says whether float32 helps."""
    decoded = latents.float()
    try:
        with eagerly():
            for module in (vae.post_quant_conv, vae.decoder):
                parameters = {
                    name: parameter.float() for name, parameter in module.named_parameters()
                }
                decoded = torch.func.functional_call(module, parameters, (decoded,))
        is_finite = bool(torch.isfinite(decoded).all())
    except torch.OutOfMemoryError:  # float32 takes twice the memory: cause unknown
        is_finite = False
    if is_finite and dtype != torch.float32:
        name = str(dtype).removeprefix("torch.")
        return NotFinite(f"the VAE {{assets}} overflows in {name}, and not in float32", (key,))
    return NotFinite("the VAE {assets} decodes these latents to no finite image", (key,))
