"""The settings that Ray stores reveal no secrets."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from serving.bootstrap.secret import platform_secret
from serving.cluster.sealed_settings import NotSealed, seal
from serving.settings import PoolSettings, Settings

CANARY = "canary-of-a-secret-0123456789abcdef"


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a" * 64)
    monkeypatch.setenv("HOME", str(tmp_path))
    return Settings(
        data_dir=tmp_path / "data",
        secret=CANARY,
        database_url=f"postgresql+psycopg://u:{CANARY}@host/db",
        store_url="s3://bucket",
        store_options={"secret": CANARY},
        pools={"a10g": PoolSettings(gpu="a10g")},
        port=81,
    )


def test_sealing_keeps_settings_and_hides_secrets(settings: Settings) -> None:
    sealed = seal(settings)
    assert CANARY.encode() not in pickle.dumps(sealed)
    assert pickle.loads(pickle.dumps(sealed)).open() == settings


def test_environment_variables_of_a_node_are_ignored(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    sealed = seal(settings)
    monkeypatch.setenv("AO_PORT", "9999")
    monkeypatch.setenv("AO_SECRET", "x" * 40)
    assert sealed.open() == settings


def test_the_secret_in_the_data_folder_reaches_every_node(
    settings: Settings, tmp_path: Path
) -> None:
    kept = Settings(data_dir=tmp_path / "kept")
    assert platform_secret(seal(kept).open()) == platform_secret(kept)


def test_the_token_may_be_in_a_file(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sealed = seal(settings)
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    with pytest.raises(NotSealed, match="RAY_AUTH_MODE=token"):
        seal(settings)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("a" * 64 + "\n")
    assert sealed.open() == settings
    (tmp_path / "other").write_text("b" * 64)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "other"))
    with pytest.raises(NotSealed, match="another Ray token"):
        sealed.open()
