"""Request and response bodies of OctoAI's Asset Library."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from assets.asset import ASSET_KINDS, Visibility
from assets.library.editing import Change
from assets.library.uploads import NewAsset
from assets.library.validation import MAX_SHARED_WITH
from assets.prediction import Prediction
from assets.storage.multipart import PART_BYTES
from serving.api.models.hints import AssetHints
from serving.api.request_model import Instant, RequestModel

Short = Annotated[str, Field(max_length=128)]
#: The library checks it, and says what a name is; JSON Schema knows only most of it.
Name = Annotated[Short, Field(json_schema_extra={"minLength": 1, "pattern": r"^\w[\w.\-]*$"})]
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
    ``sha256``, ``prediction_type`` (checkpoints), ``adapter_config`` (LoRAs), ``hints``;
    ``size_bytes`` and ``part_bytes`` ("multipart").
    """

    model_config = ConfigDict(extra="ignore")

    asset_type: Annotated[Short, Field(json_schema_extra={"enum": list(ASSET_KINDS)})]
    name: Name
    data: AssetData = AssetData()
    description: Description | None = None
    is_public: bool | None = False
    visibility: Visibility | None = None
    shared_with: list[Short] = Field(default_factory=list, max_length=MAX_SHARED_WITH)
    new_version: bool = False
    license: Short | None = None
    expires_at: Instant | None = None
    sha256: Sha256 | None = None
    prediction_type: Prediction | None = None
    adapter_config: AdapterConfig | None = None
    hints: AssetHints | None = None
    transfer_api_type: Short | None = None
    size_bytes: int | None = Field(default=None, gt=0, le=2**48)
    part_bytes: int = Field(default=PART_BYTES, gt=0, le=2**48)
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
            hints=None if self.hints is None else self.hints.hints(),
        )


class ChangeAsset(LicensedModel):
    """Changes to an asset; omitted fields stay."""

    model_config = ConfigDict(extra="forbid")

    name: Name | None = None
    description: Description | None = None
    trigger_words: Annotated[list[Short], Field(max_length=32)] | None = None
    tags: Annotated[list[Tag], Field(max_length=32)] | None = None
    license: Short | None = None
    visibility: Visibility | None = None
    shared_with: Annotated[list[Short], Field(max_length=MAX_SHARED_WITH)] | None = None
    expires_at: Instant | Literal["never"] | None = None
    prediction_type: Prediction | Literal["auto"] | None = None
    hints: AssetHints | Literal["auto"] | None = None
    #: Refuse the change if the asset has another one by now.
    revision: int | None = Field(default=None, ge=0, le=2**31 - 1)

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
            self.hints.hints() if isinstance(self.hints, AssetHints) else self.hints,
            self.revision,
        )


class CompleteUpload(RequestModel):
    model_config = ConfigDict(extra="ignore")

    token: Annotated[str, Field(max_length=4096)] | None = None
