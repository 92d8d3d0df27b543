"""``asset-orchestrator doctor``: check the platform's prerequisites and print remedies."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from assets.ids import ulid
from serving.bootstrap.gpus import check_gpus, sized_for
from serving.bootstrap.secret import platform_secret
from serving.cli.exposure import exposure
from serving.cli.finding import Finding
from serving.settings import Settings

_PACKAGES = ("torch", "diffusers", "transformers", "ray", "safetensors")
#: Optional packages and their extras.
_OPTIONAL = {"s3fs": "s3", "psycopg": "postgres"}
_LEAST_FREE_BYTES = 2 << 30
_MOST_SKEW_S = 30.0
#: A float16 UNet.
_SDXL_BYTES = 5 << 30


def examine(settings: Settings) -> Iterator[Finding]:
    """Run every check; exceptions become failed findings."""
    checks: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
        _packages, _device, _folders, _memory, _secret, _pools, _database, _store, _port, _ray,
        exposure,
    )  # fmt: skip
    for check in checks:
        name = check.__name__.strip("_")
        try:
            yield from check(settings)
        except Exception as error:
            yield Finding(name, "fail", f"{type(error).__name__}: {error}", "see the message")


def _packages(settings: Settings) -> Iterator[Finding]:
    versions = [f"{package} {version(package)}" for package in _PACKAGES]
    yield Finding("packages", "ok", ", ".join([f"Python {sys.version.split()[0]}", *versions]))
    needed = {"s3fs": settings.resolved_store_url.startswith("s3:")}
    needed["psycopg"] = settings.resolved_database_url.startswith("postgresql")
    for package, is_needed in needed.items():
        if is_needed:
            try:
                version(package)
            except PackageNotFoundError:
                extra = _OPTIONAL[package]
                remedy = f"pip install 'asset-orchestrator[{extra}]'"
                yield Finding("packages", "fail", f"{package} is not installed", remedy)


def _device(settings: Settings) -> Iterator[Finding]:
    from serving.engine.devices import gpu_names

    wants_gpu = settings.device.startswith("cuda") or any(p.gpu for p in settings.resolved_pools)
    if names := gpu_names():
        yield Finding("device", "ok", ", ".join(names))
    elif wants_gpu and settings.ray_address == "local":
        remedy = "install a torch build for your CUDA and its driver, or set AO_DEVICE=cpu"
        yield Finding("device", "fail", "a GPU is configured, but torch finds none", remedy)
    else:
        cpus = f"no GPU; {os.cpu_count()} CPUs"
        remedy = "" if settings.model is None else "SDXL on a CPU takes minutes per image"
        yield Finding("device", "ok" if settings.model is None else "warn", cpus, remedy)


def _folders(settings: Settings) -> Iterator[Finding]:
    for what, folder, budget in (
        ("data folder", settings.data_dir, _LEAST_FREE_BYTES),
        ("disk tier", settings.resolved_disk_dir, settings.disk_bytes),
    ):
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        if not os.access(existing, os.W_OK):
            yield Finding(what, "fail", f"{existing} is not writable", "set AO_DATA_DIR")
            continue
        free = shutil.disk_usage(existing).free
        text = f"{folder}, {free >> 30} GiB free"
        if free < budget:
            remedy = f"its budget is {budget >> 30} GiB: free disk space or lower the budget"
            yield Finding(what, "warn", text, remedy)
        else:
            yield Finding(what, "ok", text)


def _memory(settings: Settings) -> Iterator[Finding]:
    folder = settings.resolved_host_dir  # raises the remedy if /dev/shm is too small
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    text = f"{folder}, budget {settings.host_bytes >> 20} MiB, {free >> 20} MiB free"
    remedy = "lower AO_HOST_BYTES or free memory" if free < settings.host_bytes else ""
    if not remedy and settings.model is not None and settings.host_bytes < _SDXL_BYTES:
        remedy = "SDXL's UNet does not fit and is read from disk every time: raise AO_HOST_BYTES"
    yield Finding("host tier", "warn" if remedy else "ok", text, remedy)


def _secret(settings: Settings) -> Iterator[Finding]:
    if settings.secret:
        _ = platform_secret(settings)  # raises if too short
        yield Finding("secret", "ok", "from AO_SECRET")
        return
    path = settings.data_dir / "secret"
    if settings.ray_address != "local":
        remedy = "set AO_SECRET to the same value on every node"
        yield Finding("secret", "warn", f"in {path}, on this machine only", remedy)
    elif path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077:
        yield Finding("secret", "fail", f"{path} is readable by others", f"chmod 600 {path}")
    else:
        text = f"in {path}" if path.exists() else "created at the first start"
        yield Finding("secret", "ok", text)


def _pools(settings: Settings) -> Iterator[Finding]:
    if settings.ray_address == "local":
        from serving.engine.devices import gpu_names

        gpus = len(gpu_names())
        settings = sized_for(settings, gpus)
        try:
            check_gpus(settings, gpus)
        except ValueError as error:
            text, _, remedy = str(error).partition(": ")
            yield Finding("pools", "fail", text, remedy)
    for pool in settings.resolved_pools:
        text = f"{pool.min} to {pool.max} replicas on {pool.gpu or 'any machine'}"
        yield Finding(f"pool {pool.name}", "ok" if pool.max else "warn", text,
                      "" if pool.max else "raise max: with 0 it generates nothing")  # fmt: skip


def _database(settings: Settings) -> Iterator[Finding]:
    url = settings.resolved_database_url
    path = Path(url.removeprefix("sqlite:///"))
    if url.startswith("sqlite") and not path.exists():
        yield Finding("database", "ok", f"{path}, created at the first start")
        return
    from sqlalchemy import text
    from sqlalchemy.engine import make_url

    from assets.sql.base import connect
    from assets.sql.clock import clock_of

    shown = make_url(url).render_as_string(hide_password=True)
    started = time.perf_counter()
    engine = connect(url)
    with engine.connect() as connection:
        revision = connection.execute(text("select version_num from alembic_version")).scalar()
    spent_ms = (time.perf_counter() - started) * 1000
    yield Finding("database", "ok", f"{shown}, schema {revision}, {spent_ms:.0f} ms")
    yield from _clock("database", clock_of(engine)())
    if url.startswith("sqlite") and settings.ray_address != "local":
        remedy = "gateways on other nodes need PostgreSQL: set AO_DATABASE_URL"
        yield Finding("database", "warn", "SQLite in a cluster", remedy)


def _store(settings: Settings) -> Iterator[Finding]:
    """Write, read and delete under a unique key."""
    from assets.storage.object_store import put_bytes, read_bytes
    from serving.bootstrap.storage import open_store

    url = settings.resolved_store_url
    if url.startswith("file://") and not Path(url.removeprefix("file://")).exists():
        yield Finding("store", "ok", f"{url}, created at the first start")
        return
    store, key, data = open_store(settings), f"doctor/{ulid()}", os.urandom(1 << 16)
    started = time.perf_counter()
    put_bytes(store, key, data)
    try:
        written_s = [stored.changed_at_s for stored in store.list("doctor/") if stored.key == key]
        if read_bytes(store, key) != data:
            yield Finding("store", "fail", url, "it does not return the bytes that were written")
            return
    finally:
        store.delete(key)
    spent_ms = (time.perf_counter() - started) * 1000
    yield Finding("store", "ok", f"{url}, written, read and deleted in {spent_ms:.0f} ms")
    if written_s:
        yield from _clock("store", written_s[0])


def _clock(service: str, service_now_s: float) -> Iterator[Finding]:
    """Clock skew affects claims, signatures and expiries."""
    ahead_s = time.time() - service_now_s
    if abs(ahead_s) > _MOST_SKEW_S:
        direction = "ahead of" if ahead_s > 0 else "behind"
        text = f"this machine's is {abs(ahead_s):.0f} s {direction} the {service}'s"
        yield Finding("clock", "warn", text, "synchronise both by NTP; S3 refuses more than 900 s")


def _port(settings: Settings) -> Iterator[Finding]:
    address = f"{settings.host}:{settings.port}"
    with socket.socket() as probe:
        probe.settimeout(2)
        if probe.connect_ex((settings.host, settings.port)) == 0:
            remedy = "set AO_PORT, unless the platform is already running"
            yield Finding("port", "warn", f"{address} is in use", remedy)
        else:
            yield Finding("port", "ok", f"{address} is free")


def _ray(settings: Settings) -> Iterator[Finding]:
    address = settings.ray_address
    if address == "local":
        yield Finding("ray", "ok", "started on this machine by `serve`")
        return
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=5):
        pass
    token_file = Path("~/.ray/auth_token").expanduser()
    has_token = bool(os.environ.get("RAY_AUTH_TOKEN")) or token_file.exists()
    remedy = "" if has_token else "put the cluster's token into RAY_AUTH_TOKEN or ~/.ray/auth_token"
    yield Finding("ray", "ok" if has_token else "warn", f"{address} answers", remedy)
