"""Requests a minute, kept by the database: the same for every gateway.

One number a tenant, the time at which its quota will be whole again (the generic cell rate
algorithm, ITU-T I.371): a request moves it on by a request's share of the minute, and is
refused when that is more than a minute away.
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
#: What a request that generates nothing takes, of one.
_CHEAP = 0.1


@dataclass(frozen=True, slots=True)
class Quota:
    """What is left of a tenant's minute."""

    limit: int
    remaining: int
    whole_in_s: float

    def headers(self) -> dict[str, str]:
        """As draft-ietf-httpapi-ratelimit-headers-10 writes them."""
        return {
            "RateLimit-Policy": f'"requests";q={self.limit};w={WINDOW_S:.0f}',
            "RateLimit": f'"requests";r={self.remaining};t={math.ceil(self.whole_in_s)}',
        }


class RateLimited(Refused):
    """Raised with the quota, so that the answer can say when to come again."""

    def __init__(self, quota: Quota, retry_after_s: float) -> None:
        reason = f"your plan allows {quota.limit} requests a minute"
        super().__init__(429, reason, retry_after_s)
        self.quota = quota


class RateLimiter:
    def __init__(self, engine: Engine, now: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._now = now

    def take(self, principal: Principal) -> Quota | None:
        """Take a request that generates. None where the plan sets no limit.

        Raises:
            RateLimited: with the seconds until there is one again.
        """
        return self._take(principal, principal.queue_id, 1.0, WINDOW_S)

    def take_cheap(self, principal: Principal) -> Quota | None:
        """Take a request that generates nothing. Ten times as many are allowed a minute, and as
        many at once as the plan has requests a minute. The two rates are independent: a tenant
        that has used up the first can still read.

        Raises:
            RateLimited: with the seconds until there is one again.
        """
        return self._take(principal, f"{principal.queue_id}/cheap", _CHEAP, _CHEAP * WINDOW_S)

    def _take(
        self, principal: Principal, bucket: str, share: float, burst_s: float
    ) -> Quota | None:
        """``share`` of a request; those that come at once may take ``burst_s`` of the window."""
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
            # A clock that was set back must not shut a tenant out for longer than a window.
            ahead_s = min(max(row.whole_at_s - now, 0.0), burst_s)
            if ahead_s + share_s > burst_s + 1e-6:
                retry_after_s = ahead_s + share_s - burst_s
                raise RateLimited(Quota(limit, 0, ahead_s), retry_after_s)
            ahead_s += share_s
            row.whole_at_s = now + ahead_s
        return Quota(limit, int((burst_s - ahead_s) / share_s + 1e-6), ahead_s)
