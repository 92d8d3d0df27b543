"""Content keys: the names that bytes have behind the resolver.

A key is a digest of *what a file means to the engine*: the sha256 of its canonical
bytes, the component that they are, the model that they were fitted to, what a UNet
predicts and the converter's version. For a private asset it is keyed with the tenant's
salt, so that two tenants who hold the same file have different keys and neither can learn
of the other from a cache hit, a receipt or a timing.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Literal

from assets.prediction import Prediction, key_suffix

#: Raise when the canonical form changes: old canonical files are then never read again.
CONVERTER_VERSION = 1

Component = Literal["unet", "text_encoder", "text_encoder_2", "vae", "lora", "textual_inversion"]

MODEL_COMPONENTS: tuple[Component, ...] = ("unet", "text_encoder", "text_encoder_2", "vae")


@dataclass(frozen=True, slots=True, order=True)
class Blob:
    """One canonical file: its content key, the digest of its bytes, its size."""

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
    """The content key of canonical bytes with this digest.

    ``model_fingerprint`` is the digest of the parameter schema that they fit; ``salt`` is None for
    a public asset; ``prediction`` counts for a UNet only.
    """
    message = f"{CONVERTER_VERSION}/{component}/{model_fingerprint}/{sha256}".encode()
    suffix = key_suffix(prediction) if component == "unet" else ""
    if salt is None:
        return "p" + hashlib.sha256(message).hexdigest()[:40] + suffix
    return "t" + hmac.new(salt, message, hashlib.sha256).hexdigest()[:40] + suffix


#: How the keys of files as they were uploaded begin: no engine asks for them.
ORIGINAL = "o"


def original_key(sha256: str, salt: bytes) -> str:
    """The key of a file as it was uploaded. It is salted by the tenant, also for public assets."""
    return ORIGINAL + hmac.new(salt, f"original/{sha256}".encode(), hashlib.sha256).hexdigest()[:40]


def tenant_salt(secret: bytes, tenant_id: str) -> bytes:
    """A tenant's salt, derived from the platform's secret: nothing to store or to lose."""
    return hmac.new(secret, f"tenant-salt/{tenant_id}".encode(), hashlib.sha256).digest()
