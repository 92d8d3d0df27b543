"""The working weights' digests of every replica, as JSON: run by the harness with a gateway's
environment, since only who has joined Ray may ask a replica."""

from __future__ import annotations

import asyncio
import json
import os

import ray

from serving.cluster.replicas import ServeReplicaClient, ServeReplicaLauncher, wire_key
from serving.settings import Settings


async def digests(settings: Settings) -> dict[str, str]:
    names = [
        name
        for pool in settings.resolved_pools
        for name in await ServeReplicaLauncher(settings, pool).existing()
    ]
    clients = [ServeReplicaClient(name, wire_key(settings)) for name in names]
    found = await asyncio.gather(*(client.digest() for client in clients))
    return dict(zip(names, found, strict=True))


if __name__ == "__main__":
    settings = Settings()
    ray.init(address=settings.ray_address, namespace=settings.ray_namespace, log_to_driver=False)
    print(json.dumps(asyncio.run(digests(settings))), flush=True)
    # Without Ray's own shutdown: Serve's router, in its thread, may start Ray anew meanwhile, and
    # both then wait for each other for ever.
    os._exit(0)
