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
from serving.bootstrap.backends import open_backends
from serving.cli.client import Client
from serving.settings import Settings
from tests.support.servers import clean_environment, end_serving, free_port, start_serving

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
    with TemporaryDirectory() as name:
        folder = Path(name)
        settings = Settings(
            data_dir=folder / "data", host_dir=folder / "host", port=free_port(), replicas=1
        )
        process = start_serving(
            settings, folder / "log", "--in-process", environment=clean_environment()
        )
        try:
            directory = open_backends(settings).directory
            directory.add_tenant("gallery")
            with Client(
                settings.resolved_public_url, directory.keyring.add_key("gallery").text
            ) as client:
                generate_images(client)
        finally:
            end_serving(process)


if __name__ == "__main__":
    main()
