"""C2PA content credentials: a signed mark that an image was generated.

Signed last: any later change of the file would show as tampering. Needs the extra ``c2pa``.
"""

from __future__ import annotations

import io
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from PIL import Image

from serving.errors import InternalError, Misconfigured
from serving.generation.contract import ImageEncoding

if TYPE_CHECKING:
    import c2pa

_PROGRAM = "Asset Orchestrator"
#: IPTC's term for media made by a trained model.
_SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


class ContentCredentials:
    """Signs with the operator's certificates, leaf first, and key, both PEM. Thread-safe."""

    def __init__(self, certificates: bytes, key: bytes, timestamp_url: str = "") -> None:
        self._certificates = certificates
        self._key = key
        self._timestamp_url = timestamp_url.encode() or None
        self._lock = Lock()

    @classmethod
    def from_files(
        cls, certificates: Path, key: Path, timestamp_url: str = ""
    ) -> ContentCredentials:
        """Read both files and sign a small image.

        Raises:
            Misconfigured: says what to change.
        """
        try:
            made = cls(certificates.read_bytes(), key.read_bytes(), timestamp_url)
        except OSError as error:
            raise Misconfigured(f"{error.filename} cannot be read: {error.strerror}") from None
        probe = io.BytesIO()
        Image.new("RGB", (8, 8)).save(probe, "PNG")
        try:
            made.signed(probe.getvalue(), "png")
        except ImportError:
            raise Misconfigured(
                "c2pa-python is not installed: pip install 'asset-orchestrator[c2pa]'"
            ) from None
        except (InternalError, ValueError) as error:
            raise Misconfigured(
                f"{certificates} and {key} cannot sign: {error}; C2PA wants a chain of PEM "
                "certificates for digital signatures (e-mail protection or document signing), leaf "
                "first, and the leaf's key"
            ) from None
        return made

    def signed(self, image: bytes, encoding: ImageEncoding) -> bytes:
        """Return the file with its credentials.

        Raises:
            InternalError: it cannot be signed.
        """
        import c2pa

        signed = io.BytesIO()
        try:
            with self._lock:
                builder = c2pa.Builder(_manifest(), self._context)
                builder.sign(self._signer, f"image/{encoding}", io.BytesIO(image), signed)
        except c2pa.C2paError as error:
            raise InternalError(f"the image cannot be signed: {error}") from None
        return signed.getvalue()

    @cached_property
    def _signer(self) -> c2pa.Signer:
        import c2pa

        info = c2pa.C2paSignerInfo(
            _algorithm(self._key), self._certificates, self._key, self._timestamp_url
        )
        return c2pa.Signer.from_info(info)

    @cached_property
    def _context(self) -> c2pa.Context:
        import c2pa

        options: dict[str, Any] = {"builder": {"thumbnail": {"enabled": False}}}
        return c2pa.Context(c2pa.Settings.from_dict(options))


def _manifest() -> dict[str, Any]:
    created = {
        "action": "c2pa.created",
        "digitalSourceType": _SOURCE,
        "softwareAgent": {"name": _PROGRAM},
    }
    return {
        "claim_generator_info": [{"name": _PROGRAM, "version": version("asset-orchestrator")}],
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [created]}}],
    }


def _algorithm(key: bytes) -> bytes:
    """Return C2PA's name of the key's algorithm. Raises ValueError."""
    match load_pem_private_key(key, None):
        case ec.EllipticCurvePrivateKey() as curve if curve.curve.key_size == 256:
            return b"es256"
        case ec.EllipticCurvePrivateKey() as curve if curve.curve.key_size == 384:
            return b"es384"
        case ed25519.Ed25519PrivateKey():
            return b"ed25519"
        case rsa.RSAPrivateKey():
            return b"ps256"
    raise ValueError("the key is none of P-256, P-384, Ed25519 and RSA")
