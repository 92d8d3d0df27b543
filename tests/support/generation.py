"""Generation of a single image with an engine."""

from __future__ import annotations

from typing import Any

from serving.generation.contract import GenerationTask


def image_of(engine: Any, request: GenerationTask) -> bytes:
    """Generate, release leases and return the first image."""
    prepared = engine.prepare(request.recipe)
    try:
        image: bytes = engine.generate(prepared, request).images[0]
        return image
    finally:
        prepared.release()
