"""The uvicorn configuration, shared by gateways and the single-process mode."""

from __future__ import annotations

import resource
from typing import Any

import uvicorn

from serving.api.protocol import BoundedHttpProtocol
from serving.settings import Settings

_OPEN_FILES = 65_536


def server_config(settings: Settings, app: Any, **options: Any) -> uvicorn.Config:
    """Return uvicorn's configuration; ``app`` may be a factory's import string."""
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=BoundedHttpProtocol,
        ws="none",
        log_config=None,
        server_header=False,
        limit_concurrency=settings.max_connections,
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=settings.drain_s,
        **options,
    )


def allow_open_files() -> None:
    """Raise the limit on open files: each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
