"""Logs that can be searched: every line says which request it is about, whose, and of which job.

Never a prompt, a key, or the name of an asset. See docs/logs.md.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

from pythonjsonlogger.json import JsonFormatter

Format = Literal["text", "json"]

#: ``http``: one exchange with a client, the id in its answer's headers. ``request``: one picture
#: asked of the dispatcher. ``tenant``: an organisation's id. ``job``: what can be polled.
FIELDS = ("http", "request", "tenant", "job")
_OURS = ("assets", "orchestrator", "router", "serving")
_about: ContextVar[MutableMapping[str, str] | None] = ContextVar("about", default=None)


@contextmanager
def about(**fields: str) -> Iterator[None]:
    """What is logged in this block, by this task and those that it starts, is about these."""
    token = _about.set(dict(fields))
    try:
        yield
    finally:
        _about.reset(token)


def note(**fields: str) -> None:
    """It is about these, too: for the rest of the block, wherever in it this is learnt."""
    known = _about.get()
    if known is not None:
        known.update(fields)


def shortened(job_id: str) -> str:
    """Enough of a job's id to find it by. Whoever holds the whole may fetch the result."""
    return job_id[:16]


def configure(form: Format, level: str) -> None:
    """The lines of this process go to its standard error: ours from ``level`` on, warnings of
    anybody else."""
    handler = logging.StreamHandler()
    handler.addFilter(add_fields)
    handler.setFormatter(_Json() if form == "json" else _Text())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    for name in _OURS:
        logging.getLogger(name).setLevel(level.upper())


def add_fields(record: logging.LogRecord) -> bool:
    """A handler's filter: what the line is about becomes its attributes."""
    for name, value in (_about.get() or {}).items():
        setattr(record, name, value)
    return True


class _Json(JsonFormatter):
    """One object a line: the fields, and whatever else the line was given."""

    def __init__(self) -> None:
        super().__init__(
            ["levelname", "name", "message"],
            rename_fields={"levelname": "level", "name": "logger", "exc_info": "error"},
            timestamp="at",
        )


class _Text(logging.Formatter):
    """For people: the fields at the end."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        fields = [f"{name}={value}" for name in FIELDS if (value := getattr(record, name, ""))]
        return " ".join([super().formatMessage(record), *fields])
