"""Bodies of images that come from outside."""

from __future__ import annotations

from pydantic import BaseModel


class ImageParameters(BaseModel):
    """An image's metadata. ``text``: null: it has none; ``settings``: as A1111 names them."""

    text: str | None
    prompt: str
    negative_prompt: str
    settings: dict[str, str]
