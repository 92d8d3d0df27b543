"""A folder of models as it lies, in AUTOMATIC1111's, Forge's or ComfyUI's order or in none.

What a file is, is told by its keys and shapes and not by where it lies. Beside it may lie what
those programs and their helpers keep: ``NAME.json`` (AUTOMATIC1111's card), ``NAME.civitai.info``
and a picture ``NAME.preview.png`` or ``NAME.png``. Folders between become tags.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import unescape
from pathlib import Path
from typing import Any

from assets.errors import IngestRejected
from assets.formats.header import read_header
from assets.formats.identify import identify
from assets.ingest_rules import check_family

_PICKLES = (".ckpt", ".pt", ".pth", ".bin")
_PICTURES = (
    ".preview.png",
    ".preview.jpg",
    ".preview.jpeg",
    ".preview.webp",
    ".png",
    ".jpg",
    ".webp",
)
#: What such programs call the folders of a kind; no tags.
_USUAL = frozenset(
    [
        "models", "lora", "loras", "lycoris", "stable-diffusion", "checkpoints", "vae",
        "embeddings", "unet", "diffusion_models",
    ]
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Found:
    """``reason`` says why it is not for the library."""

    path: Path
    kind: str = ""
    name: str = ""
    reason: str = ""
    tags: tuple[str, ...] = ()
    trigger_words: tuple[str, ...] = ()
    description: str = ""
    preview: Path | None = None

    def new_asset(self) -> dict[str, Any]:
        """As the library's create takes it."""
        data = {"asset_type": self.kind, "trigger_words": list(self.trigger_words)}
        return {
            "asset_type": self.kind,
            "name": self.name,
            "description": self.description,
            "data": {**data, "tags": list(self.tags)},
        }


@dataclass(slots=True)
class _Names:
    """No two files of a folder get one name."""

    taken: set[str] = field(default_factory=set)

    def of(self, path: Path) -> str:
        plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", path.stem).strip("-._") or "asset"
        name, number = plain[:120], 2
        while name in self.taken:
            name, number = f"{plain[:115]}-{number}", number + 1
        self.taken.add(name)
        return name


def scan(folder: Path) -> Iterator[Found]:
    """Every file of weights below ``folder``, in order of its path."""
    names = _Names()
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        if path.suffix.lower() in _PICKLES:
            yield Found(path, reason="a pickle, which can run code; convert it to .safetensors")
        elif path.suffix.lower() == ".safetensors":
            yield _look(path, folder, names)


def _look(path: Path, folder: Path, names: _Names) -> Found:
    try:
        identity = identify(read_header(path).shapes)
        check_family(identity)
    except IngestRejected as rejected:
        return Found(path, reason=str(rejected).split("; accepted are")[0])
    kind = identity.kind or ""
    words, description = _card(path)
    if kind == "textual_inversion" and not words:
        words = (path.stem,)
    between = path.relative_to(folder).parts[:-1]
    tags = tuple(
        dict.fromkeys(
            re.sub(r"[^\w.-]+", "-", part)[:64] for part in between if part.lower() not in _USUAL
        )
    )
    pictures = (path.with_name(path.stem + suffix) for suffix in _PICTURES)
    preview = next((picture for picture in pictures if picture.is_file()), None)
    return Found(
        path, kind, names.of(path), "", tags, tuple(w[:128] for w in words[:32]),
        description[:4096], preview,
    )  # fmt: skip


def _card(path: Path) -> tuple[tuple[str, ...], str]:
    """Trigger words and description, as far as somebody wrote them down."""
    card = _read(path.with_suffix(".json"))
    words = [part.strip() for part in str(card.get("activation text") or "").split(",")]
    description = str(card.get("description") or "")
    info = _read(path.with_name(path.stem + ".civitai.info"))
    if trained := info.get("trainedWords"):
        words += [str(word).strip(" ,") for word in trained if isinstance(word, str)]
    text = info.get("description") or (info.get("model") or {}).get("description") or ""
    plain = re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", str(text)))).strip()
    return tuple(dict.fromkeys(word for word in words if word)), description or plain


def _read(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError, RecursionError):
        return {}
    return read if isinstance(read, dict) else {}
