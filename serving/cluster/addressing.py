"""Names and keys of the cluster's processes. Imports no Ray."""

from __future__ import annotations

from assets.storage.signing import Signer
from serving.settings import Settings

INGEST_NAME = "ingest"


def dispatcher_name(pool: str) -> str:
    """A dispatcher's actor name."""
    return f"dispatcher-{pool}"


def wire_key(settings: Settings) -> bytes:
    """The key of RPC connections."""
    return Signer(settings.secret_bytes).derived("wire").encode()
