"""The Asset Library's bodies as OctoAI's clients write and read them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from assets.asset import SERVED_ENGINE as ENGINE
from assets.asset import Asset

Short = Annotated[str, Field(max_length=128)]
Tag = Annotated[str, Field(pattern=r"^[\w.\-]{1,64}$")]


class AssetData(BaseModel):
    """What means something of the union that ``asset_type`` selects; the rest is dropped."""

    model_config = ConfigDict(extra="ignore")

    engine: Short | None = None
    data_type: Short | None = None
    trigger_words: Annotated[list[Short], Field(max_length=32)] | None = None
    checkpoint: Short | None = None
    tags: Annotated[list[Tag], Field(max_length=32)] | None = None


class CreateAsset(BaseModel):
    model_config = ConfigDict(extra="ignore")

    asset_type: str
    name: str = Field(max_length=128)
    data: AssetData = AssetData()
    description: str | None = Field(None, max_length=4096)
    is_public: bool | None = False
    url: str | None = None
    hf_repo: str | None = None


class ChangeAsset(BaseModel):
    """What may be changed of an asset; what is left out stays."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(max_length=128)] | None = None
    description: Annotated[str, Field(max_length=4096)] | None = None
    trigger_words: Annotated[list[Short], Field(max_length=32)] | None = None
    tags: Annotated[list[Tag], Field(max_length=32)] | None = None


class CompleteUpload(BaseModel):
    model_config = ConfigDict(extra="ignore")

    token: str | None = None


def stored_data(body: CreateAsset) -> dict[str, Any]:
    """``data`` as it is kept, with the defaults that clients expect."""
    data = body.data
    return {
        "engine": data.engine or ENGINE,
        "data_type": data.data_type or "fp16",
        "trigger_words": data.trigger_words or [],
        "checkpoint": data.checkpoint,
        "tags": data.tags or [],
    }


def asset_body(asset: Asset, preview_url: str | None = None) -> dict[str, Any]:
    """Every field that a client requires is there and not null; ``data`` repeats its type."""
    data: dict[str, Any] = {
        "asset_type": asset.kind,
        "engine": asset.data.get("engine") or ENGINE,
        "data_type": asset.data.get("data_type") or "fp16",
        "file_format": "safetensors",
    }
    if asset.kind in ("lora", "textual_inversion"):
        data["trigger_words"] = list(asset.trigger_words)
    if asset.kind == "lora":
        data["checkpoint"] = asset.data.get("checkpoint")
    return {
        "id": asset.id,
        "asset_type": asset.kind,
        "name": asset.name,
        "owner": asset.owner,
        "description": asset.description,
        "size_bytes": asset.size_bytes,
        "status": asset.status,
        "status_details": asset.status_details,
        "created_at": timestamp(asset.created_at_s),
        "tenant_uuid": _uuid(asset.tenant_id),
        "is_public": asset.is_public,
        "file_structure": "single_file",
        "data": data,
        "tags": list(asset.tags),
        "preview_url": preview_url,
        "report": dict(asset.report),
    }


def timestamp(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat()


def _uuid(tenant_id: str) -> str:
    """The commons has no tenant row; clients still parse a UUID."""
    return tenant_id if len(tenant_id) == 36 else "00000000-0000-0000-0000-000000000000"
