"""The route that tells what a request would take: /v1/estimate."""

from __future__ import annotations

from fastapi import APIRouter

from serving.api.context import Ctx
from serving.api.dialects.octoai.generate import GenerateRequest
from serving.api.keyed_route import Authenticated, KeyedRoute
from serving.api.models.estimate import EstimatedRequest

router = APIRouter(tags=["generate"], route_class=KeyedRoute)


@router.post("/v1/estimate")
async def estimate(
    body: GenerateRequest, context: Ctx, principal: Authenticated
) -> EstimatedRequest:
    """Tell what a request for images would take, without making any."""
    estimated = await context.platform.estimate(principal, body.to_request())
    return EstimatedRequest.of(estimated)
