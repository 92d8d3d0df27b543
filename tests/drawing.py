"""One picture of an engine, and nothing left leased."""

from __future__ import annotations

from typing import Any

from serving.generation.contract import GenerationTask


def picture_of(engine: Any, request: GenerationTask) -> bytes:
    prepared = engine.prepare(request.recipe)
    try:
        picture: bytes = engine.draw(prepared, request).images[0]
        return picture
    finally:
        prepared.release()
