"""The effect probe: a small engine that generates with each uploaded asset during ingest."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Mapping

import numpy as np
import torch
from PIL import Image

from assets.asset import AssetKind
from assets.base_model.manifest import ModelManifest
from assets.content import Blob, Component
from assets.ingest.effect import Effect
from assets.kinds import KINDS
from assets.recipe import Recipe
from orchestrator.provision import Provisioner
from serving.engine.engine import Engine
from serving.errors import NotFinite
from serving.generation.contract import GenerationParams, GenerationTask

log = logging.getLogger(__name__)

#: With larger base models uploads are not probed.
LARGEST_MODEL_BYTES = 256 << 20
_STEPS = 2
_WORD = "probe"
_PARAMS = GenerationParams(prompt=f"a {_WORD}", steps=_STEPS, cfg_scale=3.0, encoding="png")


class EngineProbe:
    """An :class:`~assets.ingest.effect.EffectProbe`, with an engine per base model, made when
    needed."""

    def __init__(
        self, manifest: Callable[[], ModelManifest], provisioner: Callable[[], Provisioner]
    ) -> None:
        self._manifest = manifest
        self._provisioner = provisioner
        self._engine: Engine | None = None
        self._engine_manifest: ModelManifest | None = None
        self._baseline: np.ndarray | None = None

    def probe(self, kind: AssetKind, parts: Mapping[Component, Blob]) -> Effect | None:
        manifest = self._manifest()
        if sum(blob.size_bytes for blob in manifest.parts.values()) > LARGEST_MODEL_BYTES:
            return None
        base = _base_recipe(manifest)
        if self._engine is None or self._engine_manifest != manifest:
            torch.set_num_threads(1)
            self._engine = Engine(manifest, self._provisioner(), "cpu", name="probe")
            self._engine_manifest, self._baseline = manifest, None
        if self._baseline is None:
            self._baseline = self._generate(base)
        image = self._generate(KINDS[kind].place(base, parts, _WORD))
        self._engine.forget({blob.key for blob in parts.values()} - set(_keys(base)))
        if image is None or self._baseline is None:
            return Effect(None)
        difference = image.astype(np.float32) - self._baseline.astype(np.float32)
        return Effect(round(float(np.sqrt(np.mean(difference**2))), 4))

    def _generate(self, recipe: Recipe) -> np.ndarray | None:
        """Return (height, width, 3) uint8; None if not finite."""
        assert self._engine is not None
        assert self._engine_manifest is not None
        size = self._engine_manifest.native_size
        request = GenerationTask(
            id="probe", recipe=recipe, params=_PARAMS, seeds=(0,), width=size, height=size
        )
        prepared = self._engine.prepare(recipe)
        try:
            result = self._engine.generate(prepared, request)
        except NotFinite:
            return None
        finally:
            prepared.release()
        with Image.open(io.BytesIO(result.images[0])) as image:
            return np.asarray(image.convert("RGB"))


def _base_recipe(manifest: ModelManifest) -> Recipe:
    parts = manifest.parts
    return Recipe(parts["unet"], parts["text_encoder"], parts["text_encoder_2"], parts["vae"])


def _keys(recipe: Recipe) -> list[str]:
    return [blob.key for blob in recipe.blobs()]
