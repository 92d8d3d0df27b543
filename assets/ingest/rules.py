"""Decide whether the served model can use an identified file. Imports no torch."""

from __future__ import annotations

from assets.asset import AssetKind
from assets.errors import IngestRejected
from assets.formats.identify import Identity

SERVED_FAMILY = "SDXL"
ACCEPTED = (
    "accepted: SDXL files in .safetensors: LoRA, LoHa, LoKr (kohya, diffusers or PEFT names), "
    "textual inversion (clip_l and clip_g), checkpoint (a single file, a diffusers folder packed "
    "into one, or its UNet) and VAE"
)


def check_family(identity: Identity) -> None:
    """Check that the file is a known kind for the served family.

    Raises:
        IngestRejected: it is not.
    """
    if identity.model is not None:
        raise IngestRejected(f"this is {identity.model} ({identity.evidence}); {ACCEPTED}")
    if identity.family not in (None, SERVED_FAMILY):
        kind = identity.kind or "file"
        raise IngestRejected(
            f"this is a {kind} for {identity.family} ({identity.evidence}); {ACCEPTED}"
        )
    if identity.kind is None:
        raise IngestRejected(f"not recognised: {identity.evidence}; {ACCEPTED}")


def mismatch(identity: Identity, declared: AssetKind) -> str:
    """Return the reason to reject a wrongly declared file."""
    return (
        f"declared as {declared}, but the file is a {identity.kind} ({identity.evidence}); "
        f"create the asset again with asset_type {identity.kind!r}"
    )
