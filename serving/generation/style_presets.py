"""The built-in styles: OctoAI's 78 names with our own templates; OctoAI's were not published.

The file's version rises when a text changes, as images then do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

from serving.generation.styles import Style


@cache
def presets() -> Mapping[str, Style]:
    """Return the built-in styles by name."""
    text = (files("serving.generation") / "data" / "styles.json").read_text(encoding="utf-8")
    document = json.loads(text)
    version = int(document["version"])
    return {each["name"]: Style(**each, version=version) for each in document["styles"]}
