"""The engine as its worker sees it, and its results before images are encoded."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from msgspec import structs

from assets.content import Blob
from assets.recipe import Recipe
from serving.generation.contract import ClusterDirectives, GenerationResult, GenerationTask


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """A JPEG or PNG file."""

    data: bytes
    encode_ms: float


@dataclass(frozen=True, slots=True)
class Rendered:
    """A generation whose images are still being encoded; ``partial`` lacks them."""

    partial: GenerationResult
    images: tuple[Future[EncodedImage], ...]

    def completed(self, images: Sequence[EncodedImage]) -> GenerationResult:
        encode_ms = sum(image.encode_ms for image in images)
        return structs.replace(
            self.partial,
            images=tuple(image.data for image in images),
            timings=structs.replace(self.partial.timings, encode_image_ms=encode_ms),
        )

    def result(self) -> GenerationResult:
        return self.completed([image.result() for image in self.images])


#: In another thread or immediately.
SubmitEncoding = Callable[[Callable[[], EncodedImage]], Future[EncodedImage]]


#: Starts copying a step's previews from the device; returns how to wait for and encode them as
#: JPEG, one per image of the batch, in any thread.
StartPreview = Callable[[], Callable[[], Sequence[bytes]]]


class GenerationObserver(Protocol):
    """Observes a generation from its thread; must not block."""

    def is_cancelled(self) -> bool:
        """Whether to stop the generation."""

    def stepped(self, step: int, first: int, images: int, preview: StartPreview) -> None:
        """``step`` (from 1) of a batch of ``images``, from the request's image ``first``, is done
        or among the last that were queued on the device."""


class Unobserved:
    """The observer of a generation that nobody follows or cancels."""

    def is_cancelled(self) -> bool:
        return False

    def stepped(self, step: int, first: int, images: int, preview: StartPreview) -> None:
        pass


UNOBSERVED = Unobserved()


@dataclass(frozen=True, slots=True)
class DeviceResidency:
    """What an engine can generate with immediately.

    ``ready``: content keys that need no fetch; ``models``: the UNets among them, by which requests
    are grouped; ``checkpoint_capacity``: models that fit.
    """

    ready: frozenset[str]
    models: frozenset[str]
    checkpoint_capacity: int
    eviction_policies: Mapping[str, str] = field(default_factory=dict)


class Leased(Protocol):
    """A recipe with the leases of its assets, as its engine prepared it."""

    def release(self) -> None: ...


class GenerationEngine(Protocol):
    """``prepare`` runs in any thread; ``warm_up``, ``render`` and ``digest`` in one."""

    name: str
    #: Why it must stop generating.
    unhealthy: str | None

    def prepare(self, recipe: Recipe, tenant_id: str) -> Leased: ...

    def warm_up(self, sizes: Sequence[tuple[int, int]], batches: Sequence[int]) -> None: ...

    def render(
        self,
        prepared: Any,
        request: GenerationTask,
        observer: GenerationObserver,
        submit: SubmitEncoding,
    ) -> Rendered: ...

    def digest(self) -> str: ...

    def resident(self) -> Mapping[str, frozenset[str]]: ...

    def residency(self) -> DeviceResidency: ...

    def apply_directives(self, directives: ClusterDirectives) -> None: ...

    def forget(self, keys: Collection[str]) -> None: ...

    def warm(self, blobs: Sequence[Blob]) -> str: ...
