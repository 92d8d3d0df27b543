"""Print the digests of every replica's working weights as JSON.

A separate process: calls to a replica need Ray, which the harness does not join.
"""

from __future__ import annotations

import asyncio
import json
import os

import ray

from serving.cluster.addressing import process_identity
from serving.cluster.replicas import ServeReplicaClient, ServeReplicaLauncher
from serving.settings import Settings


async def digests(settings: Settings) -> dict[str, str]:
    names = [
        name
        for pool in settings.resolved_pools
        for name in await ServeReplicaLauncher(settings, pool).existing()
    ]
    clients = [ServeReplicaClient(name, process_identity(settings)) for name in names]
    values = await asyncio.gather(*(client.digest() for client in clients))
    return dict(zip(names, values, strict=True))


if __name__ == "__main__":
    settings = Settings()
    ray.init(address=settings.ray_address, namespace=settings.ray_namespace, log_to_driver=False)
    print(json.dumps(asyncio.run(digests(settings))), flush=True)
    # Ray's own shutdown can deadlock: Serve's router thread may start Ray again meanwhile.
    os._exit(0)
