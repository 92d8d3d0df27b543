"""Examples of requests and responses in the OpenAPI document, as the models that they belong to."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel

from serving.api.dialects.octoai.assets import AssetData, ChangeAsset, CompleteUpload, CreateAsset
from serving.api.dialects.octoai.generate import GenerateRequest
from serving.api.models.assets import (
    ArrivedPart,
    Asset,
    AssetLabels,
    AssetPage,
    AssetWithTransfer,
    Completed,
    CreatedAsset,
    DeletedAsset,
    InspectionReport,
    MissingPart,
    OneAsset,
    Received,
    Transfer,
    UploadState,
)
from serving.api.models.estimate import EstimatedRequest, EstimatedSeconds, FetchInfo
from serving.api.models.generation import (
    AssetResidency,
    Generated,
    GeneratedFiles,
    GeneratedOrAccepted,
    Image,
    PartResidency,
    PhaseTimes,
    Receipt,
    ReceiptAsset,
    ReceiptSize,
    ReceiptSwap,
    StoredImage,
    Warmed,
)
from serving.api.models.images import ImageParameters
from serving.api.models.jobs import JobPage, JobProgress, JobState, ListedJob
from serving.api.models.organisation import (
    Acts,
    AuditEntry,
    Key,
    Keys,
    MemberInfo,
    Members,
    NewKey,
    Organisation,
    OrganisationPlan,
    OrganisationSettings,
    OrganisationUse,
    RemovedMember,
    RevokedKey,
    RotatedKey,
    UsageDetails,
    UsagePage,
    UsageRow,
)
from serving.api.models.pools import (
    Alive,
    BusyReplica,
    Pool,
    PoolEvent,
    PoolEventDetails,
    PoolReplica,
    Pools,
    Queue,
    Ready,
    StartProgress,
    Status,
)
from serving.api.models.styles import NewStyle, StyleInfo, Styles
from serving.api.organisation import ChangeOrganisation, NewApiKey, NewMember, Rotate
from serving.api.previews import GeneratePreview

REQUEST_ID = "req_5f1c9a7e3b2d4c6f"
_URL = "https://images.example.com"
_AT, _LATER = "2026-11-26T09:30:00+00:00", "2026-11-26T09:30:14+00:00"
_AT_S = 1_795_685_400.0
_ASSET_ID = "asset_01kb2r9w3c8vq0m5x7t4n6d1ae"
_TENANT_ID = "7b0c1a52-6a3e-4f2b-9d55-0f6f3c1e8a77"
_KEY_ID, _MEMBER_ID = "key_4b1d8c", "member_2f7a90"
_SHA256 = "5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8"
_CONTENT_KEY = "lora-9f86d081884c7d659a2feaa0c55ad015"
_JOB_ID = "job_5wq0v8m2c7x4"

_REPORT = InspectionReport(
    kind="lora", family="sdxl", evidence="lora_unet_*.lora_down", tensors=2166, dtypes=["F16"],
    matched=722, warnings=[], training={"ss_network_dim": "16"},
)  # fmt: skip
_ASSET = Asset(
    id=_ASSET_ID, asset_type="lora", name="watercolour", version=1, owner="acme",
    description="Loose washes on rough paper", size_bytes=46_137_344, status="ready",
    status_details="", created_at=_AT, tenant_uuid=_TENANT_ID, is_public=False,
    file_structure="single_file",
    data=AssetLabels(
        asset_type="lora", engine="image/stable-diffusion-xl-v1-0", data_type="fp16",
        file_format="safetensors", trigger_words=["wtrclr"], checkpoint=None,
    ),
    tags=["style"], license="CC-BY-4.0", licence="CC-BY-4.0", preview_url=None, expires_at=None,
    revision=3, visibility="organisation", shared_with=[], created_by=_KEY_ID, sha256=_SHA256,
    uses=120, last_used_at=_LATER, url=None, hf_repo=None, report=_REPORT,
)  # fmt: skip
_DOWNLOAD = Transfer(
    type="presigned-url", put_url="", get_url=f"{_URL}/objects/blobs/5e88?token=t", sha256=_SHA256
)
_UPLOAD = Transfer(
    type="presigned-url", put_url=f"{_URL}/objects/uploads/{_ASSET_ID}?token=t", get_url="",
    sha256="",
)  # fmt: skip
_RECEIPT = Receipt(
    assets=[
        ReceiptAsset(
            asset="acme:watercolour", content_key=_CONTENT_KEY, found_on="host", bytes_moved=0,
            fetch_ms=0.4, matched_parameters=722,
        )
    ],
    replica="default-0",
    swap=ReceiptSwap(copied=0, touched=722, restored=0, kept=1680),
    size=ReceiptSize(width=1024, height=1024, scaled_to_model=False),
    warnings=[],
)  # fmt: skip
_GENERATED = Generated(
    images=[Image(image_b64="/9j/4AAQ", removed_for_safety=False, safety_score=None, seed=7)],
    prediction_time_ms=1180.0,
    request_id=REQUEST_ID,
    receipt=_RECEIPT,
    timings_ms=PhaseTimes(
        queue=3.1, fetch=0.4, swap=8.2, encode_prompt=14.0, denoise=943.0, decode=37.0,
        encode_image=18.0,
    ),
)  # fmt: skip
_IMAGE_NAME = "Yw3n0aQkqk0c2v9S7pX1Zr5T.jpeg"
_FILE = StoredImage(file_key=f"images/{_IMAGE_NAME}", public_url=f"{_URL}/files/{_IMAGE_NAME}")
_POOL = Pool(
    name="default", gpu="a10g", queue_size=64, min=0, max=4, idle_s=180.0, waiting=2,
    replicas=[
        PoolReplica(
            id="default-0", state="starting", phase="model",
            start_s={"node": 1.2, "process": 6.5, "model": 3.0}, running=0, idle_s=None,
        )
    ],
    starting=StartProgress(phase="model", start_s={"node": 1.2, "process": 6.5, "model": 3.0}),
    outdated=[], stopping=[],
    events=[
        PoolEvent(
            at_s=_AT_S, what="ordered", replica="default-0", details=PoolEventDetails(waiting=2)
        )
    ],
)  # fmt: skip
_KEY = Key(
    id=_KEY_ID, tenant="acme", label="ci", created_at_s=_AT_S, revoked_at_s=None, role="member",
    expires_at_s=None, member="ada",
)  # fmt: skip
_SECRET = "ao_key_4b1d8c_the-secret-part"

_STYLE = StyleInfo(
    name="house-look",
    prompt="{prompt}, on cream paper, two ink colors",
    negative_prompt="photograph, gradients",
    version=1,
    asset_id=_ASSET_ID,
)

_ALL: tuple[BaseModel, ...] = (
    # requests
    GenerateRequest(
        prompt="a lighthouse at dawn, wtrclr", negative_prompt="blurry", width=1024, height=1024,
        loras={"acme:watercolour": 0.8}, steps=30, cfg_scale=7.0, seed=7, num_images=1,
    ),
    CreateAsset(
        asset_type="lora", name="watercolour", description="Loose washes on rough paper",
        data=AssetData(engine="image/stable-diffusion-xl-v1-0", trigger_words=["wtrclr"]),
        license="CC-BY-4.0",
    ),
    ChangeAsset(description="Loose washes on cold-pressed paper", tags=["style"], revision=3),
    CompleteUpload(token=""),
    GeneratePreview(prompt="a harbour", seed=1),
    NewMember(name="ada", role="member"),
    NewApiKey(label="ci", role="member", member="ada"),
    Rotate(overlap_s=3600.0),
    ChangeOrganisation(image_metadata=False),
    OrganisationSettings(image_metadata=False),
    EstimatedRequest(
        images=1, steps=30, evaluations=30, work=31_457_280.0,
        size=ReceiptSize(width=1024, height=1024, scaled_to_model=False), pool="default", waiting=2,
        replica="default-0",
        seconds=EstimatedSeconds(queue=1.4, fetch=0.1, generate=1.2, total=2.6), is_measured=True,
        gpu_s=1.2,
        fetches=[
            FetchInfo(
                asset="acme:watercolour", content_key=_CONTENT_KEY, found_on="disk",
                size_bytes=46_137_344, seconds=0.1,
            )
        ],
        hints=[], warnings=[],
    ),
    ImageParameters(
        text="a lighthouse\nSteps: 30, Sampler: DDIM, Seed: 7", prompt="a lighthouse",
        negative_prompt="", settings={"Steps": "30", "Sampler": "DDIM", "Seed": "7"},
    ),
    NewStyle(
        name="house-look", prompt="{prompt}, on cream paper, two ink colors",
        negative_prompt="photograph, gradients",
    ),
    # styles
    _STYLE,
    Styles(styles=[_STYLE], next=None),
    # assets
    AssetPage(data=[_ASSET], has_more=False, total=1, next=None),
    AssetWithTransfer(asset=_ASSET, transfer_api=_DOWNLOAD),
    CreatedAsset(asset=_ASSET, transfer_api=_UPLOAD, token=""),
    OneAsset(asset=_ASSET),
    DeletedAsset(id=_ASSET_ID, deleted_at=_AT),
    Completed(error=None),
    Received(size_bytes=46_137_344),
    UploadState(
        asset_id=_ASSET_ID, size_bytes=100_663_296, part_bytes=67_108_864, part_count=2,
        parts=[ArrivedPart(number=1, size_bytes=67_108_864)],
        missing=[
            MissingPart(
                number=2, size_bytes=33_554_432, offset=67_108_864,
                put_url=f"{_URL}/objects/uploads/{_ASSET_ID}.part2?token=t",
            )
        ],
    ),
    AssetResidency(
        asset_id=_ASSET_ID,
        parts=[
            PartResidency(
                component="lora", content_key=_CONTENT_KEY, size_bytes=46_137_344,
                replicas=["default-0"], nodes={"node-a": ["host", "disk"]},
            )
        ],
    ),
    Warmed(asset_id=_ASSET_ID, found_on={"default-0": "store"}),
    # generation and jobs
    GeneratedOrAccepted(_GENERATED),
    _GENERATED,
    GeneratedFiles(
        file_key=_FILE.file_key, public_url=_FILE.public_url, files=[_FILE], seeds=[7],
        request_id=REQUEST_ID, receipt=_RECEIPT,
    ),
    JobState(
        status="running", state="running",
        progress=JobProgress(phase="step", step=12, steps=30, first=0, images=1, fraction=0.4),
    ),
    JobPage(
        data=[
            ListedJob(
                id=_JOB_ID, status="completed", created_at=_AT, finished_at=_LATER, images=1,
                steps=30, gpu="default", priority=0, key=_KEY_ID, attempts_failed=0,
            )
        ],
        has_more=False, next=None,
    ),
    # pools
    Alive(status="ok"),
    Ready(status="ready", database="ok", store="ok", pools="ok"),
    _POOL,
    Pools(data=[_POOL]),
    Status(
        waiting=2,
        replicas=[
            BusyReplica(
                id="default-0", state="up", pid=4711, running=1, free_in_s=2.5,
                resident={"gpu": 3, "host": 41}, eviction={"host": "lru"},
            )
        ],
        pools={
            "default": Queue(
                waiting=2, held=0, work_per_s=3.1e7, bytes_per_s={"store": 4.0e8}, prefetched=12,
                prefetch_precision=0.75, quarantined=0,
            )
        },
    ),
    # organisation
    Organisation(
        name="acme", id=_TENANT_ID, role="owner", key=_KEY_ID, member=None,
        image_metadata=True, plan=OrganisationPlan(
            name="studio", weight=1.0, requests_per_min=600, concurrent_pictures=8,
            storage_bytes=10**12, assets=None, gpu_s_per_month=360_000.0,
        ),
        used=OrganisationUse(
            assets=41, storage_bytes=6_442_450_944, month="2026-11", gpu_s=5120.5,
            reserved_gpu_s=3.0,
        ),
    ),
    UsagePage(
        data=[
            UsageRow(
                id=9001, at=_AT, kind="picture", reference=f"{REQUEST_ID}/0", quantity=1.18,
                unit="gpu_s", member="ada", key=_KEY_ID,
                details=UsageDetails(
                    steps=30, width=1024, height=1024, sampler="DDIM", work=31_457_280.0
                ),
            )
        ],
        has_more=False, next=None, totals={"gpu_s": 1.18, "gb_hours": 0.0},
    ),
    Acts(
        data=[
            AuditEntry(
                id=311, at=_AT, at_s=_AT_S, actor=_KEY_ID, act="asset.share", subject=_ASSET_ID,
                details={"name": "watercolour@1", "visibility": "organisation", "shared_with": []},
            )
        ]
    ),
    MemberInfo(id=_MEMBER_ID, name="ada", role="member", created_at_s=_AT_S),
    Members(data=[MemberInfo(id=_MEMBER_ID, name="ada", role="member", created_at_s=_AT_S)]),
    RemovedMember(name="ada", removed=True),
    Keys(data=[_KEY]),
    NewKey(id=_KEY_ID, key=_SECRET),
    RotatedKey(id="key_9c2e71", key=_SECRET, replaces=_KEY_ID),
    RevokedKey(id=_KEY_ID, revoked=True),
)  # fmt: skip

#: By the model's name.
EXAMPLES: Mapping[str, BaseModel] = {type(example).__name__: example for example in _ALL}
