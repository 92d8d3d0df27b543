"""What becomes of a hostile or broken caller of a process's RPC, and of an honest one beside it.

    python -m benchmarks callers        # about a minute

The server runs in its own process. Each case reports how the call ended, after how long, how much
memory the server took, and the median time of another caller's calls meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

import grpc
from grpc import aio
from msgspec import msgpack

from assets.storage.signing import Signer
from benchmarks.document import Document
from serving.cluster.identity import NAME, identity
from serving.cluster.rpc import MAX_MESSAGE_BYTES, RpcClient, RpcError, RpcServer

RESULT = Path(__file__).parent / "results" / "callers.json"
SECRET, OTHER = b"s" * 32, b"o" * 32
HOST = "127.0.0.1"
#: The server's bound in this benchmark.
MAX_CALLS = 64
_CHUNK = b"a" * (1 << 20)
_LONGEST_S = 30.0


class Methods:
    """The server's methods."""

    def __init__(self) -> None:
        self._waiting = 0
        self._sent = 0

    async def echo(self, message: bytes) -> bytes:
        return message

    async def wait(self, message: bytes) -> bytes:
        self._waiting += 1
        try:
            await asyncio.Event().wait()
        finally:
            self._waiting -= 1
        return message

    async def flood(self, message: bytes) -> AsyncIterator[bytes]:
        """As many chunks as the caller takes."""
        while True:
            self._sent += 1
            yield _CHUNK

    async def state(self, message: bytes) -> bytes:
        """Return the calls that wait, the chunks sent and the memory at its peak."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return msgpack.encode((self._waiting, self._sent, peak * 1024))


async def serve() -> None:
    methods = Methods()
    unary = {"echo": methods.echo, "wait": methods.wait, "state": methods.state}
    server = RpcServer(identity(Signer(SECRET)), unary, {"flood": methods.flood}, MAX_CALLS)
    print(await server.start(HOST), flush=True)
    await asyncio.Event().wait()


class Server:
    """The server, and an honest client of it."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.honest = client(address)

    async def state(self) -> tuple[int, int, int]:
        answer = await self.honest.call("state", b"")
        return msgpack.decode(answer, type=tuple[int, int, int])


def client(address: str, secret: bytes = SECRET) -> RpcClient:
    return RpcClient(address, identity(Signer(secret)))


async def ending(call: Awaitable[object]) -> str:
    """Await a call; return how it ended."""
    try:
        await asyncio.wait_for(call, _LONGEST_S)
    except RpcError as error:
        return type(error).__name__
    except aio.AioRpcError as error:
        return str(error.code().name)
    except TimeoutError:
        return "no end"
    return "answered"


async def wrong_secret(server: Server) -> str:
    other = client(server.address, OTHER)
    try:
        return await ending(other.call("echo", b"q"))
    finally:
        await other.close()


async def _raw(server: Server, credentials: Any | None) -> str:
    options = (("grpc.ssl_target_name_override", NAME),)
    channel: Any = (
        aio.insecure_channel(server.address)
        if credentials is None
        else aio.secure_channel(server.address, credentials, options=options)
    )
    async with channel:
        return await ending(channel.unary_unary("/orchestrator/echo")(b"q", timeout=_LONGEST_S))


async def no_certificate(server: Server) -> str:
    return await _raw(server, grpc.ssl_channel_credentials(identity(Signer(SECRET)).authority))


async def no_encryption(server: Server) -> str:
    return await _raw(server, None)


async def relay_that_flips_a_bit(server: Server) -> str:
    async with relay(server.address) as (through, control):
        caller = client(through)
        try:
            assert await caller.call("echo", b"q") == b"q"
            control.flips = True
            return await ending(caller.call("echo", b"q" * 1000))
        finally:
            await caller.close()


async def message_beyond_the_limit(server: Server) -> str:
    caller = client(server.address)
    try:
        return await ending(caller.call("echo", bytes(MAX_MESSAGE_BYTES + 1)))
    finally:
        await caller.close()


async def call_beyond_the_bound(server: Server) -> str:
    caller = client(server.address)
    # One is left for the honest caller.
    calls = [asyncio.ensure_future(caller.call("wait", b"")) for _ in range(MAX_CALLS - 1)]
    try:
        while (await server.state())[0] < MAX_CALLS - 1:
            await asyncio.sleep(0.01)
        more = [asyncio.ensure_future(ending(caller.call("wait", b""))) for _ in range(2)]
        calls += more  # type: ignore[arg-type]
        done, _ = await asyncio.wait(more, return_when=asyncio.FIRST_COMPLETED)
        return done.pop().result()
    finally:
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await caller.close()


async def stream_that_is_not_read(server: Server) -> str:
    """The server stops sending once gRPC's window is full."""
    caller = client(server.address)
    _, before, _ = await server.state()
    async with aclosing(caller.stream("flood", b"")) as chunks:
        await anext(chunks)
        await asyncio.sleep(3)
        _, sent, _ = await server.state()
        await asyncio.sleep(1)
        _, later, _ = await server.state()
    await caller.close()
    if later != sent:
        return "it still sends"
    return f"paused after {sent - before} MiB"


async def connection_that_is_not_read(server: Server) -> str:
    """Keep-alive ends the connection and its call."""
    async with relay(server.address) as (through, control):
        caller = client(through)
        call = asyncio.ensure_future(caller.call("wait", b""))
        try:
            while not (await server.state())[0]:
                await asyncio.sleep(0.01)
            control.stops = True
            deadline = time.monotonic() + _LONGEST_S
            while (await server.state())[0]:
                if time.monotonic() > deadline:
                    return "no end"
                await asyncio.sleep(0.05)
            return "cancelled on the server"
        finally:
            call.cancel()
            with suppress(asyncio.CancelledError, RpcError):
                await call
            await caller.close()


CASES: Mapping[str, Callable[[Server], Awaitable[str]]] = {
    "another secret": wrong_secret,
    "no certificate": no_certificate,
    "no encryption": no_encryption,
    "a relay that flips a bit": relay_that_flips_a_bit,
    "a message of 64 MiB and a byte": message_beyond_the_limit,
    "a call beyond the bound": call_beyond_the_bound,
    "a stream that is not read": stream_that_is_not_read,
    "a connection that is not read": connection_that_is_not_read,
}


class Control:
    """What a relay sees, and does to the bytes."""

    def __init__(self) -> None:
        self.seen = bytearray()
        self.flips = False
        self.stops = False


@asynccontextmanager
async def relay(address: str) -> AsyncIterator[tuple[str, Control]]:
    control = Control()
    pumping: set[asyncio.Task[None]] = set()

    async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(1 << 16):
                control.seen += data
                if control.stops:
                    await asyncio.Event().wait()
                if control.flips and len(data) > 100:
                    data = data[:-1] + bytes([data[-1] ^ 1])
                target.write(data)
                await target.drain()
        except OSError:
            pass  # either end closed
        finally:
            target.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = address.rpartition(":")
        there, back = await asyncio.open_connection(host, int(port))
        for source, target in ((reader, back), (there, writer)):
            pumping.add(asyncio.ensure_future(pump(source, target)))

    listener = await asyncio.start_server(connect, HOST, 0)
    try:
        yield f"{HOST}:{listener.sockets[0].getsockname()[1]}", control
    finally:
        listener.close()
        for task in pumping:
            task.cancel()
        await asyncio.gather(*pumping, return_exceptions=True)


async def measure(server: Server) -> Document:
    rows: Document = {"no such caller": {"honest_ms": await _honest_ms(server, asyncio.sleep(2))}}
    for name, case in CASES.items():
        _, _, before = await server.state()
        began = time.perf_counter()
        ended: list[tuple[str, float]] = []

        async def run(
            case: Callable[[Server], Awaitable[str]] = case,
            began: float = began,
            ended: list[tuple[str, float]] = ended,
        ) -> None:
            outcome = await case(server)
            ended.append((outcome, time.perf_counter() - began))

        honest_ms = await _honest_ms(server, run())
        _, _, peak = await server.state()
        ((outcome, spent_s),) = ended
        rows[name] = {
            "outcome": outcome, "after_ms": spent_s * 1000, "honest_ms": honest_ms,
            "grown_bytes": peak - before,
        }  # fmt: skip
        print(f"{name}: {rows[name]}", file=sys.stderr)
    return rows


async def _honest_ms(server: Server, meanwhile: Awaitable[None]) -> float:
    """The median of calls while ``meanwhile`` runs; at least five."""
    task = asyncio.ensure_future(meanwhile)
    spent: list[float] = []
    while not task.done() or len(spent) < 5:
        began = time.perf_counter()
        with suppress(RpcError):  # the bound is everybody's
            await server.honest.call("echo", b"q" * 2000)
            spent.append(time.perf_counter() - began)
        await asyncio.sleep(0.02)
    await task
    return median(spent) * 1000


def table(result: Document) -> str:
    """Return docs/security.md's table."""
    lines = [
        "| caller | ends as | after, ms | the server grows by, MiB | another call meanwhile, ms |",
        "|---|---|---:|---:|---:|",
    ]
    for name, row in result["rows"].items():
        cells = ["–", "–", "–"]
        if "outcome" in row:
            cells = [
                row["outcome"],
                f"{row['after_ms']:,.0f}",
                f"{row['grown_bytes'] / (1 << 20):.1f}",
            ]
        lines.append(f"| {name} | {' | '.join(cells)} | {row['honest_ms']:.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks callers")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve())
        return
    command = [sys.executable, "-m", "benchmarks", "callers", "--serve"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()

        async def run() -> Document:
            return await measure(Server(address))

        result = {"max_calls": MAX_CALLS, "rows": asyncio.run(run())}
    finally:
        process.kill()
        process.wait()
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1) if arguments.json else table(result))


if __name__ == "__main__":
    main()
