"""Output: tables for people, JSON for scripts, errors on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from assets.errors import AssetError
from orchestrator.errors import TierError
from serving.errors import ServingError


class ApiFailure(ServingError):
    """The platform returned an error or nothing, or a transfer failed."""


def printable(text: str) -> str:
    """Escape control characters of untrusted text, and those that stdout cannot encode."""
    shown = "".join(
        character if character.isprintable() or character == "\n" else ascii(character)[1:-1]
        for character in text
    )
    encoding = sys.stdout.encoding or "utf-8"
    return shown.encode(encoding, "backslashreplace").decode(encoding)


def show(rows: Sequence[Mapping[str, object]], columns: Sequence[str], as_json: bool) -> None:
    """Print some columns as a table, or complete rows as JSON."""
    if as_json:
        print(json.dumps(list(rows), indent=2, default=str))
        return
    table = Table(*columns)
    for row in rows:
        table.add_row(*(Text(printable(str(row.get(column, "")))) for column in columns))
    Console(emoji=False).print(table)


def show_one(row: Mapping[str, object], text: str, as_json: bool) -> None:
    print(json.dumps(dict(row), indent=2, default=str) if as_json else printable(text))


@contextmanager
def clear_errors() -> Iterator[None]:
    """Platform errors become a line on stderr and exit code 1, without a traceback."""
    try:
        yield
    except (AssetError, ServingError, TierError) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        raise typer.Exit(1) from None
