"""Scan a folder of models in the layout of AUTOMATIC1111, Forge, ComfyUI or any other.

Keys and shapes identify the kind. Files read beside a model: ``NAME.json`` (AUTOMATIC1111),
``NAME.civitai.info``, ``NAME.yaml`` (a checkpoint's prediction type), PEFT's
``adapter_config.json``, previews ``NAME.preview.png`` or ``NAME.png``. Subfolders become tags. A
folder with ``model_index.json`` is one checkpoint (a diffusers pipeline).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from html import unescape
from pathlib import Path

from assets.errors import IngestRejected
from assets.formats.header import read_header
from assets.formats.identify import identify
from assets.ingest.rules import check_family
from assets.kinds import KINDS
from serving.cli.json_body import Json

_PICKLES = (".ckpt", ".pt", ".pth", ".bin")
_PREVIEW_SUFFIXES = (
    ".preview.png",
    ".preview.jpg",
    ".preview.jpeg",
    ".preview.webp",
    ".png",
    ".jpg",
    ".webp",
)
#: File names that libraries give every model; the folder's name replaces them.
_GENERIC_STEMS = frozenset(
    ["adapter_model", "pytorch_lora_weights", "diffusion_pytorch_model", "model", "lora"]
)
_MOST_CHARS = 1 << 16
#: Folder names of kinds in those programs; not tags.
_KIND_FOLDERS = frozenset(
    [
        "models", "lora", "loras", "lycoris", "stable-diffusion", "checkpoints", "vae",
        "embeddings", "unet", "diffusion_models",
    ]
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderFile:
    """A model file or diffusers folder.

    ``reason`` says why it cannot be uploaded; ``stem`` and ``folder`` make its name.
    """

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
    adapter_config: Json | None = None

    def new_asset(self, name: str) -> Json:
        """The body of ``POST /v1/assets``."""
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
    """All weights below ``folder``, by path."""
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
    """Identify a file or diffusers folder; folders below ``root`` become tags."""
    if not path.exists():
        return FolderFile(path=path, reason="the file does not exist")
    if path.is_dir():
        if not _is_pipeline(path):
            return FolderFile(path=path, reason="the folder has no model_index.json")
        return FolderFile(path=path, kind="checkpoint", stem=path.name, tags=_tags(path, root))
    if path.suffix.lower() in _PICKLES:
        return FolderFile(path=path, reason="a pickle can run code; convert it to .safetensors")
    try:
        identity = identify(read_header(path).shapes)
        check_family(identity)
    except IngestRejected as rejected:
        return FolderFile(path=path, reason=str(rejected).split("; accepted are")[0])
    except OSError as error:
        return FolderFile(path=path, reason=f"the file cannot be read: {error.strerror}")
    assert identity.kind is not None
    kind, traits = identity.kind, KINDS[identity.kind]
    words, description = _metadata(path)
    stem, folder = path.stem, path.parent.name
    if stem.lower() in _GENERIC_STEMS:
        stem, folder = path.parent.name, path.parent.parent.name
    if traits.needs_trigger_word and not words:
        words = (stem,)
    images = (path.with_name(path.stem + suffix) for suffix in _PREVIEW_SUFFIXES)
    return FolderFile(
        path=path,
        kind=kind,
        stem=stem,
        folder=folder,
        tags=_tags(path, root),
        trigger_words=tuple(word[:128] for word in words[:32]),
        description=description[:4096],
        preview=next((image for image in images if image.is_file()), None),
        prediction_type=_prediction_type(path) if traits.has_prediction_type else None,
        adapter_config=_adapter_config(path) if traits.has_adapter_config else None,
    )


def _tags(path: Path, root: Path) -> tuple[str, ...]:
    folders = path.relative_to(root).parts[:-1] if path.is_relative_to(root) else ()
    tags = (
        re.sub(r"[^\w.-]+", "-", folder)[:64]
        for folder in folders
        if folder.lower() not in _KIND_FOLDERS
    )
    return tuple(dict.fromkeys(tags))


def _prediction_type(path: Path) -> str | None:
    """From ``NAME.yaml``, as Forge and AUTOMATIC1111 do."""
    config = path.with_suffix(".yaml")
    if not config.is_file():
        return None
    text = config.read_text(encoding="utf-8", errors="replace")[:_MOST_CHARS]
    if not re.search(r"^\s*parameterization:\s*[\"']?v[\"']?\s*$", text, re.MULTILINE):
        return None
    is_zero_snr = re.search(r"^\s*(ztsnr|zero_(terminal_)?snr\w*):\s*true", text, re.I | re.M)
    return "v_prediction_zero_snr" if is_zero_snr else "v_prediction"


def _adapter_config(path: Path) -> Json | None:
    """PEFT's, if it can only belong to this file."""
    config = path.with_name("adapter_config.json")
    if not config.is_file():
        return None
    is_alone = sum(other.suffix.lower() == ".safetensors" for other in path.parent.iterdir()) == 1
    return _read_json(config) if is_alone or path.stem.startswith("adapter_model") else None


def _metadata(path: Path) -> tuple[tuple[str, ...], str]:
    """From AUTOMATIC1111's and Civitai's files."""
    card = _read_json(path.with_suffix(".json"))
    words = [part.strip() for part in str(card.get("activation text") or "").split(",")]
    description = str(card.get("description") or "")
    info = _read_json(path.with_name(path.stem + ".civitai.info"))
    if trained := info.get("trainedWords"):
        words += [str(word).strip(" ,") for word in trained if isinstance(word, str)]
    text = info.get("description") or (info.get("model") or {}).get("description") or ""
    plain = re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", str(text)))).strip()
    return tuple(dict.fromkeys(word for word in words if word)), description or plain


def _read_json(path: Path) -> Json:
    try:
        value = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
