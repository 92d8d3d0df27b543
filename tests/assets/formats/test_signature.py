"""Other formats than safetensors are named, with a remedy."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from assets.errors import HeaderError
from assets.formats.header import read_header

POINTER = (
    "version https://git-lfs.github.com/spec/v1\noid sha256:" + "4d" * 32 + "\nsize 228455604\n"
)


def _zip(name: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, b"x" * 100)
    return out.getvalue()


def _tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo("model.safetensors")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"abcd"))
    return out.getvalue()


def _torch() -> bytes:
    out = io.BytesIO()
    torch.save({"a": torch.zeros(1)}, out)
    return out.getvalue()


def _image(kind: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(out, kind)
    return out.getvalue()


CASES: dict[str, tuple[bytes, str]] = {
    "a web page": (
        b"<!DOCTYPE html>\n<html><head><title>x</title>" + b" " * 400,
        r"web page.*/resolve/",
    ),
    "a web page without a doctype": (b"\xef\xbb\xbf  <HTML lang='en'>" + b"x" * 50, "web page"),
    "a Git LFS pointer": (POINTER.encode(), "git lfs pull"),
    "an error as JSON": (b'{"error": "Log in to download"}', "JSON.*Log in to download"),
    "a list as JSON": (json.dumps([{"a": 1}] * 200).encode(), "JSON"),
    "a store's error": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code>', "AccessDenied"),
    "plain text": (b"404: Not Found", "text file.*404: Not Found"),
    "text of any script": ("ファイルが見つかりません".encode() * 300, "text file"),
    "a zip archive": (_zip("lora.safetensors"), "zip archive: unpack"),
    "a torch archive": (_torch(), "pickle"),
    "a pickle": (pickle.dumps({"a": 1}, protocol=4), "pickle"),
    "a tar archive": (_tar(), "tar archive: unpack"),
    "a gzip archive": (gzip.compress(b"x" * 100), "gzip archive"),
    "7z": (b"7z\xbc\xaf\x27\x1c\x00\x04" + b"\xff" * 40, "7z archive"),
    "PNG": (_image("PNG"), "PNG image"),
    "JPEG": (_image("JPEG"), "JPEG image"),
    "WebP": (_image("WEBP"), "WebP image"),
    "GGUF": (b"GGUF\x03\x00\x00\x00" + b"\xff" * 40, "GGUF"),
    "noise": (b"\xff\xfe\xfd\xfc" * 40, "not a safetensors file, or truncated"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_error_names_the_format(tmp_path: Path, name: str) -> None:
    data, reason = CASES[name]
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(HeaderError, match=reason) as refused:
        read_header(path)
    assert len(str(refused.value)) < 500
    assert str(refused.value).isprintable()
