"""``doctor``'s security checks: the checklist of docs/security.md."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy.engine import make_url

from serving.cli.finding import Finding
from serving.cli.json_body import Json
from serving.settings import Settings

_LOOPBACK = ("127.0.0.1", "localhost", "::1", "")


def exposure(settings: Settings) -> Iterator[Finding]:
    """Check what other users and machines can reach or read."""
    yield from _folders(settings)
    yield from _address(settings)
    yield from _open_tenant(settings)
    yield from _imports(settings)
    yield from _in_clear(settings)


def _folders(settings: Settings) -> Iterator[Finding]:
    """Users who can write here can change generated images."""
    for what, folder in (
        ("data folder's owner", settings.data_dir),
        ("disk tier's owner", settings.resolved_disk_dir),
        ("host tier's owner", settings.resolved_host_dir),
        ("Ray folder's owner", settings.resolved_ray_temp_dir),
    ):
        try:
            status = os.lstat(folder)
        except FileNotFoundError:
            continue
        mode = stat.S_IMODE(status.st_mode)
        if status.st_uid != os.getuid() or not stat.S_ISDIR(status.st_mode) or mode & 0o022:
            text = f"{folder}: user {status.st_uid}, mode {mode:o}"
            yield Finding(
                what,
                "fail",
                text,
                "others can write to it: remove it, or configure another folder",
            )
        elif mode & 0o055:
            yield Finding(what, "warn", f"{folder}, mode {mode:o}", f"chmod 700 {folder}")
        else:
            yield Finding(what, "ok", f"{folder} is private to user {status.st_uid}")


def _address(settings: Settings) -> Iterator[Finding]:
    is_secure = settings.resolved_public_url.startswith("https://")
    if settings.host in _LOOPBACK:
        yield Finding("address", "ok", f"{settings.host}: reachable from this machine only")
    elif is_secure:
        yield Finding("address", "ok", f"{settings.host}, behind {settings.resolved_public_url}")
    else:
        remedy = "keys are sent in clear text: add a TLS proxy and set AO_PUBLIC_URL"
        yield Finding("address", "warn", f"{settings.host}:{settings.port}, without TLS", remedy)


def _open_tenant(settings: Settings) -> Iterator[Finding]:
    if settings.open_tenant:
        rate = f"{settings.open_requests_per_min} requests a minute in total"
        text = f"POST /generate needs no key: {rate}, charged to {settings.open_tenant}"
        yield Finding("open tenant", "warn", text, "unset AO_OPEN_TENANT to require a key")


def _imports(settings: Settings) -> Iterator[Finding]:
    opened = [
        *(scheme for scheme in settings.import_schemes if scheme != "https"),
        *settings.import_networks,
    ]
    if opened:
        remedy = "tenants choose these URLs: unset AO_IMPORT_SCHEMES and AO_IMPORT_NETWORKS"
        yield Finding("imports", "warn", f"not only https: {', '.join(opened)}", remedy)


def _in_clear(settings: Settings) -> Iterator[Finding]:
    """Passwords and weights sent without TLS."""
    url = make_url(settings.resolved_database_url)
    is_local = (url.host or "") in _LOOPBACK
    if not is_local and url.query.get("sslmode") not in ("verify-ca", "verify-full"):
        remedy = "add ?sslmode=verify-full to AO_DATABASE_URL"
        yield Finding("database's TLS", "warn", f"{url.host} is not verified", remedy)
    endpoint = _endpoint(settings.store_options)
    if endpoint.scheme == "http" and (endpoint.hostname or "") not in _LOOPBACK:
        remedy = "use https in AO_STORE_OPTIONS"
        yield Finding("store's TLS", "warn", f"{endpoint.netloc} without TLS", remedy)
    if os.environ.get("RAY_AUTH_MODE", "token") != "token":
        remedy = "set RAY_AUTH_MODE=token: anyone who reaches Ray's ports can run code here"
        yield Finding("Ray's token", "fail", "disabled", remedy)


def _endpoint(options: Json) -> Any:
    url = options.get("endpoint_url") or options.get("client_kwargs", {}).get("endpoint_url")
    return urlsplit(str(url or ""))
