"""File locks (flock) that the kernel releases when their holder dies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def acquire(path: Path, *, shared: bool, wait: bool = True) -> int | None:
    """Lock ``path``, creating it if absent; closing the descriptor releases the lock.

    None if not ``wait`` and another process holds it. The exclusive holder may unlink the file,
    which voids the lock, so the inode is compared after locking.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        mode = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.flock(descriptor, mode if wait else mode | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        try:
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Wait for and hold an exclusive lock."""
    descriptor = acquire(path, shared=False)
    assert descriptor is not None
    try:
        yield
    finally:
        os.close(descriptor)
