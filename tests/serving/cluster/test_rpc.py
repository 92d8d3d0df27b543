"""The wire: every call ends once, whatever becomes of the other end."""

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

    async def unspeakable(self) -> Any:
        return lambda: None


@asynccontextmanager
async def line(key: bytes = KEY) -> AsyncIterator[tuple[Wire, Methods, WireServer]]:
    methods = Methods()
    names = ("echo", "slow", "broken", "unspeakable")
    server = WireServer({name: getattr(methods, name) for name in names}, KEY)
    wire = Wire(await server.start(HOST), key)
    try:
        yield wire, methods, server
    finally:
        await wire.close()
        await server.close()


async def test_many_calls_share_a_connection() -> None:
    async with line() as (wire, methods, _):
        slow = asyncio.create_task(wire.call("slow", "last"))
        answers = await asyncio.gather(*(wire.call("echo", i) for i in range(100)))
        assert answers == list(range(100))
        assert not slow.done()
        methods.go.set()
        assert await slow == "last"


async def test_large_values_pass() -> None:
    value = os.urandom(5 << 20)
    async with line() as (wire, _, _):
        assert await wire.call("echo", value) == value


@pytest.mark.parametrize("method", ["broken", "unspeakable", "unknown"])
async def test_what_fails_over_there_fails_here_and_tells_no_secret(method: str) -> None:
    async with line() as (wire, _, _):
        with pytest.raises(RemoteFailed) as failed:
            await wire.call(method)
        assert "a secret" not in str(failed.value)
        assert await wire.call("echo", 1) == 1


async def test_a_withdrawn_call_is_cancelled_over_there() -> None:
    async with line() as (wire, methods, _):
        call = asyncio.create_task(wire.call("slow", 1))
        await methods.started.wait()
        call.cancel()
        await asyncio.wait([call])
        await asyncio.wait_for(methods.cancelled.wait(), 10)
        assert await wire.call("echo", 1) == 1


async def test_a_caller_that_goes_away_withdraws_its_calls() -> None:
    async with line() as (wire, methods, _):
        call = asyncio.create_task(wire.call("slow", 1))
        await methods.started.wait()
        await wire.close()
        with pytest.raises(WireBroken):
            await call
        await asyncio.wait_for(methods.cancelled.wait(), 10)


async def test_an_end_that_dies_breaks_its_calls_and_is_found_again() -> None:
    async with line() as (wire, methods, server):
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


async def test_draining_waits_for_what_was_asked() -> None:
    async with line() as (wire, methods, server):
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


async def test_without_the_key_nothing_is_answered() -> None:
    async with line(b"another key") as (wire, _, _):
        with pytest.raises(WireDown):
            await wire.call("echo", 1)


async def test_nothing_is_unpickled_for_a_stranger() -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return os.mkdir, ("/nonexistent/bomb",)

    async with line() as (wire, _, _):
        host, _, port = wire.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        await reader.readexactly(32)
        body = pickle.dumps(Bomb())
        writer.write(os.urandom(64) + struct.pack(">I", len(body)) + body)
        assert await reader.read() == b""  # closed, and no proof was given
        writer.close()


async def test_a_stranger_at_the_address_is_not_told_anything() -> None:
    """It says something that is no proof, and hears a nonce and a proof of nothing else."""
    heard = bytearray()

    async def stranger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"n" * 32)
        heard.extend(await reader.readexactly(64))
        writer.write(b"p" * 32)
        heard.extend(await reader.read())
        writer.close()

    server = await asyncio.start_server(stranger, HOST, 0)
    port = server.sockets[0].getsockname()[1]
    try:
        with pytest.raises(WireDown, match="key"):
            await Wire(f"{HOST}:{port}", KEY).call("echo", "private")
        assert len(heard) == 64
    finally:
        server.close()


async def test_nobody_there() -> None:
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    with pytest.raises(WireDown, match="nobody"):
        await Wire(f"{HOST}:{port}", KEY).call("echo", 1)
