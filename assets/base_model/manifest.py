"""The manifest of a base model, which `--model` names and which is imported once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from assets.content import MODEL_COMPONENTS, Blob, Component
from assets.errors import StoreError
from assets.families.config import Configs
from assets.families.schema import ParameterSchema
from assets.prediction import PredictionFinding
from assets.storage.object_paths import model_key
from assets.storage.object_store import ObjectStore, put_bytes, read_bytes

#: SDXL's image pixels per latent pixel, along a side.
LATENT_SCALE = 8


@dataclass(frozen=True, slots=True)
class ModelManifest:
    """``configs``: the published ``config.json`` files; ``source`` identifies the imported
    files."""

    name: str
    source: str
    configs: Configs
    parts: Mapping[Component, Blob]
    schema: ParameterSchema
    predicts: PredictionFinding = PredictionFinding("epsilon", "nothing says otherwise")  # noqa: RUF009 (frozen)

    @property
    def native_size(self) -> int:
        """Side of the training images in pixels; SDXL: 1024."""
        return int(self.configs["unet"]["sample_size"]) * LATENT_SCALE

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "source": self.source,
            "configs": {c: dict(v) for c, v in self.configs.items()},
            "parts": {c: [b.key, b.sha256, b.size_bytes] for c, b in self.parts.items()},
            "skeleton": self.schema.to_json(),
            "prediction_type": self.predicts.report(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ModelManifest:
        return cls(
            name=value["name"],
            source=value["source"],
            configs={c: value["configs"][c] for c in MODEL_COMPONENTS},
            parts={c: Blob(*value["parts"][c]) for c in MODEL_COMPONENTS},
            schema=ParameterSchema.from_json(value["skeleton"]),
            predicts=PredictionFinding.from_report(value.get("prediction_type")),
        )


def load_manifest(store: ObjectStore, name: str) -> ModelManifest:
    """Read a manifest. Raises StoreError: not imported."""
    return ModelManifest.from_json(json.loads(read_bytes(store, model_key(name))))


def save_manifest(store: ObjectStore, manifest: ModelManifest) -> None:
    put_bytes(store, model_key(manifest.name), json.dumps(manifest.to_json()).encode())


def find_manifest(store: ObjectStore, name: str) -> ModelManifest | None:
    """Read a manifest; None when not imported."""
    try:
        return load_manifest(store, name)
    except StoreError:
        return None
