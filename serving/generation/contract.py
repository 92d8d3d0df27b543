"""The contract: every message of a generation that crosses processes or is stored.

Messages are msgspec structs: unknown fields are skipped, missing ones take their defaults, so a
new field may be added anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from msgspec import Struct, field

from assets.recipe import Recipe
from assets.selection import AssetSelection
from orchestrator.asset_fetch import AssetFetch
from serving.generation.prompts import Syntax
from serving.generation.samplers import Sampler, Schedule, evaluations
from serving.generation.styles import Style

ImageEncoding = Literal["jpeg", "png", "webp"]

#: Wait for a node; start and import; load the model; generate a first image.
Phase = Literal["node", "process", "model", "warm-up", "ready"]
PHASES: tuple[Phase, ...] = get_args(Phase)

#: What a request reports of itself, each with the ones before: changes of its state, steps of the
#: generation, previews of its images.
Detail = Literal["nothing", "states", "steps", "previews"]
DETAILS: tuple[Detail, ...] = get_args(Detail)

#: Most images denoised in one batch.
MAX_BATCH = 4
REPORT_TIMEOUT_S = 10.0
#: A caller's wait; the transfer itself continues.
WARM_TIMEOUT_S = 60.0


class Wildcard(Struct, frozen=True):
    """``__name__`` in a prompt stands for one of ``texts``."""

    name: str
    texts: tuple[str, ...]


class GenerationParams(Struct, frozen=True, kw_only=True):
    """What decides the pixels besides assets, seeds and size. Embedded whole in requests and tasks:
    a new field is one edit."""

    prompt: str
    prompt_2: str | None = None
    negative_prompt: str | None = None
    negative_prompt_2: str | None = None
    sampler: Sampler = "DDIM"
    #: None: the sampler's own.
    schedule: Schedule | None = None
    steps: int = 30
    cfg_scale: float = 12.0
    #: How the prompts are read; "plain": without syntax.
    syntax: Syntax = "weighted"
    #: Each image's seed chooses among ``{a|b}`` and the texts of wildcards.
    dynamic_prompts: bool = False
    wildcards: tuple[Wildcard, ...] = ()
    #: Applied in order to both prompts.
    styles: tuple[Style, ...] = ()
    #: Counted as in A1111: 1 and 2 are SDXL's own. None: its own.
    clip_skip: int | None = None
    encoding: ImageEncoding = "jpeg"

    @property
    def is_guided(self) -> bool:
        """Whether the negative prompt has an effect (classifier-free guidance)."""
        return self.cfg_scale > 1.0


class GenerationRequest(Struct, frozen=True, kw_only=True, tag_field="type", tag="request"):
    """A validated request with unresolved asset names; jobs store it.

    One seed per image. Sizes are in pixels; None: the native size.
    """

    params: GenerationParams
    seeds: tuple[int, ...]
    selection: AssetSelection = field(default_factory=AssetSelection)
    width: int | None = None
    height: int | None = None
    #: What the client left to its assets' hints: names of fields, and "prompt" for templates.
    defaulted: tuple[str, ...] = ()
    #: Write the parameters into the images; None: as the tenant has set it.
    metadata: bool | None = None
    #: Judge the images where the operator's policy does so on request.
    enable_safety: bool = False
    #: Within the organisation; higher goes first.
    priority: int = 0
    #: A pool's name or kind of GPU; empty: the tenant's default.
    gpu: str = ""


class AssetMark(Struct, frozen=True):
    """An asset in an image's metadata. ``sha256``: of the uploaded file; empty: not for this
    tenant."""

    name: str
    sha256: str = ""
    weight: float = 1.0
    #: None: as ``weight``.
    text_weight: float | None = None


class Provenance(Struct, frozen=True, kw_only=True):
    """The assets that an image's metadata names."""

    model: AssetMark
    vae: AssetMark | None = None
    loras: tuple[AssetMark, ...] = ()
    inversions: tuple[AssetMark, ...] = ()


class GenerationTask(Struct, frozen=True, kw_only=True, tag_field="type", tag="task"):
    """A resolved request: the recipe and everything that decides the pixels.

    Sizes are in pixels; one seed per image.
    """

    id: str
    recipe: Recipe
    params: GenerationParams
    seeds: tuple[int, ...]
    width: int
    height: int
    #: Whose tier share the assets count against.
    tenant_id: str = ""
    #: Empty: the first configured.
    pool: str = ""
    #: None: the images have no metadata.
    provenance: Provenance | None = None

    @property
    def pixels(self) -> int:
        """Of all images."""
        return self.width * self.height * len(self.seeds)

    @property
    def evaluations(self) -> int:
        """Of the UNet, for one image."""
        return evaluations(self.params.sampler, self.params.steps)

    @property
    def work(self) -> float:
        """Evaluations of the UNet × pixels × images. With guidance each has two rows; without, it
        counts half."""
        return self.evaluations * self.pixels * (1.0 if self.params.is_guided else 0.5)


class Attempt(Struct, frozen=True, tag_field="type", tag="attempt"):
    """A task for a replica, with the detail that its followers want."""

    task: GenerationTask
    detail: Detail = "nothing"


class Inquiry(Struct, frozen=True, tag_field="type", tag="inquiry"):
    """Asks a replica for a request's last step; sets what it reports from now on."""

    id: str
    detail: Detail


class Timings(Struct, frozen=True):
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


class Swap(Struct, frozen=True):
    """Parameters written by a recipe switch, by method."""

    copied: int
    touched: int
    restored: int
    kept: int


class AppliedHint(Struct, frozen=True):
    """A value that an asset gave to a request, by the field's name."""

    field: str
    value: str | int | float
    #: As the request names it.
    asset: str


class Safety(Struct, frozen=True):
    """The policy's ruling on one image. ``removed``: it is withheld, and its bytes are empty."""

    removed: bool
    score: float | None = None


class GenerationResult(Struct, frozen=True):
    """The images, in the order of the seeds, and the receipt's data."""

    images: tuple[bytes, ...]
    replica: str
    fetches: tuple[AssetFetch, ...]
    swap: Swap
    timings: Timings
    matched: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    #: How many images were denoised together, in their order.
    batches: tuple[int, ...] = ()
    hints: tuple[AppliedHint, ...] = ()
    #: One for each image, if they were judged.
    safety: tuple[Safety, ...] = ()
    #: Of each image, where they were chosen by seed.
    prompts: tuple[str, ...] = ()
    #: Name and version of each style.
    styles: tuple[tuple[str, int], ...] = ()
    #: By shape: UNet calls without a captured graph, uncompiled UNet or VAE calls.
    fallbacks: Mapping[str, int] = field(default_factory=dict)

    def is_removed(self, index: int) -> bool:
        return bool(self.safety) and self.safety[index].removed

    @property
    def removed(self) -> int:
        """The number of withheld images."""
        return sum(each.removed for each in self.safety)


class ClusterDirectives(Struct, frozen=True):
    """Instructions of the dispatcher to every replica.

    ``nodes``: blob endpoints. ``pins``: the reason to keep each key; None: unknown yet.
    """

    nodes: Mapping[str, str] = field(default_factory=dict)
    pins: Mapping[str, str] | None = None


class Residency(Struct, frozen=True):
    """The replicas with a blob on their device, and its tiers by node."""

    replicas: tuple[str, ...]
    nodes: Mapping[str, tuple[str, ...]]


class ReplicaReport(Struct, frozen=True):
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
