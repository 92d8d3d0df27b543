"""The cost of one call to a known process: over Ray and over the platform's own wire.

    python -m benchmarks wire        # about half a minute

Answers of a small image's size through a Serve handle, an actor's method and the wire
(serving/cluster/rpc.py): sequential, after a pause in which CPUs sleep, and 32 concurrent.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

RESULT = Path(__file__).parent / "results" / "wire.json"
QUESTION, ANSWER = b"q" * 2_000, b"a" * 10_000
KEY = b"benchmark"
AT_ONCE = 32
PAUSE_S = 0.05

Call = Callable[[bytes], Awaitable[bytes]]


class Answering:
    async def answer(self, question: bytes) -> bytes:
        return ANSWER

    async def listen(self) -> str:
        from benchmarks.pickled_wire import WireServer

        self._server = WireServer({"answer": self.answer}, KEY)
        return await self._server.start("127.0.0.1")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks wire")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=100, help="calls of each kind per round")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    from benchmarks.overhead import own_ray

    with own_ray():
        result = asyncio.run(measure(arguments.rounds, arguments.calls))
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1) if arguments.json else table(result))


async def measure(rounds: int, calls: int) -> dict[str, Any]:
    ways = await _ways()
    samples: dict[str, dict[str, list[float]]] = {
        name: {"alone_ms": [], "asleep_ms": [], "together_ms": []} for name in ways
    }
    for index in range(rounds + 1):
        for name, call in ways.items():
            spent = {
                "alone_ms": median([await _timed(call) for _ in range(calls)]),
                "asleep_ms": median([await _timed(call, PAUSE_S) for _ in range(calls // 5)]),
                "together_ms": await _together(call, calls),
            }
            if index:  # warm-up
                for kind, value_ms in spent.items():
                    samples[name][kind].append(value_ms)
    return {
        "rounds": rounds,
        "calls": calls,
        "ways": {
            name: {kind: median(values) for kind, values in kinds.items()}
            for name, kinds in samples.items()
        },
    }


async def _ways() -> dict[str, Call]:
    import ray
    from ray import serve

    from benchmarks.pickled_wire import Wire

    deployment = serve.deployment(Answering).options(
        max_ongoing_requests=100, ray_actor_options={"num_cpus": 0}
    )
    deploy = asyncio.to_thread(serve.run, deployment.bind(), name="wire", route_prefix=None)
    handle: Any = await deploy
    actor: Any = ray.remote(Answering).options(num_cpus=0, max_concurrency=1000).remote()
    wire = Wire(await actor.listen.remote(), KEY)

    async def by_handle(question: bytes) -> bytes:
        return await handle.answer.remote(question)  # type: ignore[no-any-return]

    async def by_actor(question: bytes) -> bytes:
        return await actor.answer.remote(question)  # type: ignore[no-any-return]

    async def by_wire(question: bytes) -> bytes:
        return await wire.call("answer", question)  # type: ignore[no-any-return]

    return {"a Serve handle": by_handle, "an actor's method": by_actor, "the wire": by_wire}


async def _timed(call: Call, pause_s: float = 0.0) -> float:
    if pause_s:
        await asyncio.sleep(pause_s)
    start = time.perf_counter()
    answer = await call(QUESTION)
    spent_ms = (time.perf_counter() - start) * 1000
    assert answer == ANSWER
    return spent_ms


async def _together(call: Call, calls: int) -> float:
    """Return milliseconds per call."""

    async def client() -> None:
        for _ in range(calls // 5):
            await call(QUESTION)

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(AT_ONCE)))
    return (time.perf_counter() - start) * 1000 / (AT_ONCE * (calls // 5))


def table(result: Mapping[str, Any]) -> str:
    lines = [
        "| by | one call, p50 ms | after a pause, p50 ms | each of 32 at a time, ms |",
        "|---|---:|---:|---:|",
    ]
    lines += [
        f"| {name} | {way['alone_ms']:.2f} | {way['asleep_ms']:.2f} | {way['together_ms']:.2f} |"
        for name, way in result["ways"].items()
    ]
    return "\n".join(lines)
