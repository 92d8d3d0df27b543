"""How the processes of the cluster find and authenticate each other. Does not import Ray."""

from __future__ import annotations

from assets.storage.signing import Signer
from serving.settings import Settings

#: The actor name of the ingest process.
INGEST_NAME = "ingest"


def dispatcher_name(pool: str) -> str:
    """The actor name of a pool's dispatcher."""
    return f"dispatcher-{pool}"


def wire_key(settings: Settings) -> bytes:
    """The shared key that both ends of an RPC connection prove to each other."""
    return Signer(settings.secret_bytes).derived("wire").encode()
