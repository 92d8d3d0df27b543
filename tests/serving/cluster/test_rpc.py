"""RPC: every call ends exactly once, whatever happens remotely."""

from __future__ import annotations

import asyncio
import os
import pickle
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from serving.cluster.rpc import RemoteFailed, Wire, WireBroken, WireDown, WireServer

KEY = b"k" * 32
HOST = "127.0.0.1"


class Methods:
    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.go = asyncio.Event()

    async def echo(self, value: Any) -> Any:
        return value

    async def slow(self, value: Any) -> Any:
        self.started.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return value

    async def broken(self) -> None:
        raise KeyError("a secret")

    async def unpicklable(self) -> Any:
        return lambda: None


@asynccontextmanager
async def connection(key: bytes = KEY) -> AsyncIterator[tuple[Wire, Methods, WireServer]]:
    methods = Methods()
    names = ("echo", "slow", "broken", "unpicklable")
    server = WireServer({name: getattr(methods, name) for name in names}, KEY)
    wire = Wire(await server.start(HOST), key)
    try:
        yield wire, methods, server
    finally:
        await wire.close()
        await server.close()


async def test_many_calls_share_a_connection() -> None:
    async with connection() as (wire, methods, _):
        slow = asyncio.create_task(wire.call("slow", "last"))
        answers = await asyncio.gather(*(wire.call("echo", i) for i in range(100)))
        assert answers == list(range(100))
        assert not slow.done()
        methods.go.set()
        assert await slow == "last"


async def test_large_values_pass() -> None:
    value = os.urandom(5 << 20)
    async with connection() as (wire, _, _):
        assert await wire.call("echo", value) == value


@pytest.mark.parametrize("method", ["broken", "unpicklable", "unknown"])
async def test_remote_errors_are_raised_without_their_text(method: str) -> None:
    async with connection() as (wire, _, _):
        with pytest.raises(RemoteFailed) as failed:
            await wire.call(method)
        assert "a secret" not in str(failed.value)
        assert await wire.call("echo", 1) == 1


async def test_a_cancelled_call_is_cancelled_on_the_server() -> None:
    async with connection() as (wire, methods, _):
        call = asyncio.create_task(wire.call("slow", 1))
        await methods.started.wait()
        call.cancel()
        await asyncio.wait([call])
        await asyncio.wait_for(methods.cancelled.wait(), 10)
        assert await wire.call("echo", 1) == 1


async def test_calls_of_a_disconnected_caller_are_cancelled() -> None:
    async with connection() as (wire, methods, _):
        call = asyncio.create_task(wire.call("slow", 1))
        await methods.started.wait()
        await wire.close()
        with pytest.raises(WireBroken):
            await call
        await asyncio.wait_for(methods.cancelled.wait(), 10)


async def test_a_dead_server_breaks_its_calls_and_is_reconnected() -> None:
    async with connection() as (wire, methods, server):
        call = asyncio.create_task(wire.call("slow", 1))
        await methods.started.wait()
        port = int(wire.address.rpartition(":")[2])
        await server.close()
        with pytest.raises(WireBroken):
            await call
        with pytest.raises(WireDown):
            await wire.call("echo", 1)
        again = WireServer({"echo": methods.echo}, KEY)
        again._server = await asyncio.start_server(again._serve, HOST, port)
        try:
            assert await wire.call("echo", 1) == 1
        finally:
            await again.close()


async def test_draining_waits_for_running_calls() -> None:
    async with connection() as (wire, methods, server):
        call = asyncio.create_task(wire.call("slow", 1))
        await methods.started.wait()
        draining = asyncio.create_task(server.drain())
        await asyncio.sleep(0)
        assert not draining.done()
        with pytest.raises(WireDown, match="no more"):
            await wire.call("echo", 2)
        methods.go.set()
        assert await call == 1
        await draining
        with pytest.raises(WireDown):
            await Wire(wire.address, KEY).call("echo", 1)


async def test_a_caller_without_the_key_gets_no_answer() -> None:
    async with connection(b"another key") as (wire, _, _):
        with pytest.raises(WireDown):
            await wire.call("echo", 1)


async def test_nothing_is_unpickled_before_authentication() -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return os.mkdir, ("/nonexistent/bomb",)

    async with connection() as (wire, _, _):
        host, _, port = wire.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        await reader.readexactly(32)
        body = pickle.dumps(Bomb())
        writer.write(os.urandom(64) + struct.pack(">I", len(body)) + body)
        assert await reader.read() == b""
        writer.close()


async def test_a_server_without_the_key_receives_no_call() -> None:
    """A server with a wrong proof receives only the caller's nonce and proof."""
    received = bytearray()

    async def impostor(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"n" * 32)
        received.extend(await reader.readexactly(64))
        writer.write(b"p" * 32)
        received.extend(await reader.read())
        writer.close()

    server = await asyncio.start_server(impostor, HOST, 0)
    port = server.sockets[0].getsockname()[1]
    try:
        with pytest.raises(WireDown, match="key"):
            await Wire(f"{HOST}:{port}", KEY).call("echo", "private")
        assert len(received) == 64
    finally:
        server.close()


async def test_nothing_listens_at_the_address() -> None:
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    with pytest.raises(WireDown, match="cannot connect"):
        await Wire(f"{HOST}:{port}", KEY).call("echo", 1)
