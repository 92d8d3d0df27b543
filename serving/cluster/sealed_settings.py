"""Settings as arguments of Ray actors, with encrypted secrets.

Ray stores arguments in its tables. The key derives from the cluster's token, which is not there.
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

from serving.bootstrap.secret import platform_secret
from serving.errors import ServingError
from serving.settings import Settings

SECRETS = ("secret", "database_url", "store_url", "store_options")
_PURPOSE = b"asset-orchestrator settings"


class NotSealed(ServingError):
    """The cluster's token is missing or wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedSettings:
    """``public`` lacks the secrets; ``sealed`` has them, encrypted."""

    public: dict[str, Any]
    sealed: bytes

    def open(self) -> Settings:
        """Decrypt.

        Raises:
            NotSealed: this process lacks the cluster's token.
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
    """Encrypt.

    Raises:
        NotSealed: Ray runs without a token.
    """
    # Includes defaults, against other nodes' environment variables.
    public = settings.model_dump(exclude=set(SECRETS))
    secrets = settings.model_dump(mode="json", include=set(SECRETS))
    secrets["secret"] = platform_secret(settings).decode()
    sealed = Fernet(_key()).encrypt(json.dumps(secrets).encode())
    return SealedSettings(public=public, sealed=sealed)


def _key() -> bytes:
    """The token's 256 random bits need only a plain keyed hash."""
    digest = hashlib.blake2b(_PURPOSE, key=_token().encode()[:64], digest_size=32).digest()
    return base64.urlsafe_b64encode(digest)


def _token() -> str:
    """Look up the token as Ray does. Raises NotSealed."""
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
