"""Runs the platform on two nodes with separate tiers; prints JSON.

Arguments: data folder, Ray's folder, store's URL, its options as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from serving.cluster.environment import require_tokens
from tests.support.generation import task_of

require_tokens()

import httpx2  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from assets.principal import Principal  # noqa: E402
from assets.selection import AssetSelection  # noqa: E402
from serving.bootstrap.backends import open_backends  # noqa: E402
from serving.cluster.dispatcher_client import ClusterBackend  # noqa: E402
from serving.cluster.launch import running_pool  # noqa: E402
from serving.generation.submission import Submission  # noqa: E402
from serving.settings import Settings  # noqa: E402
from tests.support.servers import free_port  # noqa: E402


async def generate(pool: Settings) -> dict[str, Any]:
    library = open_backends(pool).library
    recipe = library.resolve(Principal("t", "t"), AssetSelection(loras={"night": 1.0})).recipe
    (lora,) = recipe.extras()
    backend = ClusterBackend(pool)

    def submission(name: str) -> Submission:
        request = task_of(name, recipe, "a star", 128, 128, (3,), steps=2)
        return Submission(request, "t", 1.0, 120.0)

    tiers = await backend.warm([lora])
    results = await asyncio.gather(*(backend.submit(submission(str(i))) for i in range(6)))
    async with asyncio.timeout(10):
        while True:
            places = await backend.residency([lora.key])
            if lora.key in places and len(places[lora.key].nodes) == 2:
                break
            await asyncio.sleep(0.05)
    return {
        "lora": lora.key,
        "warmed from": sorted(tiers.values()),
        "nodes that hold it": sorted(map(sorted, places[lora.key].nodes.values())),
        "distinct images": len({result.images for result in results}),
    }


def status_of_second_gateway(pool: Settings) -> int:
    """Start a gateway as on another node; return a generation's status."""
    gateway = pool.model_copy(update={"port": free_port(), "gateways": 1, "open_tenant": "open"})
    open_backends(pool).directory.add_tenant("open")
    command = [sys.executable, "-m", "serving.cli.main", "gateways"]
    process = subprocess.Popen(command, env={**os.environ, **gateway.to_environment()})
    url, deadline = gateway.resolved_public_url, time.monotonic() + 120
    try:
        while True:
            assert process.poll() is None
            assert time.monotonic() < deadline
            with suppress(httpx2.TransportError):
                if httpx2.get(f"{url}/readyz", timeout=30).status_code == 200:
                    break
            time.sleep(0.1)
        body = {"prompt": "a star", "steps": 2}
        return httpx2.post(f"{url}/generate", json=body, timeout=120).status_code
    finally:
        process.terminate()
        process.wait(60)


def main() -> None:
    folder, temporary, store, options = sys.argv[1:]
    head: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 128 << 20}
    cluster = Cluster(
        initialize_head=True,
        head_node_args={**head, "include_dashboard": False, "temp_dir": temporary},
    )
    try:
        cluster.add_node(**head)
        settings = Settings(
            data_dir=Path(folder),
            ray_address=cluster.address,
            replicas=2,
            host_dir=Path(folder) / "host-{node}",
            disk_dir=Path(folder) / "disk-{node}",
            store_url=store,
            store_options=json.loads(options),
        )
        with running_pool(settings, lambda message: print(message, file=sys.stderr)) as pool:
            answer = asyncio.run(generate(pool))
            answer["second gateway"] = status_of_second_gateway(pool)
    finally:
        cluster.shutdown()
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
