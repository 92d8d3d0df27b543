"""The rate limit in requests per minute, shared by all gateways.

Generic cell rate algorithm (ITU-T I.371): each request postpones the time when the quota is full
again, at most a minute ahead.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from assets.principal import Principal
from assets.sql.base import alone
from serving.errors import Refused
from serving.tenants.rows import RateRow

WINDOW_S = 60.0
#: The cost of a request that generates nothing, in requests.
_CHEAP = 0.1


@dataclass(frozen=True, slots=True)
class Quota:
    """The remaining quota, full again in ``whole_in_s`` seconds."""

    limit: int
    remaining: int
    whole_in_s: float

    def headers(self) -> dict[str, str]:
        """Return the headers of draft-ietf-httpapi-ratelimit-headers-10."""
        return {
            "RateLimit-Policy": f'"requests";q={self.limit};w={WINDOW_S:.0f}',
            "RateLimit": f'"requests";r={self.remaining};t={math.ceil(self.whole_in_s)}',
        }


class RateLimited(Refused):
    """The quota is used up; the response headers show it."""

    def __init__(self, quota: Quota, retry_after_s: float) -> None:
        reason = f"your plan allows {quota.limit} requests per minute"
        super().__init__(429, reason, retry_after_s)
        self.quota = quota


class RateLimiter:
    def __init__(self, engine: Engine, now: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._now = now

    def take(self, principal: Principal) -> Quota | None:
        """Count a generation. None without a limit.

        Raises:
            RateLimited: the quota is used up.
        """
        return self._take(principal, principal.queue_id, 1.0, WINDOW_S)

    def take_read(self, principal: Principal) -> Quota | None:
        """Count a request that generates nothing, in a separate quota.

        Ten times as many are allowed, in bursts of the plan's requests per minute.

        Raises:
            RateLimited: the quota is used up.
        """
        return self._take(principal, f"{principal.queue_id}/cheap", _CHEAP, _CHEAP * WINDOW_S)

    def _take(
        self, principal: Principal, bucket: str, share: float, burst_s: float
    ) -> Quota | None:
        limit = principal.plan.requests_per_min
        if limit is None:
            return None
        share_s = share * WINDOW_S / limit
        with Session(self._engine) as session, session.begin():
            alone(session, f"rate/{bucket}")
            now = self._now()
            row = session.get(RateRow, bucket)
            if row is None:
                row = RateRow(tenant_id=bucket, whole_at_s=now)
                session.add(row)
            # Setting the clock back locks out for a window at most.
            ahead_s = min(max(row.whole_at_s - now, 0.0), burst_s)
            if ahead_s + share_s > burst_s + 1e-6:
                retry_after_s = ahead_s + share_s - burst_s
                raise RateLimited(Quota(limit, 0, ahead_s), retry_after_s)
            ahead_s += share_s
            row.whole_at_s = now + ahead_s
        return Quota(limit, int((burst_s - ahead_s) / share_s + 1e-6), ahead_s)
