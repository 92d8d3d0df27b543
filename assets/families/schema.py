"""The served model's parameter names and shapes: what an asset must fit.

Names are the *published* ones, those of the files that diffusers and
transformers release; they differ from the names in memory from transformers 5.6 on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from assets.content import MODEL_COMPONENTS, Component

Shape = tuple[int, ...]


def stacked(parameters: Mapping[str, Shape]) -> dict[Shape, tuple[str, ...]]:
    """The parameters of each shape, in the order in which the engine stacks them and canonical
    files hold them: by role first (``attn1.to_q.weight`` of every block together), so that what
    adapters touch together lies together."""
    by_shape: dict[Shape, list[str]] = {}
    for name in sorted(parameters, key=lambda name: (_role(name), name)):
        by_shape.setdefault(parameters[name], []).append(name)
    return {shape: tuple(names) for shape, names in by_shape.items()}


def stacking_order(parameters: Mapping[str, Shape]) -> list[str]:
    """All of them, one stack after another."""
    return [name for names in stacked(parameters).values() for name in names]


def _role(name: str) -> str:
    return ".".join(part for part in name.split(".")[-4:] if not part.isdigit())


@dataclass(frozen=True, slots=True)
class ParameterSchema:
    """``components[component][published name]`` is a shape."""

    components: Mapping[Component, Mapping[str, Shape]]

    def __post_init__(self) -> None:
        missing = [c for c in MODEL_COMPONENTS if c not in self.components]
        if missing:
            raise ValueError(f"a skeleton needs every component; missing {', '.join(missing)}")

    @property
    def text_widths(self) -> tuple[int, int]:
        """Widths of the token embeddings of both text encoders (768 and 1280 in SDXL)."""
        name = "text_model.embeddings.token_embedding.weight"
        first = self.components["text_encoder"][name]
        second = self.components["text_encoder_2"][name]
        return first[1], second[1]

    @property
    def digest(self) -> str:
        """Equal for models that the same assets fit."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        return {c: {n: list(s) for n, s in names.items()} for c, names in self.components.items()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ParameterSchema:
        return cls({c: {n: tuple(s) for n, s in value[c].items()} for c in MODEL_COMPONENTS})
