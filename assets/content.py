"""Content keys: how blobs are identified once asset names are resolved.

A key is a digest of the sha256 of the canonical bytes, the component, the fingerprint of the base
model, the converter version and, for a UNet, the prediction type. A private asset's digest is an
HMAC with the tenant's salt: two tenants that hold the same file have different keys, so no cache
hit, receipt or timing reveals one tenant's assets to the other.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Literal

from assets.prediction import Prediction, key_suffix

#: Increment when the canonical form changes, so that old canonical files are never read again.
CONVERTER_VERSION = 1

Component = Literal["unet", "text_encoder", "text_encoder_2", "vae", "lora", "textual_inversion"]

MODEL_COMPONENTS: tuple[Component, ...] = ("unet", "text_encoder", "text_encoder_2", "vae")


@dataclass(frozen=True, slots=True, order=True)
class Blob:
    """One stored file: its content key, the sha256 of its bytes and its size."""

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
    """Return the content key of canonical bytes with this sha256.

    ``model_fingerprint`` is the digest of the base model's parameter schema; ``salt`` is None for
    a public asset; ``prediction`` is used for a UNet only.
    """
    message = f"{CONVERTER_VERSION}/{component}/{model_fingerprint}/{sha256}".encode()
    suffix = key_suffix(prediction) if component == "unet" else ""
    if salt is None:
        return "p" + hashlib.sha256(message).hexdigest()[:40] + suffix
    return "t" + hmac.new(salt, message, hashlib.sha256).hexdigest()[:40] + suffix


#: Key prefix of original files, which no engine loads.
ORIGINAL = "o"


def original_key(sha256: str, salt: bytes) -> str:
    """Return the key of a file as uploaded. It is salted by tenant, for public assets too."""
    return ORIGINAL + hmac.new(salt, f"original/{sha256}".encode(), hashlib.sha256).hexdigest()[:40]


def tenant_salt(secret: bytes, tenant_id: str) -> bytes:
    """Return a tenant's salt, derived from the platform's secret so that it need not be stored."""
    return hmac.new(secret, f"tenant-salt/{tenant_id}".encode(), hashlib.sha256).digest()
