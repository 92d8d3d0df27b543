"""What the served model can use of what was recognised; loads nothing."""

from __future__ import annotations

from assets.asset import AssetKind
from assets.errors import IngestRejected
from assets.formats.identify import Identity

SERVED_FAMILY = "SDXL"
ACCEPTED = (
    "accepted are SDXL files in .safetensors: LoRA, LoHa, LoKr (names of kohya, diffusers or "
    "PEFT), textual inversion (clip_l and clip_g), checkpoint (a single file, a diffusers folder "
    "packed into one, or its UNet) and VAE"
)


def check_family(identity: Identity) -> None:
    """Raises IngestRejected unless it is a kind of asset, and for the served family."""
    if identity.model is not None:
        raise IngestRejected(f"this is {identity.model} ({identity.evidence}); {ACCEPTED}")
    if identity.family not in (None, SERVED_FAMILY):
        what = identity.kind or "file"
        raise IngestRejected(
            f"this is a {what} for {identity.family} ({identity.evidence}); {ACCEPTED}"
        )
    if identity.kind is None:
        raise IngestRejected(f"not recognised: {identity.evidence}; {ACCEPTED}")


def mismatch(identity: Identity, declared: AssetKind) -> str:
    """Why a file is not what it was declared to be."""
    return (
        f"declared as {declared}, but the file is a {identity.kind} ({identity.evidence}); "
        f"create the asset again with asset_type {identity.kind!r}"
    )
