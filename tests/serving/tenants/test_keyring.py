"""API keys: hashed, revoked, expired and rotated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from assets.principal import Principal
from serving.bootstrap.database import open_database
from serving.errors import (
    InvalidRequest,
    Unauthenticated,
)
from serving.tenants.directory import Directory


def test_keys_are_hashed_found_and_revoked(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/t.db"
    directory = Directory(open_database(url))
    tenant = directory.add_tenant("acme", weight=2.0)
    key = directory.keyring.add_key("acme", "laptop")
    assert directory.keyring.authenticate(key.text) == Principal(tenant.id, "acme", 2.0, key.id)
    for path in tmp_path.iterdir():
        assert key.text.encode() not in path.read_bytes()
    directory.keyring.revoke_key(key.id)
    for text in (key.text, None, "", "ao_x", f"ao_{key.id}_wrong", "sk-else"):
        with pytest.raises(Unauthenticated):
            directory.keyring.authenticate(text)
    for name in ("acme", "commons", "octoai", "No", "a" * 80):
        with pytest.raises(InvalidRequest):
            directory.add_tenant(name)


def test_keys_expire_and_are_rotated_with_an_overlap(tmp_path: Path) -> None:
    now = [1000.0]
    directory = Directory(open_database(f"sqlite:///{tmp_path}/t.db"), now=lambda: now[0])
    directory.add_tenant("acme")
    old = directory.keyring.add_key("acme", "ci", "reader", expires_at_s=5000.0)
    assert directory.keyring.authenticate(old.text).role == "reader"
    new = directory.keyring.rotate_key(old.id, overlap_s=100.0)
    for key in (old, new):
        assert directory.keyring.authenticate(key.text).role == "reader"
    now[0] = 1100.0
    directory.keyring._known.clear()  # expires within seconds
    with pytest.raises(Unauthenticated, match="expired"):
        directory.keyring.authenticate(old.text)
    assert directory.keyring.authenticate(new.text).key_id == new.id
    with pytest.raises(InvalidRequest, match="no live key"):
        directory.keyring.rotate_key(old.id, 1.0)
    now[0] = 5000.0
    directory.keyring._known.clear()
    with pytest.raises(Unauthenticated):
        directory.keyring.authenticate(new.text)
    refused: tuple[dict[str, Any], ...] = ({"role": "king"}, {"expires_at_s": 4999.0})
    for changes in refused:
        with pytest.raises(InvalidRequest):
            directory.keyring.add_key("acme", **changes)
    listed = {key.id: (key.role, key.expires_at_s) for key in directory.keyring.keys("acme")}
    assert listed == {old.id: ("reader", 1100.0), new.id: ("reader", 5000.0)}
