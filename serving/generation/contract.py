"""What is asked of a replica and what it answers. Plain values: they cross processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Literal

from assets.recipe import Recipe
from orchestrator.provision import AssetFetch

ImageEncoding = Literal["jpeg", "png"]
Sampler = Literal["DDIM", "K_EULER", "K_EULER_ANCESTRAL", "DPM_PLUS_PLUS_2M_KARRAS"]


@dataclass(frozen=True, slots=True)
class GenerationTask:
    """A recipe and everything else that decides the picture. Sizes in pixels, one seed an image."""

    id: str
    recipe: Recipe
    prompt: str
    width: int
    height: int
    seeds: tuple[int, ...]
    prompt_2: str | None = None
    negative_prompt: str | None = None
    negative_prompt_2: str | None = None
    sampler: Sampler = "DDIM"
    steps: int = 30
    cfg_scale: float = 12.0
    encoding: ImageEncoding = "jpeg"
    #: Whose tier share its assets count against.
    tenant_id: str = ""

    @property
    def work(self) -> float:
        """Steps × pixels × images."""
        return float(self.steps * self.width * self.height * len(self.seeds))


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time went, in milliseconds; in the queue, that is both before a replica was
    chosen and behind the drawing that it was busy with."""

    queue_ms: float = 0.0
    fetch_ms: float = 0.0
    swap_ms: float = 0.0
    encode_prompt_ms: float = 0.0
    denoise_ms: float = 0.0
    decode_ms: float = 0.0
    #: JPEG or PNG, on the CPU, while the engine may already work for the next request.
    encode_image_ms: float = 0.0

    @property
    def engine_s(self) -> float:
        """For how long the engine was this request's: not waiting, fetching or encoding images."""
        engine_ms = self.swap_ms + self.encode_prompt_ms + self.denoise_ms + self.decode_ms
        return engine_ms / 1000


@dataclass(frozen=True, slots=True)
class Swap:
    """How many parameters becoming the recipe wrote, by way."""

    copied: int
    touched: int
    restored: int
    kept: int


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """Encoded pictures in the order of the seeds, and the receipt."""

    images: tuple[bytes, ...]
    replica: str
    found: tuple[AssetFetch, ...]
    swap: Swap
    timings: Timings
    matched: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    #: Calls of the UNet without a captured graph and uncompiled calls of UNet or VAE, by shape.
    fallbacks: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """A JPEG or PNG file, and the milliseconds that encoding took."""

    data: bytes
    encode_ms: float


@dataclass(frozen=True, slots=True)
class Rendered:
    """A generation whose images are still being encoded: ``partial`` is its result without them."""

    partial: GenerationResult
    images: tuple[Future[EncodedImage], ...]

    def completed(self, images: Sequence[EncodedImage]) -> GenerationResult:
        """With the images, in order."""
        encode_ms = sum(image.encode_ms for image in images)
        return replace(
            self.partial,
            images=tuple(image.data for image in images),
            timings=replace(self.partial.timings, encode_image_ms=encode_ms),
        )

    def result(self) -> GenerationResult:
        """Wait for the images."""
        return self.completed([image.result() for image in self.images])


#: Has an image encoded, in another thread or at once.
SubmitEncoding = Callable[[Callable[[], EncodedImage]], Future[EncodedImage]]


@dataclass(frozen=True, slots=True)
class ClusterDirectives:
    """What the dispatcher tells every replica: the nodes that can be asked for a blob, each with
    its endpoint, and the content keys that are to be held, each with the reason; None when it
    does not know them yet."""

    nodes: Mapping[str, str] = field(default_factory=dict)
    pins: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Residency:
    """Where a blob lies: the replicas that have it on their device, the tiers of each node."""

    replicas: tuple[str, ...]
    nodes: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class DeviceResidency:
    """What an engine need not fetch to draw with; the UNets among that, by which requests are
    grouped; how many models it has room for; and which law of eviction rules each tier."""

    ready: frozenset[str]
    models: frozenset[str]
    checkpoint_capacity: int
    laws: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """What a replica says of itself: its residency by tier (nothing, after a drawing: then only
    what it can draw with has changed for sure), its node and its process.

    ``ready`` is what it need not fetch to draw with, wherever it keeps it; ``models`` are the
    UNets among that, and ``checkpoint_capacity`` is for how many there is room.
    """

    id: str
    node: str
    pid: int
    resident: Mapping[str, frozenset[str]]
    ready: frozenset[str] = frozenset()
    models: frozenset[str] = frozenset()
    checkpoint_capacity: int = 1
    #: Where other nodes find what this one holds; empty for nowhere.
    url: str = ""
    #: Which law of eviction rules each tier.
    laws: Mapping[str, str] = field(default_factory=dict)
