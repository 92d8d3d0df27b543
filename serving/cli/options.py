"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from pydantic_settings import SettingsError

from serving.settings import Settings

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
DataDir = Annotated[Path | None, typer.Option(help="Default: AO_DATA_DIR.")]
Url = Annotated[str | None, typer.Option(help="Default: AO_URL, else http://127.0.0.1:8000.")]
Key = Annotated[str | None, typer.Option("--key", help="An API key. Default: AO_API_KEY.")]


def settings_with(**options: Any) -> Settings:
    """Override the environment's settings by ``options`` that are not None.

    Raises:
        typer.BadParameter: invalid; names the variable.
    """
    try:
        return Settings(**{name: value for name, value in options.items() if value is not None})
    except (ValidationError, SettingsError) as error:
        message = (
            str(error)
            if isinstance(error, SettingsError)
            else "; ".join(map(_message, error.errors()))
        )
        raise typer.BadParameter(message) from None


def _message(error: Any) -> str:
    variable = "".join(f"AO_{part}".upper() for part in error["loc"][:1])
    return f"{variable}: {error['msg']}".removeprefix(": ")
