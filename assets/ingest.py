"""Ingest: an uploaded file becomes canonical files, once, or is refused with every reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assets.asset import AssetKind
from assets.content import MODEL_COMPONENTS, Blob, Component, content_key
from assets.errors import IngestRejected
from assets.formats import checkpoint, inversion, lora
from assets.formats.header import read_header
from assets.formats.identify import Identity, identify
from assets.formats.tensors import Planned, TensorFile, write_tensors
from assets.skeleton import Skeleton, stacking_order

SERVED_FAMILY = "SDXL"
ACCEPTED = (
    "accepted are SDXL files in .safetensors: LoRA, LoHa, LoKr (names of kohya, diffusers or "
    "PEFT), textual inversion (clip_l and clip_g), checkpoint (a single file, a diffusers folder "
    "packed into one, or its UNet) and VAE"
)


@dataclass(frozen=True, slots=True)
class Ingested:
    """Canonical files in a scratch folder, ready to be stored under their keys."""

    files: Mapping[Component, tuple[Blob, Path]]
    report: Mapping[str, Any]


def inspect(path: Path, declared: AssetKind) -> Identity:
    """Header, kind and family; nothing is loaded.

    Raises:
        IngestRejected: not strict safetensors, not the declared kind, or not for SDXL.
    """
    identity = identify(read_header(path).shapes)
    check_identity(identity, declared)
    return identity


def check_identity(identity: Identity, declared: AssetKind) -> None:
    """Raises IngestRejected unless the served model can use such a file as ``declared``."""
    if identity.family not in (None, SERVED_FAMILY):
        what = identity.kind or "file"
        raise IngestRejected(
            f"this is a {what} for {identity.family} ({identity.evidence}); {ACCEPTED}"
        )
    if identity.kind is None:
        raise IngestRejected(f"not recognised: {identity.evidence}; {ACCEPTED}")
    if identity.kind != declared:
        raise IngestRejected(
            f"declared as {declared}, but the file is a {identity.kind} ({identity.evidence}); "
            f"create the asset again with asset_type {identity.kind!r}"
        )


def ingest_file(
    path: Path,
    declared: AssetKind,
    skeleton: Skeleton,
    salt: bytes | None,
    scratch: Path,
) -> Ingested:
    """Write the canonical form of ``path`` into ``scratch``; one tensor in memory at a time.

    Raises:
        IngestRejected: with every reason that was found.
    """
    identity = inspect(path, declared)
    with TensorFile(path) as file:
        components, report = _convert(file, declared, skeleton)
        files: dict[Component, tuple[Blob, Path]] = {}
        for component, tensors in components.items():
            target = scratch / component
            order = _order(component, tensors, skeleton)
            written = write_tensors(target, tensors, {"component": component}, order)
            # By what was written, not by what it was made from: two checkpoints with the same
            # VAE share its blob, and a change from one to the other leaves it where it is.
            key = content_key(written.sha256, component, skeleton.digest, salt)
            files[component] = (Blob(key, written.sha256, written.size_bytes), target)
    facts = {"kind": declared, "family": SERVED_FAMILY, "fits": skeleton.digest}
    report = {**facts, "evidence": identity.evidence, **report}
    return Ingested(files, report)


def _order(
    component: Component, tensors: Mapping[str, Planned], skeleton: Skeleton
) -> list[str] | None:
    """As the engine stacks them, so that it reads a stack at a time."""
    if component in MODEL_COMPONENTS:
        return stacking_order(skeleton.components[component])
    return lora.stacking_order(tensors, skeleton) if component == "lora" else None


def _convert(
    file: TensorFile, kind: AssetKind, skeleton: Skeleton
) -> tuple[dict[Component, dict[str, Planned]], dict[str, Any]]:
    if kind == "lora":
        tensors, report = lora.convert(file, skeleton)
        return {"lora": tensors}, report
    if kind == "textual_inversion":
        tensors, report = inversion.convert(file, skeleton)
        return {"textual_inversion": tensors}, report
    if kind == "vae":
        tensors, report = checkpoint.convert_vae(file, skeleton)
        return {"vae": tensors}, report
    return checkpoint.convert_checkpoint(file, skeleton)
