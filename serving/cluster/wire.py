"""A request's way between processes: calls over one TCP connection, many of them at a time.

A call through a Serve handle costs both of its ends milliseconds of work (docs/adr/0006) for a
choice that the dispatcher has made already. Ray starts processes, watches and replaces them, and
tells where they listen; what is asked of one that is known goes straight there.

A frame is its length in four bytes and a pickle: ``(id, method, arguments)`` there,
``(id, method)`` to withdraw the call, ``(id, ok, value)`` back, where ``ok`` is None of a call
that was not taken. Nothing is unpickled before both ends have proved that they hold the same key.
As little is encrypted as on Ray's own channels.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import pickle
import secrets
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from itertools import count
from typing import Any, cast

log = logging.getLogger(__name__)

Method = Callable[..., Awaitable[Any]]

_LENGTH = struct.Struct(">I")
_LARGEST_BYTES = 1 << 30
_PROOF_BYTES = 32
_HANDSHAKE_S = 5.0
#: A machine that is gone says nothing; this long, in seconds, until the connection is.
_SILENCE_S = 15


class WireError(Exception):
    """A call that was not answered; whoever makes it says what that means."""


class WireDown(WireError):
    """Nobody answers at the address, or not somebody who holds the key."""


class WireBroken(WireError):
    """The other end went away with the call."""


class RemoteFailed(WireError):
    """The method raised what it should not: the text names it, the other end's log says more."""


class WireServer:
    """Answers calls, each in a task of its own. A caller that withdraws its call, or goes away,
    has the task cancelled."""

    def __init__(self, methods: Mapping[str, Method], key: bytes) -> None:
        self._methods = methods
        self._key = key
        self._server: asyncio.Server | None = None
        self._is_draining = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._connections: dict[asyncio.Task[Any], asyncio.StreamWriter] = {}

    async def start(self, host: str) -> str:
        """Listen on a free port of ``host``; the address to give to callers."""
        self._server = await asyncio.start_server(self._serve, host, 0)
        port = self._server.sockets[0].getsockname()[1]
        return f"{host}:{port}"

    async def drain(self) -> None:
        """Take no new connection and no new call, and wait until what was asked is answered."""
        self._is_draining = True
        if self._server is not None:
            self._server.close()
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in self._connections.values():
            writer.close()
        while ending := {*self._tasks, *self._connections}:
            await asyncio.wait(ending)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mine: dict[int, asyncio.Task[None]] = {}
        connection = cast("asyncio.Task[Any]", asyncio.current_task())
        self._connections[connection] = writer
        connection.add_done_callback(self._connections.pop)
        try:
            _keep_alive(writer)
            async with asyncio.timeout(_HANDSHAKE_S):
                await _prove_to_caller(reader, writer, self._key)
            while True:
                number, *call = await _read(reader)
                if len(call) == 1:
                    if number in mine:
                        mine[number].cancel()
                    continue
                if self._is_draining:
                    await _write(writer, _frame((number, None, None)))
                    continue
                task = asyncio.create_task(self._answer(writer, number, *call))
                mine[number] = task
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                task.add_done_callback(partial(_forget, mine, number))
        except (OSError, EOFError, WireDown):  # a TimeoutError is an OSError
            pass
        finally:
            for task in mine.values():
                task.cancel()
            await _close(writer)

    async def _answer(
        self, writer: asyncio.StreamWriter, number: int, method: str, arguments: tuple[Any, ...]
    ) -> None:
        try:
            frame = _frame((number, True, await self._methods[method](*arguments)))
        except Exception as error:
            log.exception("%s failed", method)
            frame = _frame((number, False, type(error).__name__))
        with suppress(OSError):
            await _write(writer, frame)


#: The loop holds its tasks weakly: who lets a wire go still has it read to its end.
_READING: set[asyncio.Task[None]] = set()


class Wire:
    """The caller's end. It connects when it is first used, and again after it was lost."""

    def __init__(self, address: str, key: bytes) -> None:
        """``address`` as :meth:`WireServer.start` returned it."""
        self.address = address
        self._key = key
        self._numbers = count()
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._connecting = asyncio.Lock()

    async def call(self, method: str, *arguments: Any) -> Any:
        """Cancelling it cancels the method.

        Raises:
            WireDown, WireBroken, RemoteFailed.
        """
        writer = self._writer or await self._connect()
        number = next(self._numbers)
        answer = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            await _write(writer, _frame((number, method, arguments)))
            ok, value = await answer
        except asyncio.CancelledError:
            if self._writer is writer:
                writer.write(_frame((number, method)))
            raise
        except OSError:
            raise WireBroken(f"{self.address} went away") from None
        finally:
            self._waiting.pop(number, None)
        if ok is None:
            raise WireDown(f"{self.address} is ending and takes no more")
        if not ok:
            raise RemoteFailed(value)
        return value

    async def _connect(self) -> asyncio.StreamWriter:
        async with self._connecting:
            if self._writer is not None:
                return self._writer
            host, _, port = self.address.rpartition(":")
            try:
                async with asyncio.timeout(_HANDSHAKE_S):
                    reader, writer = await asyncio.open_connection(host, int(port))
                    try:
                        await _prove_to_server(reader, writer, self._key)
                    except BaseException:
                        await _close(writer)
                        raise
            except (OSError, EOFError) as error:  # a TimeoutError is an OSError
                raise WireDown(f"nobody at {self.address}: {error or 'no answer'}") from None
            _keep_alive(writer)
            self._writer = writer
            self._reading = asyncio.create_task(self._read(reader, writer))
            _READING.add(self._reading)
            self._reading.add_done_callback(_READING.discard)
            return writer

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                number, ok, value = await _read(reader)
                answer = self._waiting.get(number)
                if answer is not None and not answer.done():
                    answer.set_result((ok, value))
        except (OSError, EOFError, WireDown):
            pass
        finally:
            self._writer = None
            for answer in self._waiting.values():
                if not answer.done():
                    answer.set_exception(WireBroken(f"{self.address} went away"))
            await _close(writer)

    async def close(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)


def _forget(tasks: dict[int, asyncio.Task[None]], number: int, _: asyncio.Task[None]) -> None:
    tasks.pop(number, None)


def _frame(message: tuple[Any, ...]) -> bytes:
    body = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(body)) + body


async def _read(reader: asyncio.StreamReader) -> Any:
    """Raises EOFError at the end (IncompleteReadError is one)."""
    (size_bytes,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    if size_bytes > _LARGEST_BYTES:
        raise WireDown(f"a frame of {size_bytes} bytes")
    return pickle.loads(await reader.readexactly(size_bytes))


async def _write(writer: asyncio.StreamWriter, frame: bytes) -> None:
    writer.write(frame)
    await writer.drain()


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


def _keep_alive(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _SILENCE_S // 3)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _SILENCE_S // 3)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _SILENCE_S * 1000)


def _proof(key: bytes, who: bytes, nonces: bytes) -> bytes:
    return hmac.digest(key, who + nonces, "sha256")


async def _prove_to_caller(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: bytes
) -> None:
    mine = secrets.token_bytes(_PROOF_BYTES)
    writer.write(mine)
    theirs = await reader.readexactly(_PROOF_BYTES)
    proof = await reader.readexactly(_PROOF_BYTES)
    if not hmac.compare_digest(proof, _proof(key, b"caller", mine + theirs)):
        raise WireDown("a caller without the key")
    await _write(writer, _proof(key, b"server", mine + theirs))


async def _prove_to_server(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: bytes
) -> None:
    theirs = await reader.readexactly(_PROOF_BYTES)
    mine = secrets.token_bytes(_PROOF_BYTES)
    writer.write(mine + _proof(key, b"caller", theirs + mine))
    proof = await reader.readexactly(_PROOF_BYTES)
    if not hmac.compare_digest(proof, _proof(key, b"server", theirs + mine)):
        raise WireDown("it does not hold the key")
