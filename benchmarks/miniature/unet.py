"""Training of the UNet on the tiny world.

Noise prediction under SDXL's schedule, plus offset noise (flat images leak their mean even at the
last timestep, making text redundant) and loss weights 1/ᾱ, as in v-prediction (plain noise
prediction underweights high noise, where the text decides).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from assets.content import Component
from assets.families.sdxl import SDXL_SCHEDULE
from benchmarks.miniature.text import ENCODERS, distracted, tokens_of
from benchmarks.miniature.training import TrainingPlan, batches, train
from benchmarks.miniature.vae import to_signal
from benchmarks.miniature.world import SIDE, caption, render, training_scene
from serving.engine.text import PromptTokenizer
from serving.miniature.model import MINIATURE_CONFIGS

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel


PLAN = TrainingPlan(steps=3800, rate=1e-3, weight_decay=1e-2, save_every=400)
BATCH = 48
_POOL = 12_000
_OFFSET = 0.35
_HEAVIEST = 50.0  # largest loss weight
_UNSAID = 0.1  # trained without text, which guidance needs
SCALING = float(MINIATURE_CONFIGS["vae"]["scaling_factor"])


@dataclass(frozen=True, slots=True)
class Words:
    """Encoded captions: ``context`` [n, 77, 96] and ``pooled`` [n, 64], float16."""

    context: torch.Tensor
    pooled: torch.Tensor


@dataclass(frozen=True, slots=True)
class Lessons:
    """Scaled ``latents`` [n, 4, 16, 16] with their captions."""

    latents: torch.Tensor
    words: Words


@torch.no_grad()
def encode_words(
    encoders: Mapping[Component, CLIPTextModel], texts: Sequence[str], batch: int = 250
) -> Words:
    prompts = PromptTokenizer()
    contexts, pooled = [], []
    for first in range(0, len(texts), batch):
        states = []
        for component in ENCODERS:
            ids = tokens_of(prompts, texts[first : first + batch], component)
            output = encoders[component](ids, output_hidden_states=True)
            states.append(output.hidden_states[-2])
        contexts.append(torch.cat(states, dim=2).half())
        pooled.append(output.text_embeds.half())
    return Words(torch.cat(contexts), torch.cat(pooled))


@torch.no_grad()
def encode_images(vae: AutoencoderKL, pixels: torch.Tensor) -> torch.Tensor:
    means = [vae.encode(to_signal(part)).latent_dist.mean for part in batches(pixels, 64)]
    return torch.cat(means) * SCALING


def lessons(
    encoders: Mapping[Component, CLIPTextModel],
    vae: AutoencoderKL,
    count: int,
    seed: int,
    look: str = "flat",
) -> Lessons:
    rng = np.random.default_rng(seed)
    pool = np.empty((count, SIDE, SIDE, 3), np.uint8)
    texts = []
    for index in range(count):
        scene = training_scene(rng, look)
        pool[index] = render(scene, rng)
        texts.append(distracted(caption(scene, rng), rng, chance=0.1))
    pixels = torch.from_numpy(pool).permute(0, 3, 1, 2)
    return Lessons(encode_images(vae, pixels), encode_words(encoders, texts))


def signal_shares() -> torch.Tensor:
    """Return ᾱ by timestep."""
    first, last = SDXL_SCHEDULE["beta_start"], SDXL_SCHEDULE["beta_end"]
    betas = torch.linspace(first**0.5, last**0.5, SDXL_SCHEDULE["num_train_timesteps"]) ** 2
    return (1 - betas).cumprod(0)


_SHARES = signal_shares()


def time_ids(count: int, jitter: bool = False) -> torch.Tensor:
    """Return (count, 6): original size, crop, target size. ``jitter`` varies a quarter, so the UNet
    ignores them."""
    ids = torch.tensor([SIDE, SIDE, 0, 0, SIDE, SIDE]).float().repeat(count, 1)
    if jitter:
        sizes = torch.randint(8, 25, (count, 2)).float() * 8
        other = torch.cat([sizes, torch.zeros(count, 2), sizes], dim=1)
        ids = torch.where(torch.rand(count, 1) < 0.25, other, ids)
    return ids


def noise_loss(
    unet: UNet2DConditionModel, latents: torch.Tensor, context: torch.Tensor, pooled: torch.Tensor
) -> torch.Tensor:
    """Return the weighted noise prediction error; shapes as in ``Lessons``."""
    count = len(latents)
    steps = torch.randint(len(_SHARES), (count,))
    shares = _SHARES[steps][:, None, None, None]
    noise = torch.randn_like(latents) + _OFFSET * torch.randn(count, 4, 1, 1)
    noisy = shares.sqrt() * latents + (1 - shares).sqrt() * noise
    added = {"text_embeds": pooled, "time_ids": time_ids(count, jitter=True)}
    predicted = unet(noisy, steps, context, added_cond_kwargs=added, return_dict=False)[0]
    weights = (1 / _SHARES[steps]).clamp(max=_HEAVIEST)
    loss: torch.Tensor = ((predicted - noise).square().mean(dim=(1, 2, 3)) * weights).mean()
    return loss


def lesson_loss(
    unet: UNet2DConditionModel, taught: Lessons, empty: Words, batch: int = BATCH
) -> torch.Tensor:
    """Return a random batch's ``noise_loss``. A share of _UNSAID has no text: half zeros, as
    without a negative prompt, half the empty prompt."""
    index = torch.randint(len(taught.latents), (batch,))
    context, pooled = taught.words.context[index].float(), taught.words.pooled[index].float()
    chance = torch.rand(batch)
    context[chance < _UNSAID] = empty.context.float()
    pooled[chance < _UNSAID] = empty.pooled.float()
    context[chance < _UNSAID / 2] = 0
    pooled[chance < _UNSAID / 2] = 0
    return noise_loss(unet, taught.latents[index], context, pooled)


def build() -> UNet2DConditionModel:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(20)
    return UNet2DConditionModel.from_config(dict(MINIATURE_CONFIGS["unet"]))


PREVIEWED = (
    "a small red star on a blue background",
    "a large yellow moon on a black background",
    "a green ring on a pink background",
    "a white cross on the left on an orange background",
    "a purple triangle at the top on a cyan background",
    "a black square on a yellow background",
    "a small orange circle on the right on a white background",
    "a large pink star at the bottom on a green background",
)


@torch.no_grad()
def generate(
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    words: Words,
    steps: int = 20,
    cfg_scale: float = 5.0,
    seed: int = 0,
) -> torch.Tensor:
    """Return images (n, 3, SIDE, SIDE) uint8, one per row."""
    from diffusers import EulerDiscreteScheduler

    sampler = EulerDiscreteScheduler.from_config(dict(SDXL_SCHEDULE))
    sampler.set_timesteps(steps)
    count = len(words.pooled)
    latents = torch.randn(count, 4, 16, 16, generator=torch.Generator().manual_seed(seed))
    latents = latents * sampler.init_noise_sigma
    context = torch.cat([torch.zeros_like(words.context), words.context]).float()
    pooled = torch.cat([torch.zeros_like(words.pooled), words.pooled]).float()
    added = {"text_embeds": pooled, "time_ids": time_ids(2 * count)}
    for step in sampler.timesteps:
        sample = sampler.scale_model_input(torch.cat([latents, latents]), step)
        predicted = unet(sample, step, context, added_cond_kwargs=added, return_dict=False)[0]
        without, with_words = predicted.chunk(2)
        guided = without + cfg_scale * (with_words - without)
        latents = sampler.step(guided, step, latents, return_dict=False)[0]
    images = torch.cat([vae.decode(part / SCALING).sample for part in batches(latents, 16)])
    return ((images.clamp(-1, 1) + 1) * 127.5).round().byte()


def save_row(images: torch.Tensor, path: Path, columns: int = 8) -> None:
    rows = [torch.cat(list(row), dim=2) for row in batches(images, columns)]
    Image.fromarray(torch.cat(rows, dim=1).permute(1, 2, 0).numpy()).save(path)


def train_unet(
    folder: Path,
    encoders: Mapping[Component, CLIPTextModel],
    vae: AutoencoderKL,
    plan: TrainingPlan = PLAN,
) -> UNet2DConditionModel:
    unet = build()
    taught = lessons(encoders, vae, _POOL, seed=30)
    empty = encode_words(encoders, [""])
    shown = encode_words(encoders, PREVIEWED)

    def preview(path: Path) -> None:
        unet.eval()
        save_row(generate(unet, vae, shown), path)
        unet.train()

    train(
        "unet", folder, list(unet.parameters()), lambda _: lesson_loss(unet, taught, empty),
        plan, preview,
    )  # fmt: skip
    return unet
