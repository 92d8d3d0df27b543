"""Writes the images of docs/generation.md: each is the request above it, sent to a platform.

A request without an image is a style to create, or is shown alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.document import Document
from serving.cli.client import Client
from tests.support.platforms import running

DOCUMENT = Path(__file__).parents[1] / "docs" / "generation.md"
_BLOCK = re.compile(r"```json\n(.*?)\n```(?:\n\n!\[[^\]]*\]\((\S+)\))?", re.DOTALL)


def requests() -> Iterator[tuple[Document, Path | None]]:
    """Yield the document's requests, each with its image's path."""
    for block, image in _BLOCK.findall(DOCUMENT.read_text()):
        yield json.loads(block), DOCUMENT.parent / image if image else None


def generate_images(client: Client) -> None:
    for request, path in requests():
        if "name" in request:
            client.call("POST", "/v1/styles", json=request)
        elif path is not None:
            answer, image = client.generate_file({**request, "image_encoding": "png"})
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image)
            warnings = answer["receipt"]["warnings"]
            print(f"{path.name}: {len(image)} bytes", *warnings)


def main() -> None:
    with (
        TemporaryDirectory() as folder,
        running(Path(folder), "--in-process", replicas=1) as platform,
    ):
        generate_images(platform.client("gallery"))


if __name__ == "__main__":
    main()
