"""Settings as arguments of Ray actors, with their secrets encrypted.

Ray keeps an actor's arguments in its tables, on disk and in memory. So the secrets are encrypted
with a key derived from the cluster's token, which every process of the cluster has and which is
not in the tables.
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
    """The cluster's token is missing, or is not the one that encrypted the secrets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedSettings:
    """``public`` holds the settings without their secrets; ``sealed`` holds the encrypted
    secrets."""

    public: dict[str, Any]
    sealed: bytes

    def open(self) -> Settings:
        """Decrypt the settings.

        Raises:
            NotSealed: this process does not have the cluster's token.
        """
        try:
            secrets = json.loads(Fernet(_key()).decrypt(self.sealed))
        except InvalidToken:
            raise NotSealed(
                "this node has another Ray token than the node that runs `serve`: use the same "
                "token on all nodes"
            ) from None
        return Settings(**self.public, **secrets)


def seal(settings: Settings) -> SealedSettings:
    """Encrypt the secrets of ``settings``.

    Raises:
        NotSealed: Ray runs without a token.
    """
    # Includes defaults, so that the environment variables of another node change nothing.
    public = settings.model_dump(exclude=set(SECRETS))
    secrets = settings.model_dump(mode="json", include=set(SECRETS))
    secrets["secret"] = settings.secret_bytes.decode()
    sealed = Fernet(_key()).encrypt(json.dumps(secrets).encode())
    return SealedSettings(public=public, sealed=sealed)


def _key() -> bytes:
    """The Fernet key. The token has 256 random bits, so a plain keyed hash suffices."""
    digest = hashlib.blake2b(_PURPOSE, key=_token().encode()[:64], digest_size=32).digest()
    return base64.urlsafe_b64encode(digest)


def _token() -> str:
    """The cluster's token, looked up as Ray does.

    Raises:
        NotSealed: there is no token.
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
        "Ray has no token, so its tables would hold the platform's secrets in clear: start it with "
        "RAY_AUTH_MODE=token and a token (`ray get-auth-token --generate`) on every node"
    )
