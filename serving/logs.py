"""Structured logging: each line carries the ids of its request, tenant and job.

A log line never contains a prompt, an API key or the name of an asset. See docs/logs.md.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

from pythonjsonlogger.json import JsonFormatter

Format = Literal["text", "json"]

#: ``http``: the id of an HTTP exchange, as in the response headers. ``request``: the id of a
#: generation. ``tenant``: the id of an organisation. ``job``: the id of an asynchronous job.
FIELDS = ("http", "request", "tenant", "job")
_OURS = ("assets", "orchestrator", "router", "serving")
_about: ContextVar[MutableMapping[str, str] | None] = ContextVar("about", default=None)


@contextmanager
def log_fields(**fields: str) -> Iterator[None]:
    """Attach ``fields`` to the log lines of this block, and of the tasks started in it."""
    token = _about.set(dict(fields))
    try:
        yield
    finally:
        _about.reset(token)


def note(**fields: str) -> None:
    """Attach more fields for the rest of the enclosing :func:`log_fields` block."""
    current = _about.get()
    if current is not None:
        current.update(fields)


def shortened(job_id: str) -> str:
    """Return a prefix of a job's id for logs: the full id gives access to the result."""
    return job_id[:16]


def configure(form: Format, level: str) -> None:
    """Log to standard error: this project's loggers from ``level`` on, all others from WARNING."""
    handler = logging.StreamHandler()
    handler.addFilter(add_fields)
    handler.setFormatter(_Json() if form == "json" else _Text())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    for name in _OURS:
        logging.getLogger(name).setLevel(level.upper())


def add_fields(record: logging.LogRecord) -> bool:
    """Set the current fields as attributes of ``record``. A logging filter: always true."""
    for name, value in (_about.get() or {}).items():
        setattr(record, name, value)
    return True


class _Json(JsonFormatter):
    """One JSON object per line, with the fields and the line's ``extra`` values."""

    def __init__(self) -> None:
        super().__init__(
            ["levelname", "name", "message"],
            rename_fields={"levelname": "level", "name": "logger", "exc_info": "error"},
            timestamp="at",
        )


class _Text(logging.Formatter):
    """Human-readable lines, with the fields at the end."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        fields = [f"{name}={value}" for name in FIELDS if (value := getattr(record, name, ""))]
        return " ".join([super().formatMessage(record), *fields])
