"""Training of textual inversions through both frozen text encoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from assets.content import Component
from benchmarks.miniature.base import Miniature
from benchmarks.miniature.text import ENCODERS
from benchmarks.miniature.training import TrainingPlan, train
from benchmarks.miniature.unet import Words, encode_images, generate, noise_loss, save_row
from benchmarks.miniature.world import SIDE, Scene, render
from serving.engine.text import PromptTokenizer, TokenEmbeddingHook, token_embedding
from serving.miniature.model import MINIATURE_CONFIGS

BATCH = 24
_LESSONS = 800
Lesson = Callable[[np.random.Generator], tuple[Scene, str]]


class Inverted:
    """Both encoders with an additional trainable word."""

    def __init__(self, base: Miniature, word: str, count: int) -> None:
        torch.manual_seed(80)
        self.vectors: dict[Component, torch.Tensor] = {
            component: torch.randn(
                count, int(MINIATURE_CONFIGS[component]["hidden_size"])
            ).requires_grad_()
            for component in ENCODERS
        }
        self._base, self._word, self._count = base, word, count
        self._prompts = PromptTokenizer()
        self._hooks = {
            component: TokenEmbeddingHook(token_embedding(base.encoders[component]))
            for component in ENCODERS
        }

    def encode(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        states: list[torch.Tensor] = []
        for component in ENCODERS:
            sizes = {self._word: self._count}
            chunks = [self._prompts.first_chunk(text, sizes) for text in texts]
            rows = [
                (row, position, self.vectors[component][token.vector[1]])
                for row, chunk in enumerate(chunks)
                for position, token in enumerate(chunk, start=1)
                if token.vector
            ]
            self._hooks[component].set(rows)
            ids = torch.tensor([self._prompts.ids(chunk, component) for chunk in chunks])
            output = self._base.encoders[component](ids, output_hidden_states=True)
            self._hooks[component].set([])
            states.append(output.hidden_states[-2])
        return torch.cat(states, dim=2), output.text_embeds


def train_inversion(
    word: str, count: int, lesson: Lesson, shown: Sequence[str],
    folder: Path, base: Miniature, plan: TrainingPlan, target: Path,
) -> None:  # fmt: skip
    """Train ``count`` vectors for ``word``; write ``clip_l`` and ``clip_g``."""
    rng = np.random.default_rng(81)
    pixels = np.empty((_LESSONS, SIDE, SIDE, 3), np.uint8)
    texts = []
    for index in range(_LESSONS):
        scene, text = lesson(rng)
        pixels[index] = render(scene, rng)
        texts.append(text)
    latents = encode_images(base.vae, torch.from_numpy(pixels).permute(0, 3, 1, 2))
    inverted = Inverted(base, word, count)

    def loss(_: int) -> torch.Tensor:
        index = torch.randint(_LESSONS, (BATCH,))
        context, pooled = inverted.encode([texts[i] for i in index.tolist()])
        return noise_loss(base.unet, latents[index], context, pooled)

    @torch.no_grad()
    def preview(path: Path) -> None:
        save_row(generate(base.unet, base.vae, Words(*inverted.encode(shown))), path)

    train(word, folder, list(inverted.vectors.values()), loss, plan, preview)
    names = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
    vectors: dict[str, torch.Tensor] = {
        name: inverted.vectors[component].detach().half()  # type: ignore[index]
        for name, component in names.items()
    }
    save_file(vectors, target)
