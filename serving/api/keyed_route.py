"""Routes that ask for the key first, and what a request spends of its tenant's rate."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, cast

from fastapi import Depends, Request, Response
from fastapi.routing import APIRoute

from assets.principal import Principal
from serving.api.body import JsonRequest
from serving.api.context import Context, answer_headers, context_of
from serving.logs import note
from serving.tenants.rate import RateLimited

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class OpenRoute(APIRoute):
    """A route without a key: what it returns is public, or its URL is the secret."""

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle

        async def handle_json(request: Request) -> Response:
            return await handle(await _parsed(request))

        return handle_json


class KeyedRoute(OpenRoute):
    """Authenticates, and spends of the tenant's rate, before the body is read."""

    #: Whether a request without a key is never answered.
    needs_key = True
    #: Whether it takes engines' or nodes' time, and a whole request of the rate.
    is_costly = False
    #: Whether it looks at many rows: of a tenant's such requests one is worked on at a time.
    takes_turns = False

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()

        async def admit(request: Request) -> Response:
            context = context_of(request)
            who = await self.authenticate(context, request)
            note(tenant=who.tenant_id)
            request.state.principal = who
            await spend(context, request, who, is_costly=self.is_costly)
            if not self.takes_turns:
                return await handle(request)
            async with context.searches.of(who.queue_id):
                return await handle(request)

        return admit

    async def authenticate(self, context: Context, request: Request) -> Principal:
        """Raises Unauthenticated."""
        return await principal_with(context, bearer(request))


class CostlyRoute(KeyedRoute):
    """Generates, or moves bytes between tiers."""

    is_costly = True


class SearchRoute(KeyedRoute):
    """Looks at many rows."""

    takes_turns = True


async def _parsed(request: Request) -> JsonRequest:
    parsed = JsonRequest(request.scope, request.receive)
    await parsed.parse()
    return parsed


def bearer(request: Request) -> str | None:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


async def principal_with(context: Context, key: str | None) -> Principal:
    """Raises Unauthenticated."""
    keyring = context.backends.directory.keyring
    known = keyring.known(key)
    return known if known is not None else await asyncio.to_thread(keyring.authenticate, key)


async def spend(context: Context, request: Request, who: Principal, *, is_costly: bool) -> None:
    """One of the requests that the tenant's plan allows in a minute; the answer says how many are
    left.

    Raises:
        RateLimited: none is.
    """
    if who.plan.requests_per_min is None:
        return
    limiter = context.backends.limiter
    take = limiter.take if is_costly else limiter.take_cheap
    try:
        quota = await asyncio.to_thread(take, who)
    except RateLimited as limited:
        answer_headers(request).update(limited.quota.headers())
        raise
    if quota is not None:
        answer_headers(request).update(quota.headers())


def principal_of(request: Request) -> Principal:
    """Whom the route has authenticated."""
    return cast(Principal, request.state.principal)


#: The authenticated principal of a request.
Who = Annotated[Principal, Depends(principal_of)]
