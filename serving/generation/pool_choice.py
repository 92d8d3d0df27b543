"""The pool that a request names, or that is its organisation's default."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from router.pool import Pool, pool_names
from serving.errors import InvalidRequest


class PoolChoice:
    def __init__(self, pools: Sequence[Pool]) -> None:
        self._names = pool_names(pools)

    def called(self, gpu: str) -> Collection[str]:
        """The pool of a name or kind of GPU; the default also as the empty name, by which requests
        leave the choice to the platform.

        Raises:
            InvalidRequest: there is none.
        """
        if gpu not in self._names:
            raise InvalidRequest("gpu", f"unknown GPU {gpu!r}; available: {', '.join(self._names)}")
        pool = self._names[gpu]
        return (pool, "") if pool == next(iter(self._names.values())) else (pool,)

    def choose(self, gpu: str, default: str) -> str:
        """Return a pool's name; empty: the platform's first. ``default``: the organisation's.

        Raises:
            InvalidRequest: there is none of that name or kind.
        """
        wanted = gpu or default
        if not wanted:
            return ""
        if wanted not in self._names:
            source = "" if gpu else " (the default of your organisation)"
            available = ", ".join(self._names)
            raise InvalidRequest("gpu", f"unknown GPU {wanted!r}{source}; available: {available}")
        return self._names[wanted]
