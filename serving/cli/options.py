"""Options that many commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from serving.settings import Settings

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
DataDir = Annotated[Path | None, typer.Option(help="Default: AO_DATA_DIR.")]
Url = Annotated[str | None, typer.Option(help="Default: AO_URL, else http://127.0.0.1:8000.")]
Key = Annotated[str | None, typer.Option("--key", help="An API key. Default: AO_API_KEY.")]


def settings_with(**options: Any) -> Settings:
    """The environment's settings, with the command line's options over them."""
    return Settings(**{name: value for name, value in options.items() if value is not None})
