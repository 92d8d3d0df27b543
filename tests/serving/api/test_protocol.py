"""Clients that send half a request, never end it, or never read."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import pytest
import uvicorn

from serving.api import protocol
from serving.api.limits import LimitsMiddleware
from serving.api.protocol import MAX_HEAD_BYTES
from serving.api.server import server_config
from serving.settings import Settings

App = Callable[..., Awaitable[None]]


async def reads_all(scope: Any, receive: Any, send: Any) -> None:
    received = 0
    while (message := await receive())["type"] == "http.request":
        received += len(message["body"])
        if not message["more_body"]:
            break
    await answer(send, str(received).encode())


async def reads_nothing(scope: Any, receive: Any, send: Any) -> None:
    await answer(send, b"no", 401)


async def writes_much(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(1000):
        await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})


async def answer(send: Any, body: bytes, status: int = 200) -> None:
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def serving(app: App, **settings: Any) -> AsyncIterator[int]:
    """Serve as configured for the platform; yield the port."""
    config = server_config(Settings(drain_s=1, **settings), app, lifespan="off")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        task = asyncio.create_task(server._serve([listening]))
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            await task


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with suppress(OSError):
            await writer.wait_closed()


async def is_closed(reader: asyncio.StreamReader) -> bool:
    """Whether the server closes; TimeoutError after ten seconds."""
    async with asyncio.timeout(10):
        try:
            while await reader.read(1 << 16):
                pass
        except ConnectionError:
            return True
    return True


@pytest.fixture(autouse=True)
def short_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEAD_S", "LINGER_S", "STALLED_S"):
        monkeypatch.setattr(protocol, name, 0.2)


GET = b"GET / HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize("sent", [b"", b"GET", GET, GET + b"X: "])
async def test_half_a_head_times_out(sent: bytes) -> None:
    async with serving(reads_all) as port, connected(port) as (reader, writer):
        writer.write(sent)
        assert await is_closed(reader)


async def test_half_a_head_after_a_request_times_out() -> None:
    async with serving(reads_all) as port, connected(port) as (reader, writer):
        writer.write(GET + b"\r\n")
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
        writer.write(b"GET / HT")
        assert await is_closed(reader)


@pytest.mark.parametrize(
    "endless",
    [
        GET + b"X: ",
        b"GET /",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: ",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;",
    ],
    ids=["header", "path", "trailer", "chunk's extension"],
)
async def test_an_endless_head_is_refused(endless: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_S", 60.0)
    async with serving(reads_all) as port, connected(port) as (_, writer):
        writer.write(endless)
        sent = 0
        try:
            async with asyncio.timeout(10):
                while sent < 100 << 20:
                    writer.write(b"a" * 65_536)
                    sent += 65_536
                    await writer.drain()
        except ConnectionError:
            pass
        assert sent < 20 << 20  # kernels buffer megabytes


async def test_a_body_may_be_long_and_slow() -> None:
    size = 4 * MAX_HEAD_BYTES
    async with serving(reads_all) as port, connected(port) as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(8):
            writer.write(bytes(size // 8))
            await writer.drain()
            await asyncio.sleep(0.1)  # in total over HEAD_S
        assert (await reader.readuntil(str(size).encode())).startswith(b"HTTP/1.1 200")


async def test_a_client_that_keeps_writing_gets_the_response_and_is_closed() -> None:
    async with serving(reads_nothing) as port, connected(port) as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n")
        for _ in range(16):
            writer.write(bytes(1 << 20))
            await writer.drain()
        assert b" 401 " in await reader.readuntil(b"\r\n\r\n")
        assert await is_closed(reader)


async def test_a_client_that_does_not_read_is_closed() -> None:
    ended = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await writes_much(scope, receive, send)
        finally:
            ended.set()

    async with serving(app) as port, connected(port) as (_, writer):
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(GET + b"\r\n")
        async with asyncio.timeout(10):
            await ended.wait()


async def test_the_number_of_connections_is_limited() -> None:
    async with serving(reads_all, max_connections=8) as port, AsyncExitStack() as ends:
        many = [await ends.enter_async_context(connected(port)) for _ in range(9)]
        reader, writer = many[-1]
        writer.write(GET + b"\r\n")
        assert b" 503 " in await reader.readuntil(b"\r\n\r\n")


async def test_a_large_head_in_one_piece_is_refused() -> None:
    async with serving(LimitsMiddleware(reads_all)) as port, connected(port) as (reader, writer):
        writer.write(GET + b"X: " + b"a" * (MAX_HEAD_BYTES + 1) + b"\r\n\r\n")
        assert await is_closed(reader)
