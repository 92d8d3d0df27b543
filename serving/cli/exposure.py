"""``doctor``'s checks of what others reach or read: the checklist of docs/security.md."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy.engine import make_url

from serving.cli.finding import Finding
from serving.settings import Settings

_LOOPBACK = ("127.0.0.1", "localhost", "::1", "")


def exposure(settings: Settings) -> Iterator[Finding]:
    yield from _folders(settings)
    yield from _address(settings)
    yield from _open_tenant(settings)
    yield from _imports(settings)
    yield from _in_clear(settings)


def _folders(settings: Settings) -> Iterator[Finding]:
    """A user who can write to one of these folders can change what is generated."""
    for what, folder in (
        ("data folder's owner", settings.data_dir),
        ("disk tier's owner", settings.resolved_disk_dir),
        ("host tier's owner", settings.resolved_host_dir),
        ("Ray folder's owner", settings.resolved_ray_temp_dir),
    ):
        try:
            found = os.lstat(folder)
        except FileNotFoundError:
            continue
        mode = stat.S_IMODE(found.st_mode)
        if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode) or mode & 0o022:
            text = f"{folder}: user {found.st_uid}, mode {mode:o}"
            yield Finding(
                what, "fail", text, "others may write there: remove it, or configure another"
            )
        elif mode & 0o055:
            yield Finding(what, "warn", f"{folder}, mode {mode:o}", f"chmod 700 {folder}")
        else:
            yield Finding(what, "ok", f"{folder} is for user {found.st_uid} alone")


def _address(settings: Settings) -> Iterator[Finding]:
    is_secure = settings.resolved_public_url.startswith("https://")
    if settings.host in _LOOPBACK:
        yield Finding("address", "ok", f"{settings.host}: this machine, and proxies on it")
    elif is_secure:
        yield Finding("address", "ok", f"{settings.host}, for {settings.resolved_public_url}")
    else:
        remedy = "keys travel in clear: put a proxy with TLS before it and set AO_PUBLIC_URL"
        yield Finding("address", "warn", f"{settings.host}:{settings.port}, without TLS", remedy)


def _open_tenant(settings: Settings) -> Iterator[Finding]:
    if settings.open_tenant:
        rate = f"{settings.open_requests_per_min} a minute in all"
        found = f"POST /generate asks for no key: {rate}, paid by {settings.open_tenant}"
        yield Finding("open tenant", "warn", found, "unset AO_OPEN_TENANT where that is not wanted")


def _imports(settings: Settings) -> Iterator[Finding]:
    opened = [
        *(scheme for scheme in settings.import_schemes if scheme != "https"),
        *settings.import_networks,
    ]
    if opened:
        remedy = "tenants choose these URLs: unset AO_IMPORT_SCHEMES and AO_IMPORT_NETWORKS"
        yield Finding("imports", "warn", f"beyond https: {', '.join(opened)}", remedy)


def _in_clear(settings: Settings) -> Iterator[Finding]:
    """Passwords and weights on the way to other machines."""
    url = make_url(settings.resolved_database_url)
    is_near = (url.host or "") in _LOOPBACK
    if not is_near and url.query.get("sslmode") not in ("verify-ca", "verify-full"):
        remedy = "add ?sslmode=verify-full to AO_DATABASE_URL"
        yield Finding("database's TLS", "warn", f"{url.host} is not verified", remedy)
    endpoint = _endpoint(settings.store_options)
    if endpoint.scheme == "http" and (endpoint.hostname or "") not in _LOOPBACK:
        remedy = "use https in AO_STORE_OPTIONS"
        yield Finding("store's TLS", "warn", f"{endpoint.netloc} without TLS", remedy)
    if os.environ.get("RAY_AUTH_MODE", "token") != "token":
        remedy = "set RAY_AUTH_MODE=token: anyone who reaches Ray's ports can run code here"
        yield Finding("Ray's token", "fail", "switched off", remedy)


def _endpoint(options: dict[str, Any]) -> Any:
    given = options.get("endpoint_url") or options.get("client_kwargs", {}).get("endpoint_url")
    return urlsplit(str(given or ""))
