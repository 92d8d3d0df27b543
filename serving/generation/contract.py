"""The values exchanged between dispatcher and replicas; plain, for they cross processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from assets.recipe import Recipe
from orchestrator.asset_fetch import AssetFetch

ImageEncoding = Literal["jpeg", "png"]
Sampler = Literal["DDIM", "K_EULER", "K_EULER_ANCESTRAL", "DPM_PLUS_PLUS_2M_KARRAS"]

#: The phases of a replica's start: wait for a node, start a process and import, load the model,
#: generate a first image; then the replica is ready.
Phase = Literal["node", "process", "model", "warm-up", "ready"]
PHASES: tuple[Phase, ...] = get_args(Phase)

#: A replica must answer a call about itself within this.
REPORT_TIMEOUT_S = 10.0
#: How long a caller waits for a warm-up; the transfer itself continues.
WARM_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class GenerationTask:
    """A resolved generation: the recipe and every parameter that decides the pixels.

    ``width`` and ``height`` are in pixels; ``seeds`` holds one seed per image.
    """

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
    #: The tenant whose tier share the assets count against.
    tenant_id: str = ""

    @property
    def work(self) -> float:
        """Steps × pixels × images."""
        return float(self.steps * self.width * self.height * len(self.seeds))


@dataclass(frozen=True, slots=True)
class Timings:
    """Duration of each phase of a generation, in milliseconds.

    ``queue_ms`` covers the wait for a replica and the wait on that replica while it is busy.
    """

    queue_ms: float = 0.0
    fetch_ms: float = 0.0
    swap_ms: float = 0.0
    encode_prompt_ms: float = 0.0
    denoise_ms: float = 0.0
    decode_ms: float = 0.0
    #: JPEG or PNG encoding, on the CPU; may overlap with the next request on the engine.
    encode_image_ms: float = 0.0

    @property
    def engine_s(self) -> float:
        """Seconds of engine time: everything but queueing, fetching and image encoding."""
        engine_ms = self.swap_ms + self.encode_prompt_ms + self.denoise_ms + self.decode_ms
        return engine_ms / 1000


@dataclass(frozen=True, slots=True)
class Swap:
    """The number of parameters written by a recipe switch, by method."""

    copied: int
    touched: int
    restored: int
    kept: int


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """The encoded images, in the order of the seeds, and the data of the receipt."""

    images: tuple[bytes, ...]
    replica: str
    fetches: tuple[AssetFetch, ...]
    swap: Swap
    timings: Timings
    matched: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    #: Calls of the UNet without a captured graph and uncompiled calls of UNet or VAE, by shape.
    fallbacks: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """A JPEG or PNG file and its encoding time in milliseconds."""

    data: bytes
    encode_ms: float


@dataclass(frozen=True, slots=True)
class Rendered:
    """A generation whose images are still being encoded; ``partial`` is the result without them."""

    partial: GenerationResult
    images: tuple[Future[EncodedImage], ...]

    def completed(self, images: Sequence[EncodedImage]) -> GenerationResult:
        """Return the result with ``images``, in the order of the seeds."""
        encode_ms = sum(image.encode_ms for image in images)
        return replace(
            self.partial,
            images=tuple(image.data for image in images),
            timings=replace(self.partial.timings, encode_image_ms=encode_ms),
        )

    def result(self) -> GenerationResult:
        """Wait for the images and return the complete result."""
        return self.completed([image.result() for image in self.images])


#: Runs an image encoder, in another thread or immediately.
SubmitEncoding = Callable[[Callable[[], EncodedImage]], Future[EncodedImage]]


@dataclass(frozen=True, slots=True)
class ClusterDirectives:
    """Instructions of the dispatcher to every replica.

    ``nodes`` maps each node that serves blobs to its endpoint. ``pins`` maps each content key
    to keep to the reason; None while the dispatcher does not know the pins yet.
    """

    nodes: Mapping[str, str] = field(default_factory=dict)
    pins: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Residency:
    """The locations of a blob: replicas that hold it on their device, and tiers by node."""

    replicas: tuple[str, ...]
    nodes: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class DeviceResidency:
    """What an engine can generate with immediately.

    ``ready`` holds the content keys that need no fetch; ``models`` the UNets among them, by which
    requests are grouped; ``checkpoint_capacity`` the number of models that fit;
    ``eviction_policies`` the eviction policy of each tier.
    """

    ready: frozenset[str]
    models: frozenset[str]
    checkpoint_capacity: int
    eviction_policies: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """A replica's report: its node, its process and its residency by tier.

    ``resident`` is empty after a generation, when only ``ready`` is certain to have changed.
    ``ready`` holds the content keys that need no fetch, in whichever tier; ``models`` the UNets
    among them; ``checkpoint_capacity`` the number of models that fit.
    """

    id: str
    node: str
    pid: int
    resident: Mapping[str, frozenset[str]]
    ready: frozenset[str] = frozenset()
    models: frozenset[str] = frozenset()
    checkpoint_capacity: int = 1
    #: The endpoint that serves this node's blobs to other nodes; empty if there is none.
    url: str = ""
    #: The eviction policy of each tier.
    eviction_policies: Mapping[str, str] = field(default_factory=dict)
