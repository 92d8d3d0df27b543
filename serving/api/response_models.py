"""The OpenAPI document's response models, tested against real responses."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, RootModel

Json = dict[str, object]


class ErrorDetail(BaseModel):
    loc: list[str | int]
    msg: str
    type: str


class Error(BaseModel):
    """The body of every error; only 422s have ``detail``."""

    code: str
    message: str
    request_id: str
    detail: list[ErrorDetail] | None = None


class Alive(BaseModel):
    status: Literal["ok"]


class Ready(BaseModel):
    """``ok`` or an error type by component."""

    status: Literal["ready", "not ready"]
    database: str
    store: str
    pools: str


class BusyReplica(BaseModel):
    """A replica, its process, running requests, seconds until it is free, values by tier and active
    eviction policy by tier."""

    id: str
    state: Literal["up", "down"]
    pid: int | None
    running: int
    free_in_s: float
    resident: dict[str, int]
    eviction: dict[str, str]


class Queue(BaseModel):
    """A pool's queue and measured speeds (work is steps × pixels × images)."""

    waiting: int
    held: int
    work_per_s: float
    bytes_per_s: dict[str, float]
    prefetched: int
    prefetch_precision: float
    quarantined: int


class Status(BaseModel):
    waiting: int
    replicas: list[BusyReplica]
    pools: dict[str, Queue]


Phase = Literal["node", "process", "model", "warm-up", "ready"]


class StartProgress(BaseModel):
    """The phase of a start, and the seconds of each."""

    phase: Phase
    start_s: dict[Phase, float]


class PoolReplica(BaseModel):
    id: str
    state: Literal["up", "starting"]
    phase: Phase | None
    start_s: dict[Phase, float]
    running: int
    idle_s: float | None


class PoolEventDetails(BaseModel):
    """Ordered: requests ``waiting``; ready: ``seconds`` by phase; failed: the ``reason``."""

    waiting: int | None = None
    seconds: dict[Phase, float] | None = None
    reason: str | None = None


class PoolEvent(BaseModel):
    at_s: float
    what: Literal["ordered", "ready", "released", "failed"]
    replica: str
    details: PoolEventDetails


class Pool(BaseModel):
    """A GPU pool; from ``waiting`` on, if it responds."""

    name: str
    gpu: str
    queue_size: int
    min: int
    max: int
    idle_s: float
    waiting: int | None = None
    replicas: list[PoolReplica] | None = None
    starting: StartProgress | None = None
    outdated: list[str] | None = None
    stopping: list[str] | None = None
    events: list[PoolEvent] | None = None


class Pools(BaseModel):
    data: list[Pool]


class Asset(BaseModel):
    """An asset; fields from ``visibility`` on need the right to inspect it."""

    id: str
    asset_type: str
    name: str
    version: int
    owner: str
    description: str
    size_bytes: int
    status: str
    status_details: str
    created_at: str
    tenant_uuid: str
    is_public: bool
    file_structure: str
    data: Json
    tags: list[str]
    license: str | None
    #: The former name.
    licence: str | None
    preview_url: str | None
    expires_at: str | None
    revision: int | None = None
    visibility: str | None = None
    shared_with: list[str] | None = None
    created_by: str | None = None
    sha256: str | None = None
    uses: int | None = None
    last_used_at: str | None = None
    url: str | None = None
    hf_repo: str | None = None
    report: Json | None = None


class Transfer(BaseModel):
    """A file transfer; disallowed URLs are empty."""

    type: Literal["presigned-url", "multipart"]
    put_url: str | None = None
    get_url: str | None = None
    sha256: str | None = None
    upload_url: str | None = None


class OneAsset(BaseModel):
    asset: Asset


class AssetWithTransfer(OneAsset):
    transfer_api: Transfer


class CreatedAsset(AssetWithTransfer):
    """A new asset; the empty ``token`` is for OctoAI's clients."""

    token: str


class AssetPage(BaseModel):
    """A page of assets; ``next`` is the next ``after``."""

    data: list[Asset]
    has_more: bool
    total: int
    next: str | None


class ArrivedPart(BaseModel):
    number: int
    size_bytes: int


class MissingPart(ArrivedPart):
    """A part to upload, from ``offset`` on."""

    offset: int
    put_url: str


class UploadState(BaseModel):
    asset_id: str
    size_bytes: int
    part_bytes: int
    part_count: int
    parts: list[ArrivedPart]
    missing: list[MissingPart]


class DeletedAsset(BaseModel):
    id: str
    deleted_at: str


class Completed(BaseModel):
    error: None


class PartResidency(BaseModel):
    """A part's replicas, and tiers by node."""

    component: str
    content_key: str
    size_bytes: int
    replicas: list[str]
    nodes: dict[str, list[str]]


class AssetResidency(BaseModel):
    asset_id: str
    parts: list[PartResidency]


class Warmed(BaseModel):
    """The tier on which each replica found the asset."""

    asset_id: str
    found_on: dict[str, str]


class Received(BaseModel):
    size_bytes: int


class Image(BaseModel):
    """An image; the constant safety fields are for OctoAI's clients."""

    image_b64: str
    removed_for_safety: bool
    safety_score: float | None
    seed: int


class Generated(BaseModel):
    images: list[Image]
    prediction_time_ms: float
    request_id: str
    receipt: Json
    timings_ms: dict[str, float]


class Accepted(BaseModel):
    """An accepted asynchronous job."""

    response_id: str
    poll_url: str


class GeneratedOrAccepted(RootModel[Generated | Accepted]):
    """Images, or an accepted job."""


class StoredImage(BaseModel):
    file_key: str
    public_url: str


class GeneratedFiles(StoredImage):
    """Image URLs, the first also at the top level."""

    files: list[StoredImage]
    seeds: list[int]
    request_id: str
    receipt: Json


class JobState(BaseModel):
    """A job's state; a failed job is ``completed``, with the error as its result."""

    status: Literal["pending", "running", "completed"]
    state: Literal["pending", "running", "completed", "failed", "cancelled"]
    response_url: str | None = None
    starting: Json | None = None
    progress: Json | None = None


class ListedJob(BaseModel):
    id: str
    status: Literal["pending", "running", "completed", "failed", "cancelled"]
    created_at: str
    finished_at: str | None
    images: int
    steps: int
    gpu: str
    priority: int
    key: str
    attempts_failed: int


class JobPage(BaseModel):
    data: list[ListedJob]
    has_more: bool
    next: str | None


class Organisation(BaseModel):
    name: str
    id: str
    role: str
    key: str
    member: str | None
    plan: Json
    used: Json


class UsageRow(BaseModel):
    """A ledger row: an image, attempt or hour of storage."""

    id: int
    at: str
    kind: Literal["picture", "attempt", "storage"]
    reference: str
    quantity: float
    unit: str
    member: str | None
    key: str | None
    details: Json


class UsagePage(BaseModel):
    """A page of the ledger, with the period's ``totals``."""

    data: list[UsageRow]
    has_more: bool
    next: int | None
    totals: dict[str, float]


class AuditEntry(BaseModel):
    model_config = ConfigDict(extra="allow")

    id: int
    at: str
    actor: str
    act: str
    subject: str
    details: Json


class Acts(BaseModel):
    data: list[AuditEntry]


class MemberInfo(BaseModel):
    id: str
    name: str
    role: str
    created_at_s: float


class Members(BaseModel):
    data: list[MemberInfo]


class RemovedMember(BaseModel):
    name: str
    removed: bool


class Key(BaseModel):
    """An API key without its secret."""

    id: str
    tenant: str
    label: str
    created_at_s: float
    revoked_at_s: float | None
    role: str
    expires_at_s: float | None
    member: str | None


class Keys(BaseModel):
    data: list[Key]


class NewKey(BaseModel):
    """A new API key; ``key`` is shown only once."""

    id: str
    key: str


class RotatedKey(NewKey):
    replaces: str


class RevokedKey(BaseModel):
    id: str
    revoked: bool
