"""The Asset Library's bodies as OctoAI's clients write and read them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from assets.asset import Asset

ENGINE = "image/stable-diffusion-xl-v1-0"


class CreateAsset(BaseModel):
    """``data`` is a union selected by ``asset_type``; it is echoed back as it came."""

    model_config = ConfigDict(extra="ignore")

    asset_type: str
    name: str = Field(max_length=128)
    data: dict[str, Any] = Field(default_factory=dict)
    description: str | None = Field(None, max_length=4096)
    is_public: bool | None = False
    url: str | None = None
    hf_repo: str | None = None


class CompleteUpload(BaseModel):
    model_config = ConfigDict(extra="ignore")

    token: str | None = None


def stored_data(body: CreateAsset) -> dict[str, Any]:
    """The facts of ``data`` that mean something; unknown ones are dropped, not stored."""
    data = body.data
    return {
        "engine": str(data.get("engine") or ENGINE),
        "data_type": str(data.get("data_type") or "fp16"),
        "trigger_words": [str(word)[:128] for word in data.get("trigger_words") or []][:32],
        "checkpoint": data.get("checkpoint") if isinstance(data.get("checkpoint"), str) else None,
    }


def asset_body(asset: Asset) -> dict[str, Any]:
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
        "report": dict(asset.report),
    }


def timestamp(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat()


def _uuid(tenant_id: str) -> str:
    """The commons has no tenant row; clients still parse a UUID."""
    return tenant_id if len(tenant_id) == 36 else "00000000-0000-0000-0000-000000000000"
