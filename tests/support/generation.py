"""Generation requests and tasks, and the generation of a single image with an engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from assets.recipe import Recipe
from serving.generation.contract import GenerationParams, GenerationRequest, GenerationTask
from serving.generation.engine import Unobserved

REQUEST = GenerationRequest(params=GenerationParams(prompt="a star"), seeds=(1,))


def task_of(
    name: str,
    recipe: Recipe,
    prompt: str,
    width: int,
    height: int,
    seeds: tuple[int, ...],
    tenant_id: str = "",
    **params: Any,
) -> GenerationTask:
    return GenerationTask(
        id=name,
        recipe=recipe,
        params=GenerationParams(prompt=prompt, **params),
        seeds=seeds,
        width=width,
        height=height,
        tenant_id=tenant_id,
    )


def changed(task: GenerationTask, **changes: Any) -> GenerationTask:
    """Return a copy; ``changes`` are fields of the task or of its parameters."""
    own = {name: changes.pop(name) for name in GenerationTask.__struct_fields__ if name in changes}
    return replace(task, params=replace(task.params, **changes), **own)


class CancelledWhen(Unobserved):
    """Cancels a generation."""

    def __init__(self, condition: Callable[[], bool]) -> None:
        self.is_cancelled = condition  # type: ignore[method-assign]


def image_of(engine: Any, request: GenerationTask) -> bytes:
    """Generate, release leases and return the first image."""
    prepared = engine.prepare(request.recipe)
    try:
        image: bytes = engine.generate(prepared, request).images[0]
        return image
    finally:
        prepared.release()
