"""Training of the text encoders as classifiers of captions.

They classify from the states that SDXL's UNet reads: both penultimate layers and the second's
pooled projection. Token embeddings keep their seeded values and need not be shipped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from assets.content import Component
from benchmarks.miniature.training import TrainingPlan, train
from benchmarks.miniature.world import COLOURS, PLACES, SHAPES, SIZES, caption, training_scene
from serving.engine.text import PromptTokenizer
from serving.engine.vocabulary import vocabulary
from serving.miniature.model import MINIATURE_CONFIGS, token_rows

if TYPE_CHECKING:
    from transformers import CLIPTextModel


PLAN = TrainingPlan(steps=1500, rate=2e-3)
ENCODERS: tuple[Component, ...] = ("text_encoder", "text_encoder_2")
_BATCH, _POOL = 96, 12_000

#: Attribute values in captions. Index 0 is "not mentioned"; medium and middle never are.
SAID: tuple[tuple[str, ...], ...] = (
    ("", *SHAPES),
    ("", *COLOURS),
    ("", *COLOURS),
    ("", *(size for size in SIZES if size != "medium")),
    ("", *(place for place in PLACES if place != "middle")),
)


def said(text: str) -> tuple[int, ...]:
    """Return indices into ``SAID``."""
    ground = re.search(r"(\w+) background", text)
    rest = re.sub(r"\w+ background", "", text)
    words = rest.split()

    def first(options: Sequence[str]) -> int:
        named = [o for o in options[1:] if (o in rest if " " in o else o in _bare(words))]
        return options.index(named[0]) if named else 0

    background = SAID[2].index(ground[1]) if ground else 0
    return first(SAID[0]), first(SAID[1]), background, first(SAID[3]), first(SAID[4])


def _bare(words: list[str]) -> list[str]:
    return [word.strip(",") for word in words]


@cache
def _plain_words() -> list[str]:
    """Return words without meaning in the tiny world."""
    known = set(" ".join(option for options in SAID for option in options).split())
    words = [token[:-4] for token in vocabulary() if token.endswith("</w>")]
    return [w for w in words if w.isascii() and w.isalpha() and len(w) > 2 and w not in known]


def distracted(text: str, rng: np.random.Generator, chance: float = 0.2) -> str:
    """Insert, with probability ``chance``, one to three meaningless words."""
    if rng.random() >= chance:
        return text
    pieces = text.split(", ")
    words = " ".join(rng.choice(_plain_words(), int(rng.integers(1, 4))))
    pieces.insert(int(rng.integers(len(pieces) + 1)), words)
    return ", ".join(pieces)


def build(component: Component) -> CLIPTextModel:
    """Build an untrained encoder from its seed."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    from serving.engine.modules import clip_config

    kind = CLIPTextModel if component == "text_encoder" else CLIPTextModelWithProjection
    module = kind(clip_config(MINIATURE_CONFIGS[component]))
    generator = torch.Generator().manual_seed(3 if component == "text_encoder" else 4)
    layers = MINIATURE_CONFIGS[component]["num_hidden_layers"]
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("token_embedding.weight"):
                parameter.copy_(token_rows(component, tuple(parameter.shape)))
                parameter.requires_grad_(False)
            elif name.endswith("position_embedding.weight"):
                parameter.normal_(0, 0.3, generator=generator)
            elif parameter.ndim == 2:
                is_last = name.endswith(("out_proj.weight", "fc2.weight"))
                scale = (2 * layers) ** -0.5 if is_last else 1.0
                parameter.normal_(0, scale * parameter.shape[1] ** -0.5, generator=generator)
    return module


def tokens_of(prompts: PromptTokenizer, texts: Sequence[str], component: Component) -> torch.Tensor:
    """Return token ids, (n, 77)."""
    return torch.tensor([prompts.ids(prompts.first_chunk(text, {}), component) for text in texts])


def _parts(scores: torch.Tensor) -> list[torch.Tensor]:
    ends = list(accumulate(len(options) for options in SAID))
    return [scores[:, first:end] for first, end in zip([0, *ends], ends, strict=False)]


def train_text(folder: Path, plan: TrainingPlan = PLAN) -> dict[Component, CLIPTextModel]:
    rng = np.random.default_rng(10)
    texts = [distracted(caption(training_scene(rng), rng), rng) for _ in range(_POOL)]
    labels = torch.tensor([said(text) for text in texts])
    prompts = PromptTokenizer()
    modules: dict[Component, CLIPTextModel] = {}
    for component in ENCODERS:
        module = modules[component] = build(component)
        ids = tokens_of(prompts, texts, component)
        ends = ids.argmax(dim=1)
        width = module.config.hidden_size
        generator = torch.Generator().manual_seed(5)
        states = 2 if component == "text_encoder_2" else 1
        heads = torch.randn(states, sum(map(len, SAID)), width, generator=generator)
        heads = (heads * width**-0.5).requires_grad_()

        def scores(
            index: torch.Tensor, module: CLIPTextModel = module, ids: torch.Tensor = ids,
            ends: torch.Tensor = ends, heads: torch.Tensor = heads,
        ) -> list[torch.Tensor]:  # fmt: skip
            longest = int(ends[index].max()) + 1  # causal: later tokens have no influence
            output = module(ids[index, :longest], output_hidden_states=True)
            rows = torch.arange(len(index))
            features = [
                F.layer_norm(output.hidden_states[-2][rows, ends[index]], (heads.shape[2],))
            ]
            if len(heads) == 2:
                features.append(output.text_embeds)
            return [state @ head.t() for state, head in zip(features, heads, strict=True)]

        def loss(step: int, scores: Any = scores) -> torch.Tensor:
            index = torch.randint(_POOL, (_BATCH,))
            total = torch.zeros(())
            for state in scores(index):
                for column, part in enumerate(_parts(state)):
                    total = total + F.cross_entropy(part, labels[index, column])
            return total

        trainable = [p for p in module.parameters() if p.requires_grad]
        train(component, folder, [*trainable, heads], loss, plan)
        with torch.no_grad():
            index = torch.arange(0, _POOL, 12)
            for state in scores(index):
                right = [
                    (part.argmax(1) == labels[index, column]).float().mean().item()
                    for column, part in enumerate(_parts(state))
                ]
                print(component, "accuracy", " ".join(f"{share:.3f}" for share in right))
    return modules
