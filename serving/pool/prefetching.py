"""Copies blobs to host RAM before a request needs them."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from assets.errors import AssetError
from orchestrator.errors import TierError
from router.scheduler import Promotion
from serving.errors import ServingError
from serving.generation.contract import WARM_TIMEOUT_S
from serving.pool.replica_state import ReplicaState


class Prefetching:
    """One promotion at a time for each replica: generations and reports must not wait."""

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[None]] = set()

    def start(self, state: ReplicaState, promotion: Promotion) -> None:
        if state.promoting:
            return
        state.promoting = True
        task = asyncio.create_task(self._fetch(state, promotion))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _fetch(self, state: ReplicaState, promotion: Promotion) -> None:
        try:
            # Errors recur, and are reported, when the request runs.
            with suppress(ServingError, TierError, AssetError, TimeoutError):
                async with asyncio.timeout(WARM_TIMEOUT_S):
                    await state.client.warm(promotion.blobs)
        finally:
            state.promoting = False
