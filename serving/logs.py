"""Structured logs with the ids of request, tenant and job (docs/logs.md).

They never contain prompts, API keys or asset names.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

from pythonjsonlogger.json import JsonFormatter

Format = Literal["text", "json"]

#: Ids of an HTTP exchange (in the response headers), generation, organisation and asynchronous job.
FIELDS = ("http", "request", "tenant", "job")
_OURS = ("assets", "orchestrator", "router", "serving")
_about: ContextVar[MutableMapping[str, str] | None] = ContextVar("about", default=None)


@contextmanager
def log_fields(**fields: str) -> Iterator[None]:
    """Attach ``fields`` to log lines of this block and its tasks."""
    token = _about.set(dict(fields))
    try:
        yield
    finally:
        _about.reset(token)


def note(**fields: str) -> None:
    """Attach fields until the :func:`log_fields` block ends."""
    current = _about.get()
    if current is not None:
        current.update(fields)


def shortened(job_id: str) -> str:
    """Return a loggable prefix: the full id gives access to the result."""
    return job_id[:16]


def configure(form: Format, level: str) -> None:
    """Log to stderr: this project from ``level``, others from WARNING."""
    handler = logging.StreamHandler()
    handler.addFilter(add_fields)
    handler.setFormatter(_Json() if form == "json" else _Text())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    for name in _OURS:
        logging.getLogger(name).setLevel(level.upper())


def add_fields(record: logging.LogRecord) -> bool:
    """Set the current fields on ``record``. A filter, always true."""
    for name, value in (_about.get() or {}).items():
        setattr(record, name, value)
    return True


class _Json(JsonFormatter):
    def __init__(self) -> None:
        super().__init__(
            ["levelname", "name", "message"],
            rename_fields={"levelname": "level", "name": "logger", "exc_info": "error"},
            timestamp="at",
        )


class _Text(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        fields = [f"{name}={value}" for name in FIELDS if (value := getattr(record, name, ""))]
        return " ".join([super().formatMessage(record), *fields])
