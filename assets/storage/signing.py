"""Signed URLs for stores that do not sign URLs themselves.

A token is ``expiry.signature``; the signature covers verb, key and expiry.
"""

from __future__ import annotations

import base64
import hashlib
import hmac

from assets.errors import BadSignature


class Signer:
    """HMAC-SHA256 under the platform's secret."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def sign(self, verb: str, key: str, expires_at_s: int) -> str:
        return f"{expires_at_s}.{self._signature(verb, key, expires_at_s)}"

    def verify(self, verb: str, key: str, token: str, now_s: float) -> None:
        """Raise BadSignature unless ``token`` permits ``verb`` on ``key`` at ``now_s``."""
        stamp, _, signature = token.partition(".")
        if not stamp.isascii() or not stamp.isdigit() or len(stamp) > 12:
            raise BadSignature("this URL is malformed; ask for a new one")
        if not hmac.compare_digest(
            signature.encode(), self._signature(verb, key, int(stamp)).encode()
        ):
            raise BadSignature(
                "this URL was altered, or signed for another object or method; ask for a new one"
            )
        if now_s > int(stamp):
            raise BadSignature("this URL has expired; ask for a new one")

    def derived(self, *parts: str) -> str:
        """Return an unguessable function of ``parts`` and the secret."""
        message = "\n".join((str(len(parts)), *(f"{len(part)}:{part}" for part in parts)))
        digest = hmac.new(self._secret, f"derived\n{message}".encode(), hashlib.sha256).digest()
        return base64.urlsafe_b64encode(digest[:24]).decode()

    def _signature(self, verb: str, key: str, expires_at_s: int) -> str:
        message = f"{verb}\n{key}\n{expires_at_s}".encode()
        return hmac.new(self._secret, message, hashlib.sha256).hexdigest()
