"""Writes docs/openapi.json: ``python -m tests.support.openapi``."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from tempfile import TemporaryDirectory

from fastapi import FastAPI

from tests.support.api_app import serving_api

DOCUMENT = Path(__file__).parents[2] / "docs" / "openapi.json"


def document(app: FastAPI) -> str:
    return json.dumps(app.openapi(), indent=1, ensure_ascii=False) + "\n"


async def write() -> None:
    with TemporaryDirectory() as folder:
        async with serving_api(Path(folder)) as api:
            DOCUMENT.write_text(document(api.app))


if __name__ == "__main__":
    asyncio.run(write())
