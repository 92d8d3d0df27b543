"""The cost of one call to a known process, by transport.

    python -m benchmarks wire        # about two minutes

Answers of a small and of a large image's size through a Serve handle, an actor's method, "the
wire" (benchmarks/pickled_wire.py, frames of pickles over TCP, the platform's before gRPC) and the
platform's RPC (serving/cluster/rpc.py: gRPC, mutual TLS), in turn: sequential, after a pause in
which CPUs sleep, and 32 concurrent.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from statistics import median
from typing import Any

from assets.storage.signing import Signer
from benchmarks.document import Document

RESULT = Path(__file__).parent / "results" / "wire.json"
QUESTION = b"q" * 2_000
SIZES = (10_000, 1_500_000)
KEY = b"benchmark"
AT_ONCE = 32
PAUSE_S = 0.05

Call = Callable[[bytes], Awaitable[bytes]]


class Answering:
    """Answers with as many bytes as its instance's size."""

    def __init__(self, size_bytes: int) -> None:
        self._answer = b"a" * size_bytes

    async def answer(self, question: bytes) -> bytes:
        return self._answer

    async def stream(self, question: bytes) -> AsyncIterator[bytes]:
        yield self._answer

    async def listen(self) -> tuple[str, str]:
        """Return the addresses of frames and of RPC."""
        from benchmarks.pickled_wire import WireServer
        from serving.cluster.identity import identity
        from serving.cluster.rpc import RpcServer

        self._frames = WireServer({"answer": self.answer}, KEY)
        unary, streams = {"answer": self.answer}, {"stream": self.stream}
        self._rpc = RpcServer(identity(Signer(KEY)), unary, streams)
        return await self._frames.start("127.0.0.1"), await self._rpc.start("127.0.0.1")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks wire")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=100, help="calls of each kind per round")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    from benchmarks.overhead import own_ray

    with own_ray():
        rounds, calls = arguments.rounds, arguments.calls
        small, large = (asyncio.run(measure(size, rounds, calls)) for size in SIZES)
    result = {"rounds": rounds, "calls": calls, **small, "large": large}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1) if arguments.json else table(result))


async def measure(size_bytes: int, rounds: int, calls: int) -> Document:
    ways = await _ways(size_bytes)
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
        "bytes": size_bytes,
        "ways": {
            name: {kind: median(values) for kind, values in kinds.items()}
            for name, kinds in samples.items()
        },
    }


async def _ways(size_bytes: int) -> dict[str, Call]:
    import ray
    from ray import serve

    from benchmarks.pickled_wire import Wire
    from serving.cluster.identity import identity
    from serving.cluster.rpc import RpcClient

    deployment = serve.deployment(Answering).options(
        max_ongoing_requests=100, ray_actor_options={"num_cpus": 0}
    )
    name = f"answering-{size_bytes}"
    bound: Any = deployment.bind(size_bytes)
    handle: Any = await asyncio.to_thread(serve.run, bound, name=name, route_prefix=None)
    options = ray.remote(Answering).options(num_cpus=0, max_concurrency=1000)
    actor: Any = options.remote(size_bytes)
    frames_address, rpc_address = await actor.listen.remote()
    frames, rpc = Wire(frames_address, KEY), RpcClient(rpc_address, identity(Signer(KEY)))

    async def by_handle(question: bytes) -> bytes:
        return await handle.answer.remote(question)  # type: ignore[no-any-return]

    async def by_actor(question: bytes) -> bytes:
        return await actor.answer.remote(question)  # type: ignore[no-any-return]

    async def by_frames(question: bytes) -> bytes:
        return await frames.call("answer", question)  # type: ignore[no-any-return]

    async def by_rpc(question: bytes) -> bytes:
        return await rpc.call("answer", question)

    async def by_stream(question: bytes) -> bytes:
        return b"".join([part async for part in rpc.stream("stream", question)])

    ways: dict[str, Call] = {
        "a Serve handle": by_handle, "an actor's method": by_actor,
        "the wire": by_frames, "gRPC": by_rpc, "gRPC, a stream": by_stream,
    }  # fmt: skip
    for call in ways.values():
        assert len(await call(QUESTION)) == size_bytes
    return ways


async def _timed(call: Call, pause_s: float = 0.0) -> float:
    if pause_s:
        await asyncio.sleep(pause_s)
    start = time.perf_counter()
    await call(QUESTION)
    return (time.perf_counter() - start) * 1000


async def _together(call: Call, calls: int) -> float:
    """Return milliseconds per call."""

    async def client() -> None:
        for _ in range(calls // 5):
            await call(QUESTION)

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(AT_ONCE)))
    return (time.perf_counter() - start) * 1000 / (AT_ONCE * (calls // 5))


def table(result: Document) -> str:
    lines = [
        "| answer | by | one call, p50 ms | after a pause, p50 ms | each of 32 at a time, ms |",
        "|---:|---|---:|---:|---:|",
    ]
    lines += [
        f"| {size['bytes'] / 1000:,.0f} kB | {name} | {way['alone_ms']:.2f} "
        f"| {way['asleep_ms']:.2f} | {way['together_ms']:.2f} |"
        for size in (result, result["large"])
        for name, way in size["ways"].items()
    ]
    return "\n".join(lines)
