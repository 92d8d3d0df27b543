"""The values exchanged between dispatcher and replicas; plain: they cross processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from assets.recipe import Recipe
from orchestrator.asset_fetch import AssetFetch

ImageEncoding = Literal["jpeg", "png"]
Sampler = Literal["DDIM", "K_EULER", "K_EULER_ANCESTRAL", "DPM_PLUS_PLUS_2M_KARRAS"]

#: Wait for a node; start and import; load the model; generate a first image.
Phase = Literal["node", "process", "model", "warm-up", "ready"]
PHASES: tuple[Phase, ...] = get_args(Phase)

REPORT_TIMEOUT_S = 10.0
#: A caller's wait; the transfer itself continues.
WARM_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class GenerationTask:
    """Every parameter that decides the pixels; sizes in pixels, one seed per image."""

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
    #: Whose tier share the assets count against.
    tenant_id: str = ""

    @property
    def work(self) -> float:
        """Steps × pixels × images."""
        return float(self.steps * self.width * self.height * len(self.seeds))


@dataclass(frozen=True, slots=True)
class Timings:
    """Milliseconds of each phase; ``queue_ms`` includes the wait on a busy replica."""

    queue_ms: float = 0.0
    fetch_ms: float = 0.0
    swap_ms: float = 0.0
    encode_prompt_ms: float = 0.0
    denoise_ms: float = 0.0
    decode_ms: float = 0.0
    #: May overlap with the next request.
    encode_image_ms: float = 0.0

    @property
    def engine_s(self) -> float:
        """Engine time: without queueing, fetching and image encoding."""
        engine_ms = self.swap_ms + self.encode_prompt_ms + self.denoise_ms + self.decode_ms
        return engine_ms / 1000


@dataclass(frozen=True, slots=True)
class Swap:
    """Parameters written by a recipe switch, by method."""

    copied: int
    touched: int
    restored: int
    kept: int


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """The images, in the order of the seeds, and the receipt's data."""

    images: tuple[bytes, ...]
    replica: str
    fetches: tuple[AssetFetch, ...]
    swap: Swap
    timings: Timings
    matched: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    #: By shape: UNet calls without a captured graph, uncompiled UNet or VAE calls.
    fallbacks: Mapping[str, int] = field(default_factory=dict)


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
        return replace(
            self.partial,
            images=tuple(image.data for image in images),
            timings=replace(self.partial.timings, encode_image_ms=encode_ms),
        )

    def result(self) -> GenerationResult:
        return self.completed([image.result() for image in self.images])


#: In another thread or immediately.
SubmitEncoding = Callable[[Callable[[], EncodedImage]], Future[EncodedImage]]


@dataclass(frozen=True, slots=True)
class ClusterDirectives:
    """Instructions of the dispatcher to every replica.

    ``nodes``: blob endpoints. ``pins``: the reason to keep each key; None: unknown yet.
    """

    nodes: Mapping[str, str] = field(default_factory=dict)
    pins: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Residency:
    """The replicas with a blob on their device, and its tiers by node."""

    replicas: tuple[str, ...]
    nodes: Mapping[str, tuple[str, ...]]


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


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """A replica's node, process and :class:`DeviceResidency`.

    ``resident``: content keys by tier; empty after a generation, when only ``ready`` surely
    changed.
    """

    id: str
    node: str
    pid: int
    resident: Mapping[str, frozenset[str]]
    ready: frozenset[str] = frozenset()
    models: frozenset[str] = frozenset()
    checkpoint_capacity: int = 1
    #: Serves this node's blobs to others; may be empty.
    url: str = ""
    #: By tier.
    eviction_policies: Mapping[str, str] = field(default_factory=dict)
