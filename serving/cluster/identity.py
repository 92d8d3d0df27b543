"""Certificates of the platform's processes, from its secret.

Every process derives the same authority and signs its own certificate, so no certificate is stored
or distributed. A process without the secret can neither call nor answer.
"""

from __future__ import annotations

import datetime
import hashlib
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from assets.storage.signing import Signer

#: The name in every certificate; addresses change, membership is what counts.
NAME = "asset-orchestrator.internal"
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # of P-256, FIPS 186-4
#: Clocks of machines may differ by this.
_SKEW = datetime.timedelta(days=2)
#: Longer than any process lives.
_VALID = datetime.timedelta(days=10 * 365)


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process's key and certificate, and the authority that signed it, in PEM."""

    key: bytes
    certificate: bytes
    authority: bytes


def identity(signer: Signer) -> ProcessIdentity:
    """A new identity under the authority of the platform's secret."""
    now = datetime.datetime.now(datetime.UTC)
    authority_key = _authority_key(signer)
    authority = (
        _builder(authority_key.public_key(), now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    key = ec.generate_private_key(ec.SECP256R1())
    roles = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate = (
        _builder(key.public_key(), now, "member")
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage(roles), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    return ProcessIdentity(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
        certificate.public_bytes(serialization.Encoding.PEM),
        authority.public_bytes(serialization.Encoding.PEM),
    )


def _authority_key(signer: Signer) -> ec.EllipticCurvePrivateKey:
    # 512 bits, so that the remainder is uniform to 2^-256.
    digest = hashlib.sha512(signer.derived("authority").encode()).digest()
    return ec.derive_private_key(1 + int.from_bytes(digest) % (_ORDER - 1), ec.SECP256R1())


def _builder(
    key: ec.EllipticCurvePublicKey, now: datetime.datetime, subject: str = "authority"
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{NAME} {subject}")]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{NAME} authority")]))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + _VALID)
    )


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
