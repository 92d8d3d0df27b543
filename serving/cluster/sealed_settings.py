"""Settings on their way to the processes of a Ray cluster.

Ray keeps an actor's arguments in its tables, on disk and in memory. So the secrets among the
settings are encrypted with a key derived from the cluster's token, which every process of the
cluster has and which is not in the tables.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.fernet import Fernet, InvalidToken

from serving.errors import ServingError
from serving.settings import Settings

SECRETS = ("secret", "database_url", "store_url", "store_options")
_PURPOSE = b"asset-orchestrator settings"


class NotSealed(ServingError):
    """The token is missing, or differs from the one that sealed; the message says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedSettings:
    """``public`` are the settings without their secrets; ``sealed`` holds those, encrypted."""

    public: dict[str, Any]
    sealed: bytes

    def open(self) -> Settings:
        """Raises NotSealed: this process does not have the cluster's token."""
        try:
            secrets = json.loads(Fernet(_key()).decrypt(self.sealed))
        except InvalidToken:
            raise NotSealed(
                "this node has another Ray token than the one that serves: give all nodes the same"
            ) from None
        return Settings(**self.public, **secrets)


def seal(settings: Settings) -> SealedSettings:
    """Raises NotSealed: Ray runs without a token."""
    public = settings.model_dump(exclude=set(SECRETS))  # all: a node's variables say nothing
    secrets = settings.model_dump(mode="json", include=set(SECRETS))
    secrets["secret"] = settings.secret_bytes.decode()
    sealed = Fernet(_key()).encrypt(json.dumps(secrets).encode())
    return SealedSettings(public=public, sealed=sealed)


def _key() -> bytes:
    """As Fernet takes it. The token has 256 random bits, so a plain keyed hash will do."""
    digest = hashlib.blake2b(_PURPOSE, key=_token().encode()[:64], digest_size=32).digest()
    return base64.urlsafe_b64encode(digest)


def _token() -> str:
    """As Ray itself looks for it.

    Raises:
        NotSealed: there is none.
    """
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        if token := path.read_text().strip():
            return token
    except OSError:
        pass
    raise NotSealed(
        "this Ray has no token, and its tables would hold the platform's secrets: start it with "
        "RAY_AUTH_MODE=token and a token (`ray get-auth-token --generate`) on every node"
    )
