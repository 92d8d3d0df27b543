"""Folders that hold weights, prompts and secrets: this user's, whoever else uses the machine."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

from assets.errors import AssetError

log = logging.getLogger(__name__)


class UnsafeFolder(AssetError):
    """Others may have put there what is in it; says what to do."""


def keep_private() -> None:
    """What this process and its children create is for this user alone."""
    os.umask(0o077)


def private_folder(folder: Path) -> Path:
    """``folder``, made if need be, which others neither write to nor read.

    Raises:
        UnsafeFolder: it is another user's, a link, or others may write to it.
    """
    missing = []
    for each in (folder, *folder.parents):
        if os.path.lexists(each):
            break
        missing.append(each)
    for each in reversed(missing):  # whatever the umask of who calls
        each.mkdir(mode=0o700, exist_ok=True)
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode):
        raise UnsafeFolder(f"{folder} is no folder but a link or a file: remove it")
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
