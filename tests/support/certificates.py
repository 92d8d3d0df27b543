"""Certificates to sign content credentials with, and the verifier."""

from __future__ import annotations

import datetime
import io
import json
from pathlib import Path
from typing import Any

import c2pa
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

NOW = datetime.datetime.now(datetime.UTC)


def _name(text: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "An operator"),
            x509.NameAttribute(NameOID.COMMON_NAME, text),
        ]
    )


def _certificate(key: Any, subject: str, issuer_key: Any, *, is_ca: bool) -> x509.Certificate:
    builder = x509.CertificateBuilder(
        _name("authority"), _name(subject), key.public_key(), x509.random_serial_number(),
        NOW - datetime.timedelta(days=1), NOW + datetime.timedelta(days=30),
    )  # fmt: skip
    usage = x509.KeyUsage(
        digital_signature=not is_ca, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, key_cert_sign=is_ca, crl_sign=is_ca,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip
    builder = builder.add_extension(x509.BasicConstraints(is_ca, None), critical=True)
    builder = builder.add_extension(usage, critical=True)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = builder.add_extension(identifier, critical=False)
    if not is_ca:
        purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
        builder = builder.add_extension(purpose, critical=False)
        builder = builder.add_extension(authority, critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def write_credentials(folder: Path, key: Any = None) -> tuple[Path, Path]:
    """Write a chain and its key, as an operator buys them."""
    authority = ec.generate_private_key(ec.SECP256R1())
    key = key or ec.generate_private_key(ec.SECP256R1())
    chain = [
        _certificate(key, "signer", authority, is_ca=False),
        _certificate(authority, "authority", authority, is_ca=True),
    ]
    certificates, private = folder / "chain.pem", folder / "key.pem"
    certificates.write_bytes(b"".join(each.public_bytes(Encoding.PEM) for each in chain))
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return certificates, private


def verified(image: bytes, encoding: str) -> tuple[str, set[str], dict[str, Any]]:
    """Return the verifier's state and codes, and the manifest."""
    found = json.loads(c2pa.Reader(f"image/{encoding}", io.BytesIO(image)).json())
    codes = {status["code"] for status in found.get("validation_status", ())}
    return found["validation_state"], codes, found["manifests"][found["active_manifest"]]
