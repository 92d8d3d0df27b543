"""The error tree of the tiers.

::

    TierError
    ├── TierFull        everything in the tier is leased or pinned; retry when a lease ends
    ├── TooLarge        the value alone exceeds the tier's budget
    ├── SourceDown      neither the store nor a peer gives the bytes now; says when to ask again
    ├── Corrupt         bytes arrived that are not the ones that were asked for
    └── TierUnusable    the tier's folder cannot hold it (a small /dev/shm); says the remedy
"""

from __future__ import annotations


class TierError(Exception):
    """Base of everything this package raises on purpose."""


class TierFull(TierError):
    def __init__(self, tier: str, needed_bytes: int, budget_bytes: int) -> None:
        super().__init__(tier, needed_bytes, budget_bytes)  # as they are: it must unpickle

    def __str__(self) -> str:
        tier, needed_bytes, budget_bytes = self.args
        return (
            f"the {tier} tier has no room for {needed_bytes} bytes: all of its {budget_bytes} "
            "are leased or pinned"
        )


class TooLargeForTier(TierError):
    def __init__(self, tier: str, needed_bytes: int, budget_bytes: int) -> None:
        super().__init__(tier, needed_bytes, budget_bytes)

    def __str__(self) -> str:
        tier, needed_bytes, budget_bytes = self.args
        return (
            f"{needed_bytes} bytes exceed the whole {tier} tier ({budget_bytes}); raise its budget"
        )


class SourceDown(TierError):
    def __init__(self, reason: str, retry_after_s: float = 5.0) -> None:
        super().__init__(reason, retry_after_s)

    @property
    def retry_after_s(self) -> float:
        return float(self.args[1])

    def __str__(self) -> str:
        return str(self.args[0])


class Corrupt(TierError):
    pass


class TierUnusable(TierError):
    pass
