"""Runs a scaling case with an autoscaler; prints JSON.

Arguments, from test_scaling.py: ``ADDRESS FOLDER CASE IDLE_S``.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from serving.api.models.pools import Pool
from serving.cluster.environment import require_tokens
from serving.generation.pool_choice import PoolChoice
from tests.support.generation import changed, task_of

require_tokens()

import ray  # noqa: E402

from assets.principal import Principal  # noqa: E402
from assets.selection import AssetSelection  # noqa: E402
from serving.bootstrap.backends import open_backends  # noqa: E402
from serving.cluster.dispatcher_client import ClusterBackend  # noqa: E402
from serving.cluster.launch import running_pool  # noqa: E402
from serving.generation.contract import (  # noqa: E402
    GenerationParams,
    GenerationRequest,
    GenerationResult,
)
from serving.generation.service import GenerationService  # noqa: E402
from serving.generation.sizes import ImageSizes  # noqa: E402
from serving.generation.submission import Submission  # noqa: E402
from serving.settings import PoolSettings, Settings  # noqa: E402

Submit = Callable[..., "asyncio.Task[GenerationResult]"]


class Case:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.backend = ClusterBackend(settings)
        library = open_backends(settings).library
        self._recipe = library.resolve(Principal("t", "t"), AssetSelection()).recipe
        self._count = 0
        self.submitted_s: list[float] = []

    def submit(self, steps: int, pool: str = "") -> asyncio.Task[GenerationResult]:
        name = str(self._count)
        self._count += 1
        request = task_of(name, self._recipe, "a star", 128, 128, (3,), steps=steps)
        submission = Submission(changed(request, pool=pool), "t", 1.0, 300.0)
        self.submitted_s.append(time.time())
        return asyncio.create_task(self.backend.submit(submission))

    async def pools(self) -> list[dict[str, Any]]:
        return [
            Pool.of(status).model_dump(exclude_unset=True) for status in await self.backend.pools()
        ]

    async def pool(self) -> dict[str, Any]:
        return (await self.pools())[0]

    async def until(
        self, condition: Callable[[dict[str, Any]], bool], timeout_s: float = 240.0
    ) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_s
        while not condition(pool := await self.pool()):
            assert time.monotonic() < deadline, pool
            await asyncio.sleep(0.05)
        return pool


def ordered(pool: dict[str, Any]) -> int:
    return sum(event["what"] == "ordered" for event in pool["events"])


async def ten_at_once(case: Case) -> dict[str, Any]:
    results = await asyncio.gather(*(case.submit(8) for _ in range(10)))
    drained_s = time.time()
    pool = await case.until(lambda pool: not pool["replicas"])
    return {
        "replicas": sorted({result.replica for result in results}),
        "drained_s": drained_s,
        "events": pool["events"],
    }


async def two_and_two(case: Case) -> dict[str, Any]:
    first = [case.submit(200), case.submit(200)]
    await case.until(lambda p: any(r["running"] for r in p["replicas"]))
    waiting = (await case.pool())["waiting"]
    await asyncio.sleep(1.0)  # a miscounting scaler would order another replica
    before = ordered(await case.pool())
    second = [case.submit(8), case.submit(8)]
    queue = (await case.until(lambda p: ordered(p) > before or p["waiting"] >= 3))["waiting"]
    await case.until(lambda p: ordered(p) == 2)
    results = await asyncio.gather(*first, *second)
    pool = await case.until(lambda pool: not pool["replicas"])
    return {
        "waiting with one GPU": waiting,
        "ordered with two requests": before,
        "queue with four": queue,
        "replicas": sorted({result.replica for result in results}),
        "events": pool["events"],
    }


async def two_kinds(case: Case) -> dict[str, Any]:
    """Two tenants on one kind of GPU; then one moves to another."""
    backends = open_backends(case.settings)
    directory, keyring = backends.directory, backends.directory.keyring
    keys = {}
    for tenant in ("moves", "stays"):
        directory.add_tenant(tenant)
        directory.set_gpu(tenant, "a10g")
        keys[tenant] = keyring.add_key(tenant).text
    platform = GenerationService(
        backends.library,
        case.backend,
        backends.meter,
        ImageSizes(128),
        300.0,
        PoolChoice(case.settings.resolved_pools),
    )

    async def generate(tenant: str) -> dict[str, Any]:
        started = time.monotonic()
        request = GenerationRequest(params=GenerationParams(prompt="a star", steps=2), seeds=(3,))
        generated = await platform.generate(keyring.authenticate(keys[tenant]), request)
        await platform.settle(generated)
        return {
            "tenant": tenant,
            "replica": generated.result.replica,
            "seconds": time.monotonic() - started,
        }

    answers = [await generate(tenant) for tenant in ("moves", "stays", "moves", "stays")]
    directory.set_gpu("moves", "h100")
    both = [generate("moves"), *(generate("stays") for _ in range(3))]
    answers += await asyncio.gather(*both)
    answers += [await generate(tenant) for tenant in ("moves", "stays", "moves", "stays")]
    pools = await case.pools()
    events = [event for pool in pools for event in pool["events"]]
    await case.until(lambda pool: not pool["replicas"])
    return {"answers": answers, "events": events}


async def nodes_gone(timeout_s: float = 120.0) -> int:
    """Wait for an empty cluster; return the nodes left beside the head."""
    deadline = time.monotonic() + timeout_s
    while (alive := sum(bool(node["Alive"]) for node in ray.nodes()) - 1) and (
        time.monotonic() < deadline
    ):
        await asyncio.sleep(0.5)
    return alive


CASES: dict[str, tuple[int, Callable[[Case], Awaitable[dict[str, Any]]]]] = {
    "ten at once": (1, ten_at_once),
    "two and two": (2, two_and_two),
    "two kinds": (8, two_kinds),
}


def main() -> None:
    address, folder, name, idle_s = sys.argv[1:]
    queue_size, run = CASES[name]
    settings = Settings(
        data_dir=Path(folder),
        ray_address=address,
        pools={
            kind: PoolSettings(gpu=kind, queue_size=queue_size, min=0, max=4, idle_s=float(idle_s))
            for kind in ("a10g", "h100")
        },
        device="cpu",
        host_dir=Path(folder) / "host",
    )

    async def run_case(settings: Settings) -> dict[str, Any]:
        case = Case(settings)
        result = await run(case)
        return {**result, "submitted_s": case.submitted_s, "nodes_left": await nodes_gone()}

    with running_pool(settings, lambda text: print(text, file=sys.stderr)) as running:
        result = asyncio.run(run_case(running))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
