"""RPC: every call ends exactly once, whatever happens remotely; strangers get nowhere."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio
from ray.exceptions import RayTaskError

from assets.storage.signing import Signer
from benchmarks.callers import relay
from serving.cluster import dispatcher_actor, rpc
from serving.cluster.dispatcher_actor import DispatcherActor
from serving.cluster.dispatcher_client import _DispatcherClient
from serving.cluster.identity import NAME, identity
from serving.cluster.replicas import ServeReplicaClient
from serving.cluster.rpc import (
    MAX_MESSAGE_BYTES,
    PROTOCOL,
    Incompatible,
    Lost,
    NotTaken,
    RemoteError,
    RpcClient,
    RpcServer,
)
from serving.errors import EarlierVersion, ReplicaLost
from serving.generation.contract import ClusterDirectives
from serving.settings import Settings

SECRET = b"s" * 32
HOST = "127.0.0.1"


class Methods:
    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.go = asyncio.Event()
        self.running = 0
        self.sent = 0

    async def echo(self, message: bytes) -> bytes:
        return message

    async def slow(self, message: bytes) -> bytes:
        self.running += 1
        self.started.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        finally:
            self.running -= 1
        return message

    async def broken(self, message: bytes) -> bytes:
        raise KeyError("a secret")

    async def count(self, message: bytes) -> AsyncIterator[bytes]:
        self.started.set()
        try:
            for number in range(int(message)):
                yield str(number).encode()
                await asyncio.sleep(0)
        finally:
            self.cancelled.set()

    async def flood(self, message: bytes) -> AsyncIterator[bytes]:
        try:
            while True:
                self.sent += 1
                yield bytes(1 << 20)
        finally:
            self.cancelled.set()

    async def forever(self, message: bytes) -> AsyncIterator[bytes]:
        yield b"first"
        await self.go.wait()

    async def breaks(self, message: bytes) -> AsyncIterator[bytes]:
        yield b"first"
        raise KeyError("a secret")


def server_of(methods: Methods, max_calls: int = 100) -> RpcServer:
    unary = {name: getattr(methods, name) for name in ("echo", "slow", "broken")}
    streams = {name: getattr(methods, name) for name in ("count", "flood", "forever", "breaks")}
    return RpcServer(identity(Signer(SECRET)), unary, streams, max_calls)


@asynccontextmanager
async def connection(
    secret: bytes = SECRET, max_calls: int = 100
) -> AsyncIterator[tuple[RpcClient, Methods, RpcServer]]:
    methods = Methods()
    server = server_of(methods, max_calls)
    client = RpcClient(await server.start(HOST), identity(Signer(secret)))
    try:
        yield client, methods, server
    finally:
        await client.close()
        await server.close()


async def test_many_calls_share_a_connection() -> None:
    async with connection() as (client, methods, _):
        slow = asyncio.create_task(client.call("slow", b"last"))
        answers = await asyncio.gather(*(client.call("echo", b"%d" % i) for i in range(50)))
        assert answers == [b"%d" % i for i in range(50)]
        assert not slow.done()
        methods.go.set()
        assert await slow == b"last"


async def test_large_messages_pass_up_to_the_limit() -> None:
    value = os.urandom(20 << 20)
    async with connection() as (client, _, _):
        assert await client.call("echo", value) == value
        with pytest.raises(NotTaken, match="larger"):
            await client.call("echo", bytes(MAX_MESSAGE_BYTES + 1))
        assert await client.call("echo", b"still there") == b"still there"


async def test_a_methods_error_is_raised_without_its_text() -> None:
    async with connection() as (client, _, _):
        with pytest.raises(RemoteError, match="KeyError"):
            await client.call("broken", b"")
        with pytest.raises(RemoteError, match="KeyError"):
            _ = [message async for message in client.stream("breaks", b"")]
        with pytest.raises(NotTaken):
            await client.call("unknown", b"")


async def test_a_cancelled_call_is_cancelled_on_the_server() -> None:
    async with connection() as (client, methods, _):
        call = asyncio.create_task(client.call("slow", b""))
        async with asyncio.timeout(10):
            await methods.started.wait()
            call.cancel()
            await methods.cancelled.wait()


async def test_calls_of_a_disconnected_caller_are_cancelled() -> None:
    async with connection() as (client, methods, _):
        call = asyncio.create_task(client.call("slow", b""))
        async with asyncio.timeout(10):
            await methods.started.wait()
            await client.close()
            await methods.cancelled.wait()
        with pytest.raises((Lost, asyncio.CancelledError)):
            await call


async def test_a_stream_is_cancelled_when_it_is_closed() -> None:
    async with connection() as (client, methods, _):
        assert [m async for m in client.stream("count", b"3")] == [b"0", b"1", b"2"]
        methods.cancelled.clear()
        async with asyncio.timeout(10):
            async for message in client.stream("count", b"1000000"):
                assert message == b"0"
                break
            await methods.cancelled.wait()


async def test_a_reader_that_stops_is_waited_for() -> None:
    """gRPC's window bounds what a server sends ahead; other calls go on."""
    async with connection() as (client, methods, _):
        async with aclosing(client.stream("flood", b"")) as messages, asyncio.timeout(20):
            await anext(messages)
            sent = 0
            while sent < methods.sent:
                sent = methods.sent
                for _ in range(20):
                    assert await client.call("echo", b"other") == b"other"
            assert sent < 256  # MiB: the window grows with the speed of the connection
        await asyncio.wait_for(methods.cancelled.wait(), 10)


async def test_a_deadline_ends_a_call() -> None:
    async with connection() as (client, methods, _):
        with pytest.raises(TimeoutError):
            await client.call("slow", b"", 0.2)
        async with asyncio.timeout(10):
            await methods.cancelled.wait()


async def test_draining_waits_for_running_calls_and_takes_no_more() -> None:
    async with connection() as (client, methods, server):
        slow = asyncio.create_task(client.call("slow", b"kept"))
        async with asyncio.timeout(10):
            await methods.started.wait()
            drained = asyncio.create_task(server.drain())
            while True:
                try:
                    await client.call("echo", b"")
                except NotTaken:
                    break
            assert not drained.done()
            methods.go.set()
            assert await slow == b"kept"
            await drained


async def test_calls_beyond_the_bound_are_not_taken() -> None:
    async with connection(max_calls=2) as (client, methods, _):
        calls = [asyncio.create_task(client.call("slow", b"")) for _ in range(2)]
        async with asyncio.timeout(10):
            while methods.running < 2:
                await asyncio.sleep(0.01)
        with pytest.raises(NotTaken):
            await client.call("echo", b"")
        methods.go.set()
        await asyncio.gather(*calls)
        assert await client.call("echo", b"again") == b"again"


async def test_a_caller_with_another_secret_is_not_served() -> None:
    async with connection(b"x" * 32) as (client, methods, _):
        with pytest.raises(NotTaken):
            await client.call("slow", b"private")
        assert not methods.started.is_set()


async def test_a_caller_without_a_certificate_is_not_served() -> None:
    async with connection() as (client, methods, _):
        known = identity(Signer(SECRET))
        options = (("grpc.ssl_target_name_override", NAME),)
        credentials = grpc.ssl_channel_credentials(known.authority)
        channel: Any
        async with aio.secure_channel(client.address, credentials, options=options) as channel:
            with pytest.raises(aio.AioRpcError):
                await channel.unary_unary("/orchestrator/slow")(b"", timeout=5)
        async with aio.insecure_channel(client.address) as channel:
            with pytest.raises(aio.AioRpcError):
                await channel.unary_unary("/orchestrator/slow")(b"", timeout=5)
        assert not methods.started.is_set()


async def test_a_relay_reads_and_changes_nothing() -> None:
    """It sees ciphertext; a flipped byte ends the connection, and the call is lost or not taken."""
    async with connection() as (client, _, _), relay(client.address) as (address, control):
        through = RpcClient(address, identity(Signer(SECRET)))
        assert await through.call("echo", b"a private prompt") == b"a private prompt"
        assert control.seen
        assert b"a private prompt" not in control.seen
        control.flips = True
        with pytest.raises((NotTaken, Lost)):
            await through.call("echo", b"a private prompt" * 10, 10)
        await through.close()


async def test_calls_over_a_connection_that_stalls_are_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is closed and nothing arrives: only keep-alive notices, on both sides."""
    for side in ("_SERVER", "_CLIENT"):
        options = getattr(rpc, side)
        fast = tuple((k, 1_000 if v == rpc._KEEP_ALIVE_MS else v) for k, v in options)
        monkeypatch.setattr(rpc, side, fast)
    async with connection() as (client, methods, _), relay(client.address) as (address, control):
        through = RpcClient(address, identity(Signer(SECRET)))
        call = asyncio.create_task(through.call("slow", b""))
        await asyncio.wait_for(methods.started.wait(), 10)
        control.stops = True
        with pytest.raises(Lost):
            await asyncio.wait_for(call, 20)
        await asyncio.wait_for(methods.cancelled.wait(), 20)
        await through.close()


async def test_another_major_version_is_refused_by_name() -> None:
    async with connection() as (client, _, _):
        for version, is_served in (("1.9", True), ("2.0", False), ("", False)):
            other = RpcClient(client.address, identity(Signer(SECRET)), version)
            if is_served:
                assert await other.call("echo", b"minor") == b"minor"
            else:
                with pytest.raises(Incompatible, match=f"protocol {version} is not {PROTOCOL}"):
                    await other.call("echo", b"")
            await other.close()


async def test_nothing_listens_at_the_address() -> None:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        client = RpcClient(f"{HOST}:{probe.getsockname()[1]}", identity(Signer(SECRET)))
        with pytest.raises(NotTaken):
            await client.call("echo", b"")
        await client.close()


SERVE = """
import asyncio, sys
from assets.storage.signing import Signer
from serving.cluster.dispatcher_actor import DispatcherActor
from serving.cluster.dispatcher_client import _DispatcherClient
from serving.cluster.identity import identity
from serving.cluster.rpc import RpcServer

async def slow(message):
    print("taken", flush=True)
    await asyncio.Event().wait()

async def main():
    server = RpcServer(identity(Signer(b"s" * 32)), {"slow": slow})
    print(await server.start("127.0.0.1"), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_a_killed_server_loses_the_calls_that_it_took() -> None:
    process = subprocess.Popen([sys.executable, "-c", SERVE], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    address = (await asyncio.to_thread(process.stdout.readline)).strip()
    client = RpcClient(address, identity(Signer(SECRET)))
    call = asyncio.create_task(client.call("slow", b""))
    assert await asyncio.to_thread(process.stdout.readline) == "taken\n"
    process.send_signal(signal.SIGKILL)
    with pytest.raises(Lost):
        await call
    with pytest.raises(NotTaken):
        await client.call("slow", b"")
    await client.close()
    process.wait()
    process.stdout.close()


async def test_a_server_that_is_started_twice_at_once_has_one_address() -> None:
    server = server_of(Methods())
    try:
        addresses = await asyncio.gather(*(server.start(HOST) for _ in range(5)))
        assert len(set(addresses)) == 1
    finally:
        await server.close()


async def test_calls_of_a_client_that_is_closed_are_lost_and_not_cancelled() -> None:
    async with connection() as (client, methods, _):
        waiting = asyncio.create_task(client.call("slow", b""))
        streaming = asyncio.create_task(_all_of(client.stream("forever", b"")))
        await methods.started.wait()
        await asyncio.sleep(0)
        await client.close()
        for task in (waiting, streaming):
            with pytest.raises(Lost):
                await task
        await methods.cancelled.wait()


async def _all_of(messages: AsyncIterator[bytes]) -> list[bytes]:
    return [message async for message in messages]


async def test_a_dispatcher_of_the_first_release_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no RPC; and its gateways ask for an address that this release does not give."""
    monkeypatch.setattr(dispatcher_actor, "_RESTART_S", 0.0)
    client = _DispatcherClient(Settings(data_dir=tmp_path), "default")
    client._actor = object()
    with pytest.raises(EarlierVersion, match="dispatcher of default is of an earlier version"):
        await client._open()
    actor = DispatcherActor.__new__(DispatcherActor)
    with pytest.raises(Incompatible, match="restart its gateways"):
        await actor.address()


async def test_a_replica_of_the_first_release_is_refused_by_name() -> None:
    class Earlier:
        async def describe(self, directives: object) -> object:
            raise AssertionError("it takes one argument")

    class Handle:
        @property
        def describe(self) -> Handle:
            return self

        def remote(self, *arguments: object) -> Any:
            async def call() -> object:
                try:
                    return await Earlier().describe(*arguments)
                except TypeError as error:
                    raise RayTaskError("describe", "", error) from None

            return call()

    client = ServeReplicaClient("default-0", identity(Signer(SECRET)))
    client._handle = Handle()
    with pytest.raises(ReplicaLost, match=f"default-0 does not speak protocol {PROTOCOL}"):
        await client.describe(ClusterDirectives())
