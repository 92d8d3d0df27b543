"""The error tree of the tiers.

::

    TierError
    ├── TierFull          all is leased or pinned; retry later
    ├── TooLargeForTier   larger than the tier's budget
    ├── SourceDown        a store or peer is unavailable; carries ``retry_after_s``
    ├── Corrupt           the bytes do not match the blob
    └── TierUnusable      the folder is unsafe or too small (/dev/shm)
"""

from __future__ import annotations


class TierError(Exception):
    """Base class of this package's errors."""


class TierFull(TierError):
    def __init__(self, tier: str, needed_bytes: int, budget_bytes: int) -> None:
        super().__init__(tier, needed_bytes, budget_bytes)  # keeps the error picklable

    def __str__(self) -> str:
        tier, needed_bytes, budget_bytes = self.args
        return (
            f"the {tier} tier has no room for {needed_bytes} bytes: too much of its {budget_bytes} "
            "bytes is leased or pinned; retry later or raise its budget"
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
