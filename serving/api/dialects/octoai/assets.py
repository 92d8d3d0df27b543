"""Request and response bodies of OctoAI's Asset Library."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, ConfigDict, Field, model_validator

from assets.asset import SERVED_ENGINE as ENGINE
from assets.asset import Asset, ImportSource, Visibility
from assets.kinds import KINDS
from assets.library.library import Change
from assets.library.uploads import NewAsset
from assets.library.validation import MAX_SHARED_WITH
from assets.prediction import Prediction
from assets.storage.multipart import PART_BYTES
from serving.api.request_model import RequestModel

Short = Annotated[str, Field(max_length=128)]
Link = Annotated[str, Field(max_length=2048)]
Description = Annotated[str, Field(max_length=4096)]
#: ``licence`` is the former name.
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
#: PEFT's ``adapter_config.json``.
AdapterConfig = Annotated[dict[Annotated[str, Field(max_length=128)], Any], Field(max_length=128)]
Tag = Annotated[str, Field(pattern=r"^[\w.\-]{1,64}$")]


class AssetData(RequestModel):
    """An asset's data; unsupported fields are ignored."""

    model_config = ConfigDict(extra="ignore")

    engine: Short | None = None
    data_type: Short | None = None
    trigger_words: Annotated[list[Short], Field(max_length=32)] | None = None
    checkpoint: Short | None = None
    tags: Annotated[list[Tag], Field(max_length=32)] | None = None


class LicensedModel(RequestModel):
    """Accepts ``licence``, the former name of ``license``."""

    @model_validator(mode="before")
    @classmethod
    def _former_name(cls, value: Any) -> Any:
        if not isinstance(value, dict) or "licence" not in value:
            return value
        fields = dict(value)
        former = fields.pop("licence")
        if fields.setdefault("license", former) is None:
            fields["license"] = former
        if former is not None and fields["license"] != former:
            raise ValueError("license and licence differ; give license alone")
        return fields


class CreateAsset(LicensedModel):
    """A new asset, in OctoAI's format with extensions.

    Extensions: ``visibility``, ``shared_with``, ``new_version``, ``license``, ``expires_at``,
    ``sha256``, ``prediction_type`` (checkpoints), ``adapter_config`` (LoRAs); ``size_bytes`` and
    ``part_bytes`` ("multipart").
    """

    model_config = ConfigDict(extra="ignore")

    asset_type: Short
    name: Short
    data: AssetData = AssetData()
    description: Description | None = None
    is_public: bool | None = False
    visibility: Visibility | None = None
    shared_with: list[Short] = Field(default_factory=list, max_length=MAX_SHARED_WITH)
    new_version: bool = False
    license: Short | None = None
    expires_at: AwareDatetime | None = None
    sha256: Sha256 | None = None
    prediction_type: Prediction | None = None
    adapter_config: AdapterConfig | None = None
    transfer_api_type: Short | None = None
    size_bytes: int | None = Field(None, gt=0, le=2**48)
    part_bytes: int = Field(PART_BYTES, gt=0, le=2**48)
    url: Link | None = None
    hf_repo: Link | None = None
    hf_token_secret: Short | None = None

    def wanted_visibility(self) -> Visibility:
        """Return the visibility, ``shared`` by default with ``shared_with``."""
        if self.visibility is not None:
            return self.visibility
        if self.is_public:
            return "public"
        return "shared" if self.shared_with else "private"

    def new_asset(self, size_bytes: int | None) -> NewAsset:
        """``size_bytes``: of a multipart upload."""
        data = self.data
        labels = {"engine": data.engine, "data_type": data.data_type, "checkpoint": data.checkpoint}
        return NewAsset(
            name=self.name,
            kind=self.asset_type,
            description=self.description or "",
            visibility=self.wanted_visibility(),
            shared_with=self.shared_with,
            expires_at_s=None if self.expires_at is None else self.expires_at.timestamp(),
            new_version=self.new_version,
            url=self.url,
            hf_repo=self.hf_repo,
            size_bytes=size_bytes,
            part_bytes=self.part_bytes,
            tags=data.tags or (),
            trigger_words=data.trigger_words or (),
            license=self.license,
            labels={name: label for name, label in labels.items() if label is not None},
            prediction_type=self.prediction_type,
            adapter_config=self.adapter_config,
            sha256=self.sha256,
        )


class ChangeAsset(LicensedModel):
    """Changes to an asset; omitted fields stay."""

    model_config = ConfigDict(extra="forbid")

    name: Short | None = None
    description: Description | None = None
    trigger_words: Annotated[list[Short], Field(max_length=32)] | None = None
    tags: Annotated[list[Tag], Field(max_length=32)] | None = None
    license: Short | None = None
    visibility: Visibility | None = None
    shared_with: Annotated[list[Short], Field(max_length=MAX_SHARED_WITH)] | None = None
    expires_at: AwareDatetime | Literal["never"] | None = None
    prediction_type: Prediction | Literal["auto"] | None = None
    #: Refuse the change if the asset has another one by now.
    revision: int | None = Field(None, ge=0, le=2**31 - 1)

    def change(self) -> Change:
        expires_at_s = None
        if self.expires_at is not None:
            expires_at_s = 0.0 if self.expires_at == "never" else self.expires_at.timestamp()
        return Change(
            self.name,
            self.description,
            self.trigger_words,
            self.tags,
            self.license,
            self.visibility,
            self.shared_with,
            expires_at_s,
            self.prediction_type,
            self.revision,
        )


class CompleteUpload(RequestModel):
    model_config = ConfigDict(extra="ignore")

    token: Annotated[str, Field(max_length=4096)] | None = None


def asset_body(
    asset: Asset, *, inspected: bool, preview_url: str | None = None
) -> dict[str, object]:
    """Return an asset's JSON; fields required by OctoAI's clients are not null.

    ``inspected`` adds report, sharing and usage.
    """
    data: dict[str, object] = {
        "asset_type": asset.kind,
        "engine": asset.labels.get("engine", ENGINE),
        "data_type": asset.labels.get("data_type", "fp16"),
        "file_format": "safetensors",
    }
    if KINDS[asset.kind].has_trigger_words:
        data["trigger_words"] = list(asset.trigger_words)
    if asset.kind == "lora":
        data["checkpoint"] = asset.labels.get("checkpoint")
    body: dict[str, object] = {
        "id": asset.id,
        "asset_type": asset.kind,
        "name": asset.name,
        "version": asset.version,
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
        "license": asset.license,
        "licence": asset.license,
        "preview_url": preview_url,
        "expires_at": asset.expires_at_s and timestamp(asset.expires_at_s),
    }
    if inspected:
        source = asset.source or ImportSource()
        body |= {
            "revision": asset.revision,
            "visibility": asset.visibility,
            "shared_with": list(asset.shared_with),
            "created_by": asset.created_by,
            "sha256": asset.expected_sha256,
            "uses": asset.uses,
            "last_used_at": asset.last_used_at_s and timestamp(asset.last_used_at_s),
            "url": _without_query(source.url),
            "hf_repo": source.hf_repo,
            "report": dict(asset.report),
        }
    return body


def _without_query(url: str | None) -> str | None:
    """The query may contain a signature."""
    return url and url.partition("?")[0]


def timestamp(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat()


def _uuid(tenant_id: str) -> str:
    """Clients parse it; the commons has no tenant row."""
    return tenant_id if len(tenant_id) == 36 else "00000000-0000-0000-0000-000000000000"
