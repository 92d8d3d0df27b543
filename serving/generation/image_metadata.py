"""Text within image files, where A1111 writes it: PNG's ``parameters``, or EXIF's user comment."""

from __future__ import annotations

import io
from typing import Any, assert_never

from PIL import ExifTags, Image, PngImagePlugin

from assets.errors import InvalidAsset
from serving.generation.contract import ImageEncoding

_KEY = "parameters"
_USER_COMMENT = 0x9286
#: EXIF's name of the character set, eight bytes.
_UNICODE, _ASCII = b"UNICODE\0", b"ASCII\0\0\0"
#: Of up to four bytes.
_MAX_EXIF_CHARS = 16_000
_FORMATS = ("PNG", "JPEG", "WEBP")
MAX_FILE_BYTES = 32 << 20


def with_text(encoding: ImageEncoding, text: str | None) -> dict[str, Any]:
    """Return Pillow's options for saving an image with ``text``."""
    if text is None:
        return {}
    match encoding:
        case "png":
            info = PngImagePlugin.PngInfo()
            if _is_latin(text):
                info.add_text(_KEY, text)
            else:
                info.add_itxt(_KEY, text)
            return {"pnginfo": info}
        case "jpeg" | "webp":
            exif = Image.Exif()
            comment = _UNICODE + _fitting(text).encode("utf-16-be")
            exif.get_ifd(ExifTags.IFD.Exif)[_USER_COMMENT] = comment
            return {"exif": exif}
        case _:
            assert_never(encoding)


def _fitting(text: str) -> str:
    """EXIF has room for 64 KiB: the prompts of a longer text are cut, its last line stays."""
    if len(text) <= _MAX_EXIF_CHARS:
        return text
    prompts, _, settings = text.rpartition("\n")
    kept = max(0, _MAX_EXIF_CHARS - len(settings) - 2)
    return f"{prompts[:kept]}…\n{settings[:_MAX_EXIF_CHARS]}"


def _is_latin(text: str) -> bool:
    try:
        text.encode("latin-1")
    except UnicodeEncodeError:
        return False
    return True


def text_of(data: bytes) -> str | None:
    """Return the text of an image file, None if it has none. Reads no pixels.

    Raises:
        InvalidAsset: not a PNG, JPEG or WebP file.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            text = image.info.get(_KEY)
            if isinstance(text, str):
                return text
            # Not getexif(), which decodes a PNG to look behind its pixels.
            exif = Image.Exif()
            exif.load(image.info.get("exif", b""))
            comment = exif.get_ifd(ExifTags.IFD.Exif).get(_USER_COMMENT)
    except Exception as error:  # decoders raise many types
        raise InvalidAsset(
            "body", f"a PNG, JPEG or WebP image is accepted ({type(error).__name__})"
        ) from None
    return _comment(comment) if isinstance(comment, bytes) else None


def _comment(comment: bytes) -> str | None:
    charset, text = comment[:8], comment[8:]
    if charset == _UNICODE:
        # EXIF leaves the byte order open; the first character of a prompt is rarely CJK.
        order = "utf-16-le" if len(text) > 1 and text[1] == 0 else "utf-16-be"
        return text.decode(order, "replace")
    if charset == _ASCII:
        return text.decode("ascii", "replace")
    return None
