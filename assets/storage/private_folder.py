"""Folders for weights, prompts and secrets: private to this user on a shared machine."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

from assets.errors import AssetError

log = logging.getLogger(__name__)


class UnsafeFolder(AssetError):
    """Another user may have written to the folder; the message says what to do."""


def keep_private() -> None:
    """Make files that this process and its children create private to this user."""
    os.umask(0o077)


def private_folder(folder: Path) -> Path:
    """Return ``folder``, which is created if missing, after checking that no other user can write
    to it. Read permission for others is removed.

    Raises:
        UnsafeFolder: it is another user's, a link, or others may write to it.
    """
    missing = []
    for each in (folder, *folder.parents):
        if os.path.lexists(each):
            break
        missing.append(each)
    for each in reversed(missing):  # independent of the umask
        each.mkdir(mode=0o700, exist_ok=True)
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode):
        raise UnsafeFolder(f"{folder} is a link or a file and not a folder: remove it")
    if found.st_uid != os.getuid():
        raise UnsafeFolder(
            f"{folder} belongs to user {found.st_uid}: remove it, or configure another folder"
        )
    if found.st_mode & 0o022:
        raise UnsafeFolder(
            f"others may write to {folder}, so that nothing in it can be trusted: remove it, or "
            f"look at what it holds and `chmod 700` it"
        )
    if found.st_mode & 0o055:
        os.chmod(folder, 0o700)
        log.warning("others could read %s; now they cannot", folder)
    return folder
