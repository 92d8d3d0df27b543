"""The platform's secret: signs URLs and salts content keys."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress

from assets.storage.private_folder import private_folder
from serving.settings import Settings

_LEAST_CHARS = 32


def platform_secret(settings: Settings) -> bytes:
    """AO_SECRET, or the secret in the data folder (mode 0600), created on first use.

    Raises:
        ValueError: it is too short.
    """
    if settings.secret:
        return _checked(settings.secret.encode(), "AO_SECRET")
    path = settings.data_dir / "secret"
    if not path.exists():
        private_folder(settings.data_dir)
        temporary = path.with_name(f".secret.{os.getpid()}.{secrets.token_hex(4)}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_hex(32).encode())
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):  # another process was first: use its secret
            os.link(temporary, path)
        temporary.unlink()
    return _checked(path.read_bytes(), str(path))


def _checked(secret: bytes, source: str) -> bytes:
    if len(secret) < _LEAST_CHARS:
        raise ValueError(
            f"the secret in {source} is shorter than {_LEAST_CHARS} characters: use a longer one"
        )
    return secret
