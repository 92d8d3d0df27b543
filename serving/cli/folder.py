"""A folder of models as it lies, in AUTOMATIC1111's, Forge's or ComfyUI's order or in none.

What a file is, is told by its keys and shapes and not by where it lies. Beside it may lie what
those programs and their helpers keep: ``NAME.json`` (AUTOMATIC1111's card), ``NAME.civitai.info``,
``NAME.yaml`` (of a checkpoint: what it predicts), PEFT's ``adapter_config.json`` and a picture
``NAME.preview.png`` or ``NAME.png``. Folders between become tags. A folder with a
``model_index.json`` is a diffusers pipeline: one checkpoint.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any

from assets.errors import IngestRejected
from assets.formats.header import read_header
from assets.formats.identify import identify
from assets.ingest.rules import check_family

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
#: Libraries give these names to every file; the folder's tells more.
_NAMELESS = frozenset(
    ["adapter_model", "pytorch_lora_weights", "diffusion_pytorch_model", "model", "lora"]
)
_MOST_CHARS = 1 << 16
#: What such programs call the folders of a kind; no tags.
_USUAL = frozenset(
    [
        "models", "lora", "loras", "lycoris", "stable-diffusion", "checkpoints", "vae",
        "embeddings", "unet", "diffusion_models",
    ]
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderFile:
    """A file, or a diffusers folder. ``reason`` says why it is not for the library. ``stem`` and
    ``folder`` are what its name is made from."""

    path: Path
    kind: str = ""
    stem: str = ""
    folder: str = ""
    reason: str = ""
    tags: tuple[str, ...] = ()
    trigger_words: tuple[str, ...] = ()
    description: str = ""
    preview: Path | None = None
    prediction_type: str | None = None
    adapter_config: Mapping[str, Any] | None = None

    def new_asset(self, name: str) -> dict[str, Any]:
        """As the library's create takes it."""
        data = {"asset_type": self.kind, "trigger_words": list(self.trigger_words)}
        new = {
            "asset_type": self.kind,
            "name": name,
            "description": self.description,
            "data": {**data, "tags": list(self.tags)},
        }
        if self.prediction_type is not None:
            new["prediction_type"] = self.prediction_type
        if self.adapter_config is not None:
            new["adapter_config"] = dict(self.adapter_config)
        return new


def scan(folder: Path) -> Iterator[FolderFile]:
    """Every file of weights below ``folder``, in order of its path."""
    if _is_pipeline(folder):
        yield look(folder, folder.parent)
        return
    pipelines: set[Path] = set()
    for path in sorted(folder.rglob("*")):
        if pipelines.intersection(path.parents):
            continue
        if path.is_dir():
            if _is_pipeline(path):
                pipelines.add(path)
                yield look(path, folder)
        elif path.suffix.lower() in (".safetensors", *_PICKLES):
            yield look(path, folder)


def _is_pipeline(folder: Path) -> bool:
    return (folder / "model_index.json").is_file()


def look(path: Path, root: Path) -> FolderFile:
    """What the file or diffusers folder at ``path`` is; folders below ``root`` become tags."""
    if not path.exists():
        return FolderFile(path=path, reason="there is no such file")
    if path.is_dir():
        if not _is_pipeline(path):
            return FolderFile(path=path, reason="a folder without a model_index.json")
        return FolderFile(path=path, kind="checkpoint", stem=path.name, tags=_tags(path, root))
    if path.suffix.lower() in _PICKLES:
        return FolderFile(
            path=path, reason="a pickle, which can run code; convert it to .safetensors"
        )
    try:
        identity = identify(read_header(path).shapes)
        check_family(identity)
    except IngestRejected as rejected:
        return FolderFile(path=path, reason=str(rejected).split("; accepted are")[0])
    except OSError as error:
        return FolderFile(path=path, reason=f"it cannot be read: {error.strerror}")
    kind = identity.kind or ""
    words, description = _card(path)
    stem, folder = path.stem, path.parent.name
    if stem.lower() in _NAMELESS:
        stem, folder = path.parent.name, path.parent.parent.name
    if kind == "textual_inversion" and not words:
        words = (stem,)
    images = (path.with_name(path.stem + suffix) for suffix in _PICTURES)
    return FolderFile(
        path=path,
        kind=kind,
        stem=stem,
        folder=folder,
        tags=_tags(path, root),
        trigger_words=tuple(word[:128] for word in words[:32]),
        description=description[:4096],
        preview=next((image for image in images if image.is_file()), None),
        prediction_type=_prediction(path) if kind == "checkpoint" else None,
        adapter_config=_adapter_config(path) if kind == "lora" else None,
    )


def _tags(path: Path, root: Path) -> tuple[str, ...]:
    between = path.relative_to(root).parts[:-1] if path.is_relative_to(root) else ()
    tags = (re.sub(r"[^\w.-]+", "-", part)[:64] for part in between if part.lower() not in _USUAL)
    return tuple(dict.fromkeys(tags))


def _prediction(path: Path) -> str | None:
    """By the configuration ``NAME.yaml`` that Forge and AUTOMATIC1111 read beside a checkpoint."""
    config = path.with_suffix(".yaml")
    if not config.is_file():
        return None
    text = config.read_text(encoding="utf-8", errors="replace")[:_MOST_CHARS]
    if not re.search(r"^\s*parameterization:\s*[\"']?v[\"']?\s*$", text, re.MULTILINE):
        return None
    is_zero_snr = re.search(r"^\s*(ztsnr|zero_(terminal_)?snr\w*):\s*true", text, re.I | re.M)
    return "v_prediction_zero_snr" if is_zero_snr else "v_prediction"


def _adapter_config(path: Path) -> Mapping[str, Any] | None:
    """PEFT's, where it can only mean this file."""
    config = path.with_name("adapter_config.json")
    if not config.is_file():
        return None
    is_alone = sum(each.suffix.lower() == ".safetensors" for each in path.parent.iterdir()) == 1
    return _read(config) if is_alone or path.stem.startswith("adapter_model") else None


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
