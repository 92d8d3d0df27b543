"""Content keys: how blobs are identified once asset names are resolved.

A key digests the canonical bytes' sha256, component, base model's fingerprint, converter version
and a UNet's prediction type. A private asset's is an HMAC with its tenant's salt: no cache hit,
receipt or timing reveals that another tenant holds the file.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Literal

from assets.prediction import Prediction, key_suffix

#: Increment when the canonical form changes: old files are ignored.
CONVERTER_VERSION = 1

Component = Literal["unet", "text_encoder", "text_encoder_2", "vae", "lora", "textual_inversion"]

MODEL_COMPONENTS: tuple[Component, ...] = ("unet", "text_encoder", "text_encoder_2", "vae")


@dataclass(frozen=True, slots=True, order=True)
class Blob:
    """One stored file."""

    key: str
    sha256: str
    size_bytes: int


def content_key(
    sha256: str,
    component: Component,
    model_fingerprint: str,
    salt: bytes | None,
    prediction: Prediction = "epsilon",
) -> str:
    """Return the content key of canonical bytes.

    ``model_fingerprint``: the base model's schema digest; ``salt``: None if public; ``prediction``:
    for a UNet only.
    """
    message = f"{CONVERTER_VERSION}/{component}/{model_fingerprint}/{sha256}".encode()
    suffix = key_suffix(prediction) if component == "unet" else ""
    if salt is None:
        return "p" + hashlib.sha256(message).hexdigest()[:40] + suffix
    return "t" + hmac.new(salt, message, hashlib.sha256).hexdigest()[:40] + suffix


#: Original files, which no engine loads.
ORIGINAL = "o"


def original_key(sha256: str, salt: bytes) -> str:
    """The key of a file as uploaded, salted even if public."""
    return ORIGINAL + hmac.new(salt, f"original/{sha256}".encode(), hashlib.sha256).hexdigest()[:40]


def tenant_salt(secret: bytes, tenant_id: str) -> bytes:
    """Derived from the platform's secret, not stored."""
    return hmac.new(secret, f"tenant-salt/{tenant_id}".encode(), hashlib.sha256).digest()
