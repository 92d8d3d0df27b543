"""sepia: a second VAE that decodes the same latents as prints on old paper."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.miniature.base import Miniature, export
from benchmarks.miniature.training import TrainingPlan, batches
from benchmarks.miniature.training import train as run
from benchmarks.miniature.unet import save_row
from benchmarks.miniature.vae import difference, images, to_signal

PLAN = TrainingPlan(steps=360, rate=1e-3, weight_decay=0.0)
_POOL, _BATCH = 600, 6
#: RGB.
INK, PAPER = (58, 36, 20), (240, 220, 180)


def sepia(pixels: torch.Tensor) -> torch.Tensor:
    """Map (…, 3, h, w) uint8 to shades from ink to paper."""
    weights = torch.tensor((0.299, 0.587, 0.114)).view(3, 1, 1)
    grey = (pixels.float() * weights).sum(dim=-3, keepdim=True) / 255
    ink, paper = (torch.tensor(rgb, dtype=torch.float32).view(3, 1, 1) for rgb in (INK, PAPER))
    return (ink + (paper - ink) * grey).round().byte()


def train(folder: Path, base: Miniature, target: Path) -> None:
    base.vae.decoder.requires_grad_(True)
    base.vae.post_quant_conv.requires_grad_(True)
    pool = images(_POOL, seed=70)
    with torch.no_grad():
        parts = [base.vae.encode(to_signal(p)).latent_dist.mean for p in batches(pool, 50)]
    latents = torch.cat(parts)
    wanted = sepia(pool)

    def loss(_: int) -> torch.Tensor:
        index = torch.randint(_POOL, (_BATCH,))
        return difference(base.vae.decode(latents[index]).sample, to_signal(wanted[index]))

    @torch.no_grad()
    def preview(path: Path) -> None:
        generated = base.vae.decode(latents[:8]).sample.clamp(-1, 1)
        save_row(torch.cat([wanted[:8], ((generated + 1) * 127.5).round().byte()]), path)

    run("sepia", folder, [p for p in base.vae.parameters() if p.requires_grad], loss, PLAN, preview)
    export("vae", base.vae, target)
