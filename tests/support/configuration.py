"""Writes docs/configuration.md: ``python -m tests.support.configuration``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic_core import PydanticUndefined

from serving.settings import Settings

DOCUMENT = Path(__file__).parents[2] / "docs" / "configuration.md"
_HEAD = """# Configuration

Generated from `serving/settings.py` by `python -m tests.support.configuration`.

Every setting is an environment variable; `serve` has options for the common ones. Commands that
call a running platform read `AO_URL` and `AO_API_KEY`. On a cluster see
[operations.md](operations.md) and `ray_cluster.yaml`. The default budgets suit the miniature; for
SDXL set, say, `AO_HOST_BYTES=34359738368` and `AO_DISK_BYTES=214748364800`.

| variable | default | what |
|---|---|---|
"""
_UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"))


def _default(name: str, value: Any) -> str:
    if value is PydanticUndefined or value in (None, "", {}):
        return "–"
    if isinstance(value, bool):
        return "on" if value else "off"
    if name.endswith("_bytes") and value:
        size, unit = next((size, unit) for size, unit in _UNITS if value % size == 0)
        return f"{value // size} {unit}"
    return f"`{json.dumps(value)}`" if isinstance(value, list | tuple) else f"`{value}`"


def document() -> str:
    rows = []
    for name, field in Settings.model_fields.items():
        what = " ".join((field.description or "").split()).replace("|", "\\|")
        rows.append(f"| `AO_{name.upper()}` | {_default(name, field.default)} | {what} |\n")
    return _HEAD + "".join(rows)


if __name__ == "__main__":
    DOCUMENT.write_text(document())
