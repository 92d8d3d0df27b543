"""The gateways' client for the ingest actor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ray

from assets.asset import Asset
from serving.cluster.addressing import INGEST_NAME

if TYPE_CHECKING:
    from ray.actor import ActorHandle


class ClusterIngest:
    """An :class:`~assets.ingest.runner.IngestRunner` over the actor."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._actor: ActorHandle | None = None

    async def start(self, asset: Asset) -> None:
        if self._actor is None:
            self._actor = ray.get_actor(INGEST_NAME, self._namespace)
        self._actor.start.remote(asset)
