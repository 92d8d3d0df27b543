"""The parameter names and shapes of a model, which an asset must match.

Names are as diffusers and transformers publish; from transformers 5.6 on, those in memory differ.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from assets.content import MODEL_COMPONENTS, Component

Shape = tuple[int, ...]
SchemaJson = dict[Component, dict[str, list[int]]]


def stacked(parameters: Mapping[str, Shape]) -> dict[Shape, tuple[str, ...]]:
    """Group parameters by shape, in the order of stacks and canonical files: by role
    (``attn1.to_q.weight`` of every block), so that an adapter changes adjacent rows."""
    by_shape: dict[Shape, list[str]] = {}
    for name in sorted(parameters, key=lambda name: (_role(name), name)):
        by_shape.setdefault(parameters[name], []).append(name)
    return {shape: tuple(names) for shape, names in by_shape.items()}


def stacking_order(parameters: Mapping[str, Shape]) -> list[str]:
    """Return all names, stack by stack."""
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
            raise ValueError(
                f"a parameter schema needs every component; missing: {', '.join(missing)}"
            )

    @property
    def text_widths(self) -> tuple[int, int]:
        """Token embedding widths (SDXL: 768, 1280)."""
        name = "text_model.embeddings.token_embedding.weight"
        first = self.components["text_encoder"][name]
        second = self.components["text_encoder_2"][name]
        return first[1], second[1]

    @property
    def digest(self) -> str:
        """Equal for models that can use the same assets."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self) -> SchemaJson:
        return {c: {n: list(s) for n, s in names.items()} for c, names in self.components.items()}

    @classmethod
    def from_json(cls, value: SchemaJson) -> ParameterSchema:
        return cls({c: {n: tuple(s) for n, s in value[c].items()} for c in MODEL_COMPONENTS})
