"""Folders for weights, prompts and secrets that other users of the machine cannot read or write."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

from assets.errors import AssetError

log = logging.getLogger(__name__)


class UnsafeFolder(AssetError):
    """Others may have written to the folder; states the remedy."""


def keep_private() -> None:
    """Make new files of this process and its children private."""
    os.umask(0o077)


def private_folder(folder: Path) -> Path:
    """Create ``folder`` if missing, check it, make it private, return it.

    Raises:
        UnsafeFolder: another user's, not a folder, or writable by others.
    """
    missing = []
    for each in (folder, *folder.parents):
        if os.path.lexists(each):
            break
        missing.append(each)
    for each in reversed(missing):  # independent of the umask
        each.mkdir(mode=0o700, exist_ok=True)
    info = os.lstat(folder)
    if not stat.S_ISDIR(info.st_mode):
        raise UnsafeFolder(f"{folder} is a link or a file, not a folder: remove it")
    if info.st_uid != os.getuid():
        raise UnsafeFolder(
            f"{folder} belongs to user {info.st_uid}: remove it, or configure another folder"
        )
    if info.st_mode & 0o022:
        raise UnsafeFolder(
            f"other users may write to {folder}, so its contents cannot be trusted: remove it, or "
            f"inspect its contents and `chmod 700` it"
        )
    if info.st_mode & 0o055:
        os.chmod(folder, 0o700)
        log.warning("removed the read permission of other users from %s", folder)
    return folder
