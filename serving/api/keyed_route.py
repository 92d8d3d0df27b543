"""Route classes: authentication and rate limits before the body is read."""

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

Handler = Callable[[Request], Coroutine[None, None, Response]]


class OpenRoute(APIRoute):
    """A route without a key: public, or with a secret URL. Responses have the fields that were
    set."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "response_model_exclude_unset": True})

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle

        async def handle_json(request: Request) -> Response:
            return await handle(await _parsed(request))

        return handle_json


class KeyedRoute(OpenRoute):
    """Authenticates and counts a request before reading the body."""

    needs_key = True
    #: Uses engine or node time; counts as a whole request.
    is_costly = False
    #: Reads many rows; one at a time per tenant.
    takes_turns = False

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()

        async def admit(request: Request) -> Response:
            context = context_of(request)
            principal = await self.authenticate(context, request)
            note(tenant=principal.tenant_id)
            request.state.principal = principal
            await spend(context, request, principal, is_costly=self.is_costly)
            if not self.takes_turns:
                return await handle(request)
            async with context.searches.of(principal.queue_id):
                return await handle(request)

        return admit

    async def authenticate(self, context: Context, request: Request) -> Principal:
        """Return the principal. Raises Unauthenticated."""
        return await principal_with(context, bearer(request))


class CostlyRoute(KeyedRoute):
    """A route that generates or moves bytes between tiers."""

    is_costly = True


class SearchRoute(KeyedRoute):
    """A route that reads many rows."""

    takes_turns = True


async def _parsed(request: Request) -> JsonRequest:
    parsed = JsonRequest(request.scope, request.receive)
    await parsed.parse()
    return parsed


def bearer(request: Request) -> str | None:
    """Return the Bearer token, if any."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


async def principal_with(context: Context, key: str | None) -> Principal:
    """Return a key's principal. Raises Unauthenticated."""
    keyring = context.backends.directory.keyring
    cached = keyring.known(key)
    return cached if cached is not None else await asyncio.to_thread(keyring.authenticate, key)


async def spend(
    context: Context, request: Request, principal: Principal, *, is_costly: bool
) -> None:
    """Count a request; set the quota headers.

    Raises:
        RateLimited: the quota is used up.
    """
    if principal.plan.requests_per_min is None:
        return
    limiter = context.backends.limiter
    take = limiter.take if is_costly else limiter.take_read
    try:
        quota = await asyncio.to_thread(take, principal)
    except RateLimited as limited:
        answer_headers(request).update(limited.quota.headers())
        raise
    if quota is not None:
        answer_headers(request).update(quota.headers())


async def principal_of(request: Request) -> Principal:
    """Return the authenticated principal. Not a plain function: FastAPI calls those in a thread."""
    return cast(Principal, request.state.principal)


Authenticated = Annotated[Principal, Depends(principal_of)]
