"""Content credentials: signed last, valid for a verifier, and clear errors."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from PIL import Image

from serving.bootstrap.policy import open_credentials, open_gate
from serving.errors import Misconfigured
from serving.generation.content_credentials import ContentCredentials
from serving.generation.contract import ImageEncoding
from serving.generation.image_metadata import text_of, with_text
from serving.settings import Settings
from tests.support.certificates import verified, write_credentials


def image_file(encoding: ImageEncoding, text: str) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(
        file, encoding.upper(), **with_text(encoding, text)
    )
    return file.getvalue()


@pytest.mark.parametrize("encoding", ["png", "jpeg", "webp"])
def test_a_verifier_accepts_what_is_signed(tmp_path: Path, encoding: ImageEncoding) -> None:
    credentials = ContentCredentials.from_files(*write_credentials(tmp_path))
    image = image_file(encoding, "Steps: 3")
    signed = credentials.signed(image, encoding)
    state, codes, manifest = verified(signed, encoding)
    assert state == "Valid"
    assert codes == {"signingCredential.untrusted"}  # this authority is no verifier's
    (actions,) = [each for each in manifest["assertions"] if each["label"] == "c2pa.actions.v2"]
    (created,) = actions["data"]["actions"]
    assert created["action"] == "c2pa.created"
    assert created["digitalSourceType"].endswith("trainedAlgorithmicMedia")
    # The picture and its metadata are as they were.
    assert text_of(signed) == "Steps: 3"
    before, after = (Image.open(io.BytesIO(data)) for data in (image, signed))
    assert before.tobytes() == after.tobytes()
    changed = bytearray(signed)
    changed[signed.index(image[-60:-20])] ^= 1
    assert verified(bytes(changed), encoding)[0] == "Invalid"


def test_other_keys(tmp_path: Path) -> None:
    for key in (ec.generate_private_key(ec.SECP384R1()), ed25519.Ed25519PrivateKey.generate()):
        credentials = ContentCredentials.from_files(*write_credentials(tmp_path, key))
        assert verified(credentials.signed(image_file("png", "a"), "png"), "png")[0] == "Valid"


def test_what_cannot_sign_is_told_at_the_start(tmp_path: Path) -> None:
    certificates, key = write_credentials(tmp_path)
    (tmp_path / "other").mkdir()
    _, other = write_credentials(tmp_path / "other")
    for one, two, told in (
        (tmp_path / "missing", key, "missing cannot be read"),
        (key, key, "cannot sign"),
        (certificates, certificates, "cannot sign"),
        (certificates, other, "cannot sign"),
    ):
        settings = Settings(data_dir=tmp_path, c2pa_certificates=one, c2pa_key=two)
        with pytest.raises(Misconfigured, match=told):
            open_credentials(settings)
    with pytest.raises(ValueError, match="belong together"):
        Settings(data_dir=tmp_path, c2pa_key=key)
    with pytest.raises(Misconfigured, match="AO_POLICY_WORDS"):
        open_gate(Settings(data_dir=tmp_path, policy_words=tmp_path / "missing"))
    assert open_credentials(Settings(data_dir=tmp_path)) is None
