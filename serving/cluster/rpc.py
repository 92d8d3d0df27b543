"""A request's way between processes: calls over one TCP connection, many of them at a time.

A call through a Serve handle costs both of its ends milliseconds of work (docs/adr/0006) for a
choice that the dispatcher has made already. Ray starts processes, watches and replaces them, and
tells where they listen; what is asked of one that is known goes straight there.

A frame is its length in four bytes, a code and a pickle: ``(id, method, arguments)`` there,
``(id, method)`` to withdraw the call, ``(id, ok, value)`` back, where ``ok`` is None of a call
that was not taken. Both ends prove that they hold the same key, and derive one for each direction
of this connection from it; the code authenticates a frame's content and its number. So nothing is
unpickled that the other end has not sent: a relay between them can end the connection, and no
more. As little is encrypted as on Ray's own channels.
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
from hashlib import blake2b
from itertools import count
from typing import Any, cast

log = logging.getLogger(__name__)

Method = Callable[..., Awaitable[Any]]

_LENGTH = struct.Struct(">I")
_LARGEST_BYTES = 1 << 30
_PROOF_BYTES = 32
_CODE_BYTES = 32
_HANDSHAKE_S = 5.0
#: Connections that have proved nothing yet; further ones are closed at once.
_MOST_STRANGERS = 64
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
        self._strangers = 0
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

    async def _prove(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Frames:
        """Raises WireDown, or an OSError or EOFError of the connection."""
        if self._strangers >= _MOST_STRANGERS:
            raise WireDown("too many callers that have proved nothing")
        self._strangers += 1
        try:
            async with asyncio.timeout(_HANDSHAKE_S):
                return await _prove_to_caller(reader, writer, self._key)
        finally:
            self._strangers -= 1

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mine: dict[int, asyncio.Task[None]] = {}
        connection = cast("asyncio.Task[Any]", asyncio.current_task())
        self._connections[connection] = writer
        connection.add_done_callback(self._connections.pop)
        try:
            _keep_alive(writer)
            frames = await self._prove(reader, writer)
            while True:
                number, *call = await frames.read()
                if len(call) == 1:
                    if number in mine:
                        mine[number].cancel()
                    continue
                if self._is_draining:
                    await frames.write((number, None, None))
                    continue
                task = asyncio.create_task(self._answer(frames, number, *call))
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
        self, frames: Frames, number: int, method: str, arguments: tuple[Any, ...]
    ) -> None:
        try:
            body = _pickled((number, True, await self._methods[method](*arguments)))
        except Exception as error:
            log.exception("%s failed", method)
            body = _pickled((number, False, type(error).__name__))
        with suppress(OSError):
            await frames.write_body(body)


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
        self._frames: Frames | None = None
        self._reading: asyncio.Task[None] | None = None
        self._connecting = asyncio.Lock()

    async def call(self, method: str, *arguments: Any) -> Any:
        """Cancelling it cancels the method.

        Raises:
            WireDown, WireBroken, RemoteFailed.
        """
        frames = self._frames or await self._connect()
        number = next(self._numbers)
        answer = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            await frames.write((number, method, arguments))
            ok, value = await answer
        except asyncio.CancelledError:
            if self._frames is frames:
                frames.put((number, method))
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

    async def _connect(self) -> Frames:
        async with self._connecting:
            if self._frames is not None:
                return self._frames
            host, _, port = self.address.rpartition(":")
            try:
                async with asyncio.timeout(_HANDSHAKE_S):
                    reader, writer = await asyncio.open_connection(host, int(port))
                    try:
                        frames = await _prove_to_server(reader, writer, self._key)
                    except BaseException:
                        await _close(writer)
                        raise
            except (OSError, EOFError) as error:  # a TimeoutError is an OSError
                raise WireDown(f"nobody at {self.address}: {error or 'no answer'}") from None
            _keep_alive(writer)
            self._frames = frames
            self._reading = asyncio.create_task(self._read(frames, writer))
            _READING.add(self._reading)
            self._reading.add_done_callback(_READING.discard)
            return frames

    async def _read(self, frames: Frames, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                number, ok, value = await frames.read()
                answer = self._waiting.get(number)
                if answer is not None and not answer.done():
                    answer.set_result((ok, value))
        except (OSError, EOFError, WireDown):
            pass
        finally:
            self._frames = None
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


class Frames:
    """One end of a connection after the handshake: messages out and in, each with a code over its
    number and content, under a key of its direction."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        own_key: bytes,
        other_key: bytes,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._own_key = own_key
        self._other_key = other_key
        self._written = 0
        self._read = 0

    async def read(self) -> Any:
        """Raises EOFError at the end (IncompleteReadError is one); WireDown, a frame that the
        other end has not sent, or not now."""
        (size_bytes,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
        if size_bytes > _LARGEST_BYTES:
            raise WireDown(f"a frame of {size_bytes} bytes")
        code = await self._reader.readexactly(_CODE_BYTES)
        body = await self._reader.readexactly(size_bytes)
        if not hmac.compare_digest(code, _code(self._other_key, self._read, body)):
            raise WireDown("a frame that the other end did not send")
        self._read += 1
        return pickle.loads(body)

    async def write(self, message: tuple[Any, ...]) -> None:
        await self.write_body(_pickled(message))

    async def write_body(self, body: bytes) -> None:
        self._put_body(body)
        await self._writer.drain()

    def put(self, message: tuple[Any, ...]) -> None:
        """Write without waiting until it is sent."""
        self._put_body(_pickled(message))

    def _put_body(self, body: bytes) -> None:
        code = _code(self._own_key, self._written, body)
        self._written += 1
        self._writer.writelines((_LENGTH.pack(len(body)), code, body))


def _code(key: bytes, number: int, body: bytes) -> bytes:
    """BLAKE2b with a key (RFC 7693), which is faster than HMAC-SHA256 without special
    instructions."""
    code = blake2b(number.to_bytes(8, "big"), digest_size=_CODE_BYTES, key=key)
    code.update(body)
    return code.digest()


def _pickled(message: tuple[Any, ...]) -> bytes:
    return pickle.dumps(message, pickle.HIGHEST_PROTOCOL)


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
) -> Frames:
    mine = secrets.token_bytes(_PROOF_BYTES)
    writer.write(mine)
    theirs = await reader.readexactly(_PROOF_BYTES)
    proof = await reader.readexactly(_PROOF_BYTES)
    nonces = mine + theirs
    if not hmac.compare_digest(proof, _proof(key, b"caller", nonces)):
        raise WireDown("a caller without the key")
    writer.write(_proof(key, b"server", nonces))
    await writer.drain()
    return Frames(
        reader, writer, _proof(key, b"to caller", nonces), _proof(key, b"to server", nonces)
    )


async def _prove_to_server(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: bytes
) -> Frames:
    theirs = await reader.readexactly(_PROOF_BYTES)
    mine = secrets.token_bytes(_PROOF_BYTES)
    nonces = theirs + mine
    writer.write(mine + _proof(key, b"caller", nonces))
    proof = await reader.readexactly(_PROOF_BYTES)
    if not hmac.compare_digest(proof, _proof(key, b"server", nonces)):
        raise WireDown("it does not hold the key")
    return Frames(
        reader, writer, _proof(key, b"to server", nonces), _proof(key, b"to caller", nonces)
    )
