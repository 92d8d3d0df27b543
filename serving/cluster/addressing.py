"""Names and keys of the cluster's processes. Imports no Ray."""

from __future__ import annotations

from assets.storage.signing import Signer
from serving.bootstrap.secret import platform_secret
from serving.cluster.identity import ProcessIdentity, identity
from serving.settings import Settings

INGEST_NAME = "ingest"


def dispatcher_name(pool: str) -> str:
    """A dispatcher's actor name."""
    return f"dispatcher-{pool}"


def process_identity(settings: Settings) -> ProcessIdentity:
    """The certificate of this process."""
    return identity(Signer(platform_secret(settings)))
