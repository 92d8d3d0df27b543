"""Settings: secrets, and the environment round trip."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.bootstrap.secret import platform_secret
from serving.settings import Settings


def test_a_short_secret_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shorter"):
        _ = platform_secret(Settings(data_dir=tmp_path, secret="short"))
    (tmp_path / "secret").touch()
    with pytest.raises(ValueError, match="shorter"):
        _ = platform_secret(Settings(data_dir=tmp_path))


def test_settings_round_trip_through_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(
        data_dir=tmp_path, replicas=3, store_options={"key": "k"}, open_tenant="demo", port=81
    )
    for name, value in settings.to_environment().items():
        monkeypatch.setenv(name, value)
    assert Settings() == settings
    assert platform_secret(settings) == platform_secret(Settings())
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
