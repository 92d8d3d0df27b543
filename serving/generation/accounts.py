"""What reserves and settles the costs of generations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from serving.tenants.meter import Charge, Settlement


class Accounts(Protocol):
    """Reserves and settles costs."""

    def reserve(self, charge: Charge, expires_s: float) -> None:
        """Reserve the cost for ``expires_s`` seconds.

        Raises:
            BudgetExceeded: the month's budget has no room.
        """

    def estimate(self, charge: Charge) -> float | None:
        """Return the engine seconds that a request would reserve; None: nothing to tell from."""

    def settle(self, spent: Settlement) -> None: ...

    def release(self, charge_id: str) -> None: ...

    def attempted(
        self, charge: Charge, request_id: str, engine_s: float, details: Mapping[str, object]
    ) -> None:
        """Charge the engine time of a request without an image."""
