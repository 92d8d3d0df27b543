"""Bodies of generations: images, receipts."""

from __future__ import annotations

from pydantic import BaseModel, RootModel

from assets.content import Component
from orchestrator.asset_fetch import TierName
from serving.generation.service import Generation


class ReceiptAsset(BaseModel):
    """An asset of the recipe: the tier that had it, and how many of the model's parameters it
    changes (null: all)."""

    asset: str
    content_key: str
    found_on: TierName
    bytes_moved: int
    fetch_ms: float
    matched_parameters: int | None


class ReceiptSwap(BaseModel):
    """Parameters written by the switch to the recipe, by method."""

    copied: int
    touched: int
    restored: int
    kept: int


class ReceiptSize(BaseModel):
    """Pixels. ``scaled_to_model``: the model's native size was chosen."""

    width: int
    height: int
    scaled_to_model: bool


class ReceiptHint(BaseModel):
    """A value that an asset gave to a field which the request left out."""

    field: str
    value: str | int | float
    asset: str


class ReceiptStyle(BaseModel):
    """A style; its version changes with its text."""

    name: str
    version: int


class Receipt(BaseModel):
    """How a request was served."""

    assets: list[ReceiptAsset]
    replica: str
    swap: ReceiptSwap
    size: ReceiptSize
    warnings: list[str]
    hints: list[ReceiptHint] = []
    styles: list[ReceiptStyle] = []
    #: How many images were generated together, in their order.
    batches: list[int] = []
    #: Of each image, where they were chosen by seed.
    prompts: list[str] = []

    @classmethod
    def of(cls, generated: Generation) -> Receipt:
        result, size = generated.result, generated.size
        return cls(
            assets=[
                ReceiptAsset(
                    asset=generated.names.get(fetch.key, ""),
                    content_key=fetch.key,
                    found_on=fetch.tier,
                    bytes_moved=fetch.bytes_moved,
                    fetch_ms=fetch.fetch_s * 1000,
                    matched_parameters=result.matched.get(fetch.key),
                )
                for fetch in result.fetches
            ],
            replica=result.replica,
            swap=ReceiptSwap(
                copied=result.swap.copied,
                touched=result.swap.touched,
                restored=result.swap.restored,
                kept=result.swap.kept,
            ),
            size=ReceiptSize(width=size.width, height=size.height, scaled_to_model=size.scaled),
            warnings=list(result.warnings),
            hints=[
                ReceiptHint(field=hint.field, value=hint.value, asset=hint.asset)
                for hint in result.hints
            ],
            batches=list(result.batches),
            prompts=list(result.prompts),
            styles=[ReceiptStyle(name=name, version=version) for name, version in result.styles],
        )


class PhaseTimes(BaseModel):
    """Milliseconds of each phase. The last may overlap with the next request."""

    queue: float
    fetch: float
    swap: float
    encode_prompt: float
    denoise: float
    decode: float
    encode_image: float


class Image(BaseModel):
    """An image; none if the operator's policy withholds it. ``seed``: a string beyond 2**53."""

    image_b64: str | None
    removed_for_safety: bool
    safety_score: float | None
    seed: int | str


class Generated(BaseModel):
    images: list[Image]
    prediction_time_ms: float
    request_id: str
    receipt: Receipt
    timings_ms: PhaseTimes


class Accepted(BaseModel):
    """An accepted asynchronous job."""

    response_id: str
    poll_url: str


class GeneratedOrAccepted(RootModel[Generated | Accepted]):
    """Images, or an accepted job."""


class StoredImage(BaseModel):
    """An image's file; none if the operator's policy withholds it."""

    file_key: str | None
    public_url: str | None
    removed_for_safety: bool = False
    safety_score: float | None = None


class GeneratedFiles(BaseModel):
    """Image URLs, the first that is not withheld also at the top level."""

    file_key: str | None
    public_url: str | None

    files: list[StoredImage]
    seeds: list[int | str]
    request_id: str
    receipt: Receipt


class PartResidency(BaseModel):
    """A part's replicas, and tiers by node."""

    component: Component
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
