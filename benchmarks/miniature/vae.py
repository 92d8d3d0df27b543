"""Training of the VAE, of SDXL's topology, on the tiny world in all its looks.

Means and deviations are folded into the two 1×1 convolutions around the latents, for SDXL's scale
(unit variance after multiplication by 0.13025).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from benchmarks.miniature.training import TrainingPlan, batches, train
from benchmarks.miniature.world import LOOKS, SIDE, random_scene, render
from serving.miniature.model import MINIATURE_CONFIGS

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


PLAN = TrainingPlan(steps=6500, rate=2e-3, weight_decay=0.0)
_POOL = 4000
_CROP, _BATCH = 64, 16
_KL = 1e-3


def images(count: int, seed: int) -> torch.Tensor:
    """Return renders (count, 3, SIDE, SIDE) uint8, half of them flat."""
    rng = np.random.default_rng(seed)
    pool = np.empty((count, SIDE, SIDE, 3), np.uint8)
    for index in range(count):
        look = "flat" if rng.random() < 0.5 else str(rng.choice(LOOKS[1:]))
        pool[index] = render(random_scene(rng, look), rng)
    return torch.from_numpy(pool).permute(0, 3, 1, 2).contiguous()


def to_signal(pixels: torch.Tensor) -> torch.Tensor:
    """Convert uint8 to float from -1 to 1."""
    return pixels.float() / 127.5 - 1


def difference(generated: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return L1 + 2 · L2 + L1 of the gradients (sharp edges)."""
    error = generated - wanted
    across = error[..., :, 1:] - error[..., :, :-1]
    down = error[..., 1:, :] - error[..., :-1, :]
    edges = across.abs().mean() + down.abs().mean()
    total: torch.Tensor = error.abs().mean() + 2 * error.square().mean() + edges
    return total


def build() -> AutoencoderKL:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    return AutoencoderKL.from_config(dict(MINIATURE_CONFIGS["vae"]))


def train_vae(folder: Path, plan: TrainingPlan = PLAN) -> AutoencoderKL:
    """Train the VAE with states in ``folder``."""
    vae = build()
    pool = images(_POOL, seed=1)
    shown = images(12, seed=2)

    def loss(step: int) -> torch.Tensor:
        whole = step >= plan.steps * 4 // 5  # middle attention needs full size
        batch = pool[torch.randint(_POOL, (_BATCH // (4 if whole else 1),))]
        if not whole:
            top, left = torch.randint(SIDE - _CROP + 1, (2,)).tolist()
            batch = batch[..., top : top + _CROP, left : left + _CROP]
        wanted = to_signal(batch)
        with torch.autocast("cpu", torch.bfloat16, enabled=not whole):
            posterior = vae.encode(wanted).latent_dist
            generated = vae.decode(posterior.sample()).sample
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        total: torch.Tensor = difference(generated.float(), wanted) + _KL * kl.float()
        return total

    @torch.no_grad()
    def preview(path: Path) -> None:
        generated = vae.decode(vae.encode(to_signal(shown)).latent_dist.mean).sample
        pixels = ((generated.clamp(-1, 1) + 1) * 127.5).round().byte()
        rows = [torch.cat(list(half), dim=2) for half in (shown, pixels)]
        sheet = torch.cat(rows, dim=1).permute(1, 2, 0).numpy()
        Image.fromarray(sheet).save(path)

    train("vae", folder, list(vae.parameters()), loss, plan, preview)
    normalise(vae, to_signal(pool[:256]))
    return vae


@torch.no_grad()
def normalise(vae: AutoencoderKL, signals: torch.Tensor) -> None:
    """Scale latent channels to mean 0 and deviation 1 / scaling_factor, exactly."""
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in batches(signals, 32)])
    mean = latents.mean(dim=(0, 2, 3))
    deviation = latents.std(dim=(0, 2, 3))
    factor = 1 / (deviation * vae.config.scaling_factor)
    out, into = vae.quant_conv, vae.post_quant_conv
    channels = len(mean)
    out.weight[:channels] *= factor[:, None, None, None]
    out.bias[:channels] = (out.bias[:channels] - mean) * factor
    out.bias[channels:] += 2 * factor.log()
    into.bias += F.conv2d(mean[None, :, None, None], into.weight)[0, :, 0, 0]
    into.weight /= factor[None, :, None, None]
