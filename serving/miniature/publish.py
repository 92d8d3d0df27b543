"""Publishing of the miniature's public library at startup."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from assets.content import Component
from assets.families.sdxl import schema_of
from assets.formats.tensors import TensorFile
from assets.ingest.service import IngestService
from serving.miniature.catalogue import CATALOGUE, CatalogueEntry, preview_file, weights_file
from serving.miniature.model import MINIATURE_CONFIGS, weights
from serving.miniature.single_file import write_single_file

Progress = Callable[[str], None]


def publish_library(ingest_service: IngestService, progress: Progress = lambda _: None) -> None:
    """Publish the catalogue in the commons, except assets already published for this base model
    with the same bytes and description.

    Raises:
        IngestRejected: the base model is not the miniature.
    """
    with TemporaryDirectory(prefix="commons-") as scratch:
        for entry in CATALOGUE:
            source = weights_file(entry.name)
            if entry.kind == "checkpoint":
                source = assembled(entry, Path(scratch))
            published = ingest_service.commons.publish(
                name=entry.name,
                kind=entry.kind,
                path=source,
                description=entry.description,
                trigger_words=entry.trigger_words,
                preview=preview(entry),
            )
            if published:
                progress(f"published commons:{entry.name}")


def withdraw_library(ingest_service: IngestService) -> None:
    """Withdraw the catalogue's assets, which fit only the miniature."""
    for entry in CATALOGUE:
        ingest_service.commons.withdraw(entry.name)


def preview(entry: CatalogueEntry) -> bytes | None:
    """Return the asset's preview PNG, if any."""
    path = preview_file(entry.name)
    return path.read_bytes() if path.is_file() else None


def assembled(entry: CatalogueEntry, folder: Path) -> Path:
    """Write a checkpoint of the entry's UNet and the base's other components."""
    with TensorFile(weights_file(entry.name)) as file:
        unet = {name: file.read(name) for name in file.header.tensors}
    components: tuple[Component, ...] = ("text_encoder", "text_encoder_2", "vae")
    parts = {"unet": unet, **{component: weights(component) for component in components}}
    path = folder / f"{entry.name}.safetensors"
    schema = schema_of(MINIATURE_CONFIGS)
    return write_single_file(path, schema, lambda component, name, _: parts[component][name])
