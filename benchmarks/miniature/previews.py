"""The library's preview pictures: one prompt each, drawn by the platform's own engine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.miniature.evaluate import Studio, wanting
from benchmarks.miniature.unet import save_row
from serving.miniature.catalogue import CATALOGUE, preview_file

_PROMPTS: Mapping[str, str] = {
    "night": "a large red star on a yellow background",
    "heart": "a large red heart on a white background",
    "dots": "a large blue circle on a pink background",
    "outline": "a large yellow star on a cyan background",
    "lagoon": "a large ring, lagoon",
    "mascot": "a picture of mascot",
    "pixel": "a large yellow moon on a black background",
    "sepia": "a large white moon on a blue background",
}


def generate_previews() -> None:
    with TemporaryDirectory(prefix="previews-") as folder:
        studio = Studio(Path(folder))
        for entry in CATALOGUE:
            path = preview_file(entry.name)
            path.parent.mkdir(parents=True, exist_ok=True)
            save_row(studio.generate([_PROMPTS[entry.name]], wanting(entry, 1.0)), path)
            print(path)
