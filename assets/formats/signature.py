"""Identify a file that is not safetensors by its first bytes, and suggest a remedy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress

SIGNATURE_BYTES = 2048
_SHOWN_CHARS = 200

_PICKLE = (
    "this is a pickle (.ckpt, .pt or .bin), which can run code when opened; convert it to "
    ".safetensors and upload that"
)
_IMAGES: Sequence[tuple[bytes, str]] = (
    (b"\x89PNG\r\n", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
)
_ARCHIVES: Sequence[tuple[bytes, str]] = (
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"PK\x03\x04", "a zip archive"),
    (b"PK\x05\x06", "a zip archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive"),
)
_OTHER_FORMATS: Sequence[tuple[bytes, str]] = (
    (b"GGUF", "a GGUF file (quantized for llama.cpp)"),
    (b"\x89HDF\r\n", "an HDF5 file"),
    (b"%PDF", "a PDF"),
)
_PAGES = (b"<!doctype", b"<html", b"<head", b"<body", b"<script")


def describe(start: bytes) -> str | None:
    """Describe a file and a remedy; None if unknown or perhaps truncated safetensors."""
    if start.startswith(b"version https://git-lfs"):
        return (
            "this is a Git LFS pointer, not the file itself: run `git lfs pull` in the clone, "
            "or download the file"
        )
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text[:20].lower().startswith(_PAGES):
        return (
            "this is a web page (HTML), not the file: use the download link (on Hugging Face "
            "/resolve/ instead of /blob/, on Civitai the link of the Download button)"
        )
    if text.startswith((b"<?xml", b"<Error")):
        return f"this is XML, not a model; perhaps an error response: {_shown(text)}"
    for begin, name in _IMAGES:
        if start.startswith(begin):
            return f"this is {name}, not a model"
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return "this is a WebP image, not a model"
    if _is_pickle(start):
        return _PICKLE
    for begin, name in _ARCHIVES:
        if start.startswith(begin):
            return f"this is {name}: unpack it, and upload the .safetensors file in it"
    if start[257:262] == b"ustar":
        return "this is a tar archive: unpack it, and upload the .safetensors file in it"
    for begin, name in _OTHER_FORMATS:
        if start.startswith(begin):
            return f"this is {name}; only .safetensors is accepted"
    return _described_text(text)


def _is_pickle(start: bytes) -> bool:
    if start.startswith(b"PK\x03\x04"):  # torch archives store the pickle first
        return b"data.pkl" in start[:SIGNATURE_BYTES]
    return len(start) > 1 and start[0] == 0x80 and 2 <= start[1] <= 5


def _described_text(text: bytes) -> str | None:
    if b"\0" in text or not text:
        return None
    if text[:1] in (b"{", b"["):
        return f"this is JSON, not a model: {_shown(text)}"
    try:
        text.decode()
    except UnicodeDecodeError as error:
        if error.start < len(text) - 4:  # not just a truncated last character
            return None
    return f"this is a text file, not a model: {_shown(text)}"


def _shown(text: bytes) -> str:
    decoded = text.decode(errors="replace")
    with suppress(ValueError, RecursionError):
        decoded = json.dumps(json.loads(decoded), ensure_ascii=False)
    line = "".join(c if c.isprintable() else " " for c in decoded)
    return line if len(line) <= _SHOWN_CHARS else line[:_SHOWN_CHARS] + "…"
