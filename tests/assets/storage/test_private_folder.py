"""Folders closed to other users."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from assets.storage.private_folder import UnsafeFolder, private_folder
from orchestrator.errors import TierUnusable
from orchestrator.file_tier import FileTier


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_new_folder_and_parents_are_private_under_any_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        private_folder(tmp_path / "a" / "b")
    finally:
        os.umask(before)
    assert [mode(tmp_path / "a"), mode(tmp_path / "a" / "b")] == [0o700, 0o700]


@pytest.mark.parametrize("bits", [0o777, 0o770, 0o702])
def test_folder_writable_by_others_is_refused(tmp_path: Path, bits: int) -> None:
    folder = tmp_path / "tier"
    folder.mkdir()
    folder.chmod(bits)
    with pytest.raises(UnsafeFolder, match="chmod 700"):
        private_folder(folder)
    with pytest.raises(TierUnusable, match="the host tier"):
        FileTier("host", folder, 1 << 20)
    assert not list(folder.iterdir())


def test_folder_readable_by_others_becomes_private(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    folder.chmod(0o755)
    assert mode(private_folder(folder)) == 0o700


def test_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    (tmp_path / "file").touch()
    for name in ("link", "nowhere", "file"):
        with pytest.raises(UnsafeFolder, match="not a folder"):
            private_folder(tmp_path / name)


@pytest.mark.skipif(os.getuid() != 0, reason="only root may change the owner")
def test_another_users_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir(mode=0o700)
    os.chown(folder, 12345, 12345)
    with pytest.raises(UnsafeFolder, match="12345"):
        private_folder(folder)
