"""Configuration: the only reader of the environment (prefix ``AO_``)."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from assets.failpoint import Failpoint
from assets.prediction import Prediction
from assets.remote.huggingface import HUB
from assets.storage.private_folder import private_folder
from orchestrator.errors import TierUnusable
from router.autoscaling import Pool

#: The default number of replicas without GPUs.
_REPLICAS = 2
_POOL_NAME = re.compile(r"[a-z][a-z0-9]{0,31}")


def _default_data_dir() -> Path:
    home = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return Path(home) / "asset-orchestrator"


class PoolSettings(BaseModel):
    """A pool of replicas on one kind of GPU; the fields are those of router.autoscaling.Pool."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    gpu: str = ""
    queue_size: int = Field(default=2, ge=0)
    min: int = Field(default=0, ge=0)
    max: int = Field(default=1, ge=0)
    idle_s: float = Field(default=180.0, ge=0)


class Settings(BaseSettings):
    """All settings. The defaults serve the miniature on one machine with SQLite and a folder."""

    model_config = SettingsConfigDict(env_prefix="AO_", extra="forbid", frozen=True)

    data_dir: Path = Field(default_factory=_default_data_dir)
    database_url: str = ""
    store_url: str = ""
    store_options: dict[str, Any] = Field(default_factory=dict)
    secret: str = ""

    model: Path | None = None
    prediction_type: Prediction | Literal["auto"] = "auto"
    device: str = "auto"
    threads_per_replica: int = 1

    disk_dir: Path | None = None
    disk_bytes: int = 20 << 30
    host_dir: Path | None = None
    host_bytes: int = 1 << 30
    device_bytes: int = 0
    pristine: Literal["auto", "device", "host"] = "auto"
    pristine_bytes: int = 0
    compile: Literal["auto", "off", "regional", "full"] = "auto"
    compile_vae: bool = True
    graphs: Literal["auto", "on", "off"] = "auto"
    keep_cross_kv: bool = True
    attention: tuple[Literal["cudnn", "flash", "efficient", "math"], ...] | None = None
    cudnn_benchmark: bool = False
    prompt_cache_bytes: int = Field(default=64 << 20, ge=0)
    warm_sizes: tuple[str, ...] = ()
    warm_batches: tuple[int, ...] = (1,)

    host: str = "127.0.0.1"
    port: int = 8000
    public_url: str = ""
    gateways: int = 2
    max_connections: int = Field(default=1024, ge=8)
    keep_alive_s: int = Field(default=75, ge=1)
    replicas: int = Field(default=0, ge=0)
    pools: dict[str, PoolSettings] = Field(default_factory=dict)
    ray_address: str = "local"
    ray_temp_dir: Path | None = None
    ray_namespace: str = "asset-orchestrator"

    request_timeout_s: float = 300.0
    drain_s: int = 30
    url_expires_s: int = 24 * 3600
    queue_per_tenant: int = 64
    queue_total: int = 512
    open_tenant: str = ""
    open_requests_per_min: int = Field(default=60, ge=1)

    effect_probe: bool = True
    keep_originals: bool = True

    log_format: Literal["text", "json"] = "text"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    import_schemes: tuple[str, ...] = ("https",)
    import_hosts: tuple[str, ...] = ("*",)
    import_networks: tuple[str, ...] = ()
    hub_url: str = HUB

    pictures_kept_s: float = 7 * 24 * 3600.0
    results_kept_s: float = 24 * 3600.0
    reconcile_s: float = 600.0
    failpoint: Failpoint | None = None

    @property
    def resolved_database_url(self) -> str:
        return self.database_url or f"sqlite:///{self.data_dir / 'platform.db'}"

    @property
    def resolved_store_url(self) -> str:
        return self.store_url or f"file://{self.data_dir / 'store'}"

    @property
    def resolved_store_options(self) -> dict[str, Any]:
        """AO_STORE_OPTIONS with defaults for S3: presigned URLs need signature version 4, and a
        ranged read must not be checked against the whole object's checksum."""
        if not self.resolved_store_url.startswith("s3:") or "config_kwargs" in self.store_options:
            return self.store_options
        config = {"signature_version": "s3v4", "response_checksum_validation": "when_required"}
        config["request_checksum_calculation"] = "when_required"
        return {**self.store_options, "config_kwargs": config}

    @model_validator(mode="after")
    def _check_pools(self) -> Settings:
        _ = self.resolved_pools
        return self

    @property
    def resolved_pools(self) -> tuple[Pool, ...]:
        """The pools; the first is the default.

        Without AO_POOLS, one pool of constant size: AO_REPLICAS or two (see :meth:`with_gpus`).

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

    def with_gpus(self, count: int) -> Settings:
        """These settings with one replica per GPU, unless AO_POOLS, AO_REPLICAS or AO_DEVICE says
        otherwise."""
        if self.pools or self.replicas or not count or not self._may_use_gpus:
            return self
        return self.model_copy(update={"replicas": count})

    def check_gpus(self, count: int) -> None:
        """Check that a single machine with ``count`` GPUs can run the pools at their maximum.

        Raises:
            ValueError: it cannot; the message names the setting to change.
        """
        pools = self.resolved_pools
        if kinds := sorted({pool.gpu for pool in pools if pool.gpu}):
            raise ValueError(
                f"AO_POOLS asks for GPUs of kind {', '.join(kinds)}: only nodes of a cluster "
                "(AO_RAY_ADDRESS) have kinds; on one machine leave gpu out"
            )
        most = sum(pool.max for pool in pools)
        if most > count and (self.device.startswith("cuda") or (count and self._may_use_gpus)):
            raise ValueError(
                f"{most} replicas need a GPU each, but this machine has {count}: lower AO_REPLICAS "
                "(or max in AO_POOLS), or set AO_DEVICE=cpu"
            )

    @property
    def _may_use_gpus(self) -> bool:
        return self.device == "auto" or self.device.startswith("cuda")

    @property
    def pool_names(self) -> dict[str, str]:
        """Pool names by pool name and by kind of GPU (the first pool of that kind)."""
        pools = self.resolved_pools
        kinds = {pool.gpu: pool.name for pool in reversed(pools) if pool.gpu}
        return {**kinds, **{pool.name: pool.name for pool in pools}}

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

    @cached_property
    def secret_bytes(self) -> bytes:
        """AO_SECRET, or the secret in the data folder (mode 0600), created on first use."""
        if self.secret:
            return self._checked(self.secret.encode(), "AO_SECRET")
        path = self.data_dir / "secret"
        if not path.exists():
            private_folder(self.data_dir)
            temporary = path.with_name(f".secret.{os.getpid()}.{secrets.token_hex(4)}")
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_hex(32).encode())
                file.flush()
                os.fsync(file.fileno())
            with suppress(FileExistsError):  # another process was first: use its secret
                os.link(temporary, path)
            temporary.unlink()
        return self._checked(path.read_bytes(), str(path))

    @staticmethod
    def _checked(secret: bytes, source: str) -> bytes:
        if len(secret) < 32:
            raise ValueError(
                f"the secret in {source} is shorter than 32 characters: use a longer one"
            )
        return secret

    def to_environment(self) -> dict[str, str]:
        """The environment variables from which another process reads these settings."""
        values = self.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
        values["data_dir"] = str(self.data_dir)
        return {
            f"AO_{name.upper()}": value if isinstance(value, str) else json.dumps(value)
            for name, value in values.items()
        }
