"""The settings of the platform, read from the environment (prefix ``AO_``)."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from assets.failpoint import Failpoint
from assets.prediction import Prediction
from assets.remote.huggingface import HUB
from orchestrator.errors import TierUnusable
from router.pool import Pool

#: The default number of replicas without GPUs.
_REPLICAS = 2
_POOL_NAME = re.compile(r"[a-z][a-z0-9]{0,31}")


def _default_data_dir() -> Path:
    home = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return Path(home) / "asset-orchestrator"


class PoolSettings(BaseModel):
    """A pool of replicas on one kind of GPU; the fields are those of router.pool.Pool."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    gpu: str = ""
    queue_size: int = Field(default=2, ge=0)
    min: int = Field(default=0, ge=0)
    max: int = Field(default=1, ge=0)
    idle_s: float = Field(default=180.0, ge=0)


class Settings(BaseSettings):
    """All settings. The defaults serve the miniature on one machine with SQLite and a folder."""

    model_config = SettingsConfigDict(
        env_prefix="AO_", extra="forbid", frozen=True, use_attribute_docstrings=True
    )

    data_dir: Path = Field(default_factory=_default_data_dir)
    """The folder for everything kept on this machine; by default under `$XDG_DATA_HOME`."""
    database_url: str = ""
    """SQLite in the data folder when empty; `postgresql+psycopg://…` on a cluster (extra
    `postgres`)."""
    store_url: str = ""
    """The object store: a folder in the data folder when empty, or `s3://bucket/prefix` (extra
    `s3`)."""
    store_options: dict[str, object] = Field(default_factory=dict)
    """fsspec options of the object store, as JSON."""
    secret: str = ""
    """Signs URLs and salts content keys; the same on every node. Made once in the data folder when
    empty."""

    model: Path | None = None
    """An SDXL diffusers folder or single file; the miniature when unset."""
    prediction_type: Prediction | Literal["auto"] = "auto"
    """What the model predicts where its files do not say: `epsilon`, `v_prediction`,
    `v_prediction_zero_snr`."""
    device: str = "auto"
    """`auto`, `cpu` or `cuda`."""
    threads_per_replica: int = 1
    """Threads of a replica that generates on the CPU."""

    disk_dir: Path | None = None
    """The disk tier's folder; in the data folder when unset. `{node}` stands for the node's ID."""
    disk_bytes: int = 20 << 30
    """Budget of the disk tier."""
    host_dir: Path | None = None
    """The host tier's folder; in `/dev/shm` when unset."""
    host_bytes: int = 1 << 30
    """Budget of the host tier."""
    device_bytes: int = 0
    """Budget of the GPU tier; 0 takes what the card has to spare."""
    pristine: Literal["auto", "device", "host"] = "auto"
    """Where pristine weights are kept: `device`, `host` (pinned memory), or `auto`: `host` on a
    card without room for two checkpoints."""
    pristine_bytes: int = 0
    """Budget for pristine weights in host memory; 0 is three models."""
    compile: Literal["auto", "off", "regional", "full"] = "auto"
    """The UNet through torch.compile: `off`, `regional`, `full`, or `auto`: `regional` on CUDA.
    Compiled code is kept in the data folder."""
    compile_vae: bool = True
    """Compile the VAE's decoder with the UNet."""
    graphs: Literal["auto", "on", "off"] = "auto"
    """Capture one CUDA graph per warmed size and batch: `on`, `off`, or `auto`: on CUDA. On a CPU
    `on` is a stand-in for tests."""
    keep_cross_kv: bool = True
    """Compute the prompt's keys and values once per image instead of once per step."""
    attention: tuple[Literal["cudnn", "flash", "efficient", "math"], ...] | None = None
    """JSON list: the order in which attention kernels are tried (`cudnn`, `flash`, `efficient`,
    `math`); by the GPU when unset, PyTorch's own order when `[]`."""
    cudnn_benchmark: bool = False
    """Let cuDNN time its algorithms at the start. Replicas may then differ in the last bits."""
    prompt_cache_bytes: int = Field(default=64 << 20, ge=0)
    """Budget per device for embeddings of tenants' prompts; 0 disables the cache."""
    warm_sizes: tuple[str, ...] = ()
    """JSON list of sizes to compile and capture before a replica is up, such as `["1024x1024",
    "832x1216"]`; the native size when empty. Other sizes run uncompiled and are counted
    (`ao_unet_fallbacks_total`)."""
    warm_batches: tuple[int, ...] = (1,)
    """JSON list of batch sizes to compile and capture."""
    warm_chunks: tuple[int, ...] = (1, 2)
    """JSON list of prompt lengths to compile and capture, in chunks of 75 tokens; longer prompts
    run uncompiled."""

    host: str = "127.0.0.1"
    """The address that gateways listen on."""
    port: int = 8000
    """The port that gateways listen on."""
    public_url: str = ""
    """The origin in URLs; made of host and port when empty."""
    gateways: int = 2
    """Gateway processes."""
    max_connections: int = Field(default=1024, ge=8)
    """Connections of a gateway; more are answered with 503."""
    keep_alive_s: int = Field(default=75, ge=1)
    """Seconds that an idle connection is kept; a proxy's own time must be shorter."""
    replicas: int = Field(default=0, ge=0)
    """Engine replicas; 0 is one per GPU, or 2 without GPUs."""
    pools: dict[str, PoolSettings] = Field(default_factory=dict)
    """Pools of GPUs that sleep and wake, by name, as JSON ([pools.md](pools.md))."""
    ray_address: str = "local"
    """A running Ray cluster's address; `local` starts Ray here."""
    ray_temp_dir: Path | None = None
    """The session folder of a Ray that `serve` starts."""
    ray_namespace: str = "asset-orchestrator"
    """The Ray namespace of the platform's actors."""

    max_pixels: int = Field(default=0, ge=0)
    """Pixels of an image at most; 0 is twice the served model's native square."""
    request_timeout_s: float = 300.0
    """A request's deadline in seconds."""
    drain_s: int = 30
    """Seconds that an ending gateway has to finish its requests."""
    url_expires_s: int = 24 * 3600
    """Lifetime of signed URLs in seconds."""
    queue_per_tenant: int = 64
    """Requests of one tenant that may wait in each pool."""
    queue_total: int = 512
    """Requests that may wait in each pool."""
    open_tenant: str = ""
    """The tenant that pays for `POST /generate` without a key; nobody when empty."""
    open_requests_per_min: int = Field(default=60, ge=1)
    """Requests without a key that are answered per minute."""

    policy_words: Path | None = None
    """A file of words that no prompt may have, one word or phrase a line."""
    policy_url: str = ""
    """An HTTP endpoint that rules on prompts and images ([policy.md](policy.md))."""
    policy_images: Literal["off", "requested", "always"] = "off"
    """Which images the endpoint rules on: none, those of requests with `enable_safety`, or all."""
    policy_timeout_s: float = Field(default=10.0, gt=0)
    """Seconds that the endpoint has to answer."""
    c2pa_certificates: Path | None = None
    """PEM certificates, leaf first, that sign C2PA content credentials into every image (extra
    `c2pa`); none when unset."""
    c2pa_key: Path | None = None
    """The leaf's private key, PEM without a passphrase."""
    c2pa_timestamp_url: str = ""
    """A time-stamping authority for content credentials (RFC 3161); none when empty."""
    effect_probe: bool = True
    """Generate with every upload to see its effect, where the served model is small."""
    keep_originals: bool = True
    """Keep uploaded files for downloads. Without them storage is about half and nothing can be
    downloaded."""

    log_format: Literal["text", "json"] = "text"
    """`text`, or `json` for one object per line."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """`debug`, `info`, `warning` or `error`."""

    import_schemes: tuple[str, ...] = ("https",)
    """JSON list of URL schemes that assets are imported from."""
    import_hosts: tuple[str, ...] = ("*",)
    """JSON list of hosts that assets are imported from."""
    import_networks: tuple[str, ...] = ()
    """JSON list of networks that imports may reach although they are not public."""
    hub_url: str = HUB
    """Hugging Face or a mirror."""

    pictures_kept_s: float = 7 * 24 * 3600.0
    """Seconds that images with a URL are kept (at least as long as results)."""
    results_kept_s: float = 24 * 3600.0
    """Seconds that results of jobs and idempotency keys are kept."""
    reconcile_s: float = 600.0
    """Seconds between comparisons of rows and stored bytes."""
    failpoint: Failpoint | None = None
    """For tests: where to kill the process."""

    @property
    def resolved_database_url(self) -> str:
        return self.database_url or f"sqlite:///{self.data_dir / 'platform.db'}"

    @property
    def resolved_store_url(self) -> str:
        return self.store_url or f"file://{self.data_dir / 'store'}"

    @model_validator(mode="after")
    def _check_credentials(self) -> Settings:
        if (self.c2pa_certificates is None) != (self.c2pa_key is None):
            raise ValueError("AO_C2PA_CERTIFICATES and AO_C2PA_KEY belong together: set both")
        return self

    @model_validator(mode="after")
    def _check_pools(self) -> Settings:
        _ = self.resolved_pools
        return self

    @property
    def resolved_pools(self) -> tuple[Pool, ...]:
        """The pools; the first is the default.

        Without AO_POOLS, one pool of constant size: AO_REPLICAS or two, or a replica per GPU
        (:mod:`serving.bootstrap.gpus`).

        Raises:
            ValueError: an invalid name, or a minimum above the maximum.
        """
        if not self.pools:
            count = self.replicas or _REPLICAS
            return (Pool("default", min=count, max=count),)
        for name, pool in self.pools.items():
            if not _POOL_NAME.fullmatch(name):
                raise ValueError(
                    f"AO_POOLS: {name!r} is not a valid name: use a lower-case letter, then up to "
                    "31 lower-case letters or digits"
                )
            if pool.min > pool.max:
                raise ValueError(
                    f"AO_POOLS: {name!r} has min {pool.min} above max {pool.max}: lower min or "
                    "raise max"
                )
        return tuple(Pool(name, **pool.model_dump()) for name, pool in self.pools.items())

    @property
    def resolved_public_url(self) -> str:
        """The origin under which clients reach a gateway, without a trailing slash."""
        return (self.public_url or f"http://{self.host}:{self.port}").rstrip("/")

    @property
    def resolved_disk_dir(self) -> Path:
        return self.disk_dir or self.data_dir / "tiers" / "disk"

    @property
    def resolved_ray_temp_dir(self) -> Path:
        """The folder of a local Ray: private to the user, and short because sockets are in it."""
        return self.ray_temp_dir or Path(f"/tmp/ao-ray-{os.getuid()}-{self._data_dir_id}")

    @property
    def _data_dir_id(self) -> str:
        """An id of the data folder, for the names of folders outside of it."""
        return hashlib.sha256(str(self.data_dir.resolve()).encode()).hexdigest()[:12]

    @property
    def scratch_dir(self) -> Path:
        return self.data_dir / "scratch"

    @cached_property
    def resolved_host_dir(self) -> Path:
        """The host tier's folder: on tmpfs, or in the data folder on a machine without tmpfs.

        Raises:
            TierUnusable: /dev/shm is smaller than the budget (64 MB in many containers).
        """
        if self.host_dir is not None:
            return self.host_dir
        tmpfs = Path("/dev/shm")
        if not tmpfs.is_dir():
            return self.data_dir / "tiers" / "host"
        total = shutil.disk_usage(tmpfs).total
        if total < self.host_bytes:
            raise TierUnusable(
                f"/dev/shm holds {total >> 20} MiB, less than the host tier's budget of "
                f"{self.host_bytes >> 20} MiB: start the container with a larger --shm-size, "
                "lower AO_HOST_BYTES, or set AO_HOST_DIR to another folder"
            )
        return tmpfs / f"asset-orchestrator-{os.getuid()}-{self._data_dir_id}"

    def on_node(self, node: str) -> Settings:
        """These settings with ``{node}`` in AO_DISK_DIR and AO_HOST_DIR replaced by the node's id,
        so that several nodes can run on one machine."""
        folders = {"disk_dir": self.disk_dir, "host_dir": self.host_dir}
        resolved = {
            name: Path(str(folder).replace("{node}", node))
            for name, folder in folders.items()
            if folder is not None
        }
        return Settings(**{**self.model_dump(), **resolved})

    def to_environment(self) -> dict[str, str]:
        """The environment variables from which another process reads these settings."""
        values = self.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
        values["data_dir"] = str(self.data_dir)
        return {
            f"AO_{name.upper()}": value if isinstance(value, str) else json.dumps(value)
            for name, value in values.items()
        }
