"""RPC between processes: concurrent calls over one TCP connection.

A Serve handle spends milliseconds per call (docs/adr/0006) on choosing a replica, which the
dispatcher has done.

A frame is a length (4 bytes), a code and a pickle: ``(id, method, arguments)`` calls, ``(id,
method)`` cancels, ``(id, ok, value)`` answers; ``ok`` is None if a draining server refused the
call. Both ends prove that they hold the key and derive a key per direction. The code authenticates
a frame's content and number: foreign bytes are never unpickled, and a relay can only break the
connection. Frames are unencrypted, like Ray's.
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

Method = Callable[..., Awaitable[object]]

_LENGTH = struct.Struct(">I")
_LARGEST_BYTES = 1 << 30
_PROOF_BYTES = 32
_CODE_BYTES = 32
_HANDSHAKE_S = 5.0
#: More are closed at once.
_MOST_UNAUTHENTICATED = 64
#: A connection to a silent machine breaks after this time.
_SILENCE_S = 15


class WireError(Exception):
    """A call got no answer."""


class WireDown(WireError):
    """Not taken: nothing listens, or the server drains or lacks the key."""


class WireBroken(WireError):
    """The connection broke during the call."""


class RemoteFailed(WireError):
    """The method raised; the text is the exception's type, the other end's log has details."""


class WireServer:
    """Runs each call in a task, cancelled with the call or the connection."""

    def __init__(self, methods: Mapping[str, Method], key: bytes) -> None:
        self._methods = methods
        self._key = key
        self._server: asyncio.Server | None = None
        self._is_draining = False
        self._unauthenticated = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def start(self, host: str) -> str:
        """Listen on a free port; return the address."""
        self._server = await asyncio.start_server(self._serve, host, 0)
        port = self._server.sockets[0].getsockname()[1]
        return f"{host}:{port}"

    async def drain(self) -> None:
        """Refuse new connections and calls; await running ones."""
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
        while tasks := {*self._tasks, *self._connections}:
            await asyncio.wait(tasks)

    async def _authenticate(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> Frames:
        """Raises WireDown, or the connection's OSError or EOFError."""
        if self._unauthenticated >= _MOST_UNAUTHENTICATED:
            raise WireDown("too many unauthenticated callers")
        self._unauthenticated += 1
        try:
            async with asyncio.timeout(_HANDSHAKE_S):
                return await _prove_to_caller(reader, writer, self._key)
        finally:
            self._unauthenticated -= 1

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        calls: dict[int, asyncio.Task[None]] = {}
        connection = cast("asyncio.Task[None]", asyncio.current_task())
        self._connections[connection] = writer
        connection.add_done_callback(self._connections.pop)
        try:
            _keep_alive(writer)
            frames = await self._authenticate(reader, writer)
            while True:
                number, *call = await frames.read()
                if len(call) == 1:
                    if number in calls:
                        calls[number].cancel()
                    continue
                if self._is_draining:
                    await frames.write((number, None, None))
                    continue
                task = asyncio.create_task(self._answer(frames, number, *call))
                calls[number] = task
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                task.add_done_callback(partial(_forget, calls, number))
        except (OSError, EOFError, WireDown):  # includes TimeoutError
            pass
        finally:
            for task in calls.values():
                task.cancel()
            await _close(writer)

    async def _answer(
        self, frames: Frames, number: int, method: str, arguments: tuple[object, ...]
    ) -> None:
        try:
            body = _pickled((number, True, await self._methods[method](*arguments)))
        except Exception as error:
            log.exception("%s failed", method)
            body = _pickled((number, False, type(error).__name__))
        with suppress(OSError):
            await frames.write_body(body)


#: The event loop holds tasks weakly, and a reader outlives its Wire.
_READING: set[asyncio.Task[None]] = set()


class Wire:
    """The caller's end. Connects on the first call and after a loss."""

    def __init__(self, address: str, key: bytes) -> None:
        self.address = address
        self._key = key
        self._numbers = count()
        self._waiting: dict[int, asyncio.Future[object]] = {}
        self._frames: Frames | None = None
        self._reading: asyncio.Task[None] | None = None
        self._connecting = asyncio.Lock()

    async def call(self, method: str, *arguments: object) -> Any:
        """Call a method; cancellation reaches the server.

        Raises:
            WireDown: not taken.
            WireBroken: the connection broke before the answer.
            RemoteFailed: the method raised.
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
            raise WireBroken(f"the connection to {self.address} broke") from None
        finally:
            self._waiting.pop(number, None)
        if ok is None:
            raise WireDown(f"{self.address} is draining and takes no more calls")
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
            except (OSError, EOFError) as error:  # includes TimeoutError
                raise WireDown(f"cannot connect to {self.address}: {error or 'timeout'}") from None
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
                    answer.set_exception(WireBroken(f"the connection to {self.address} broke"))
            await _close(writer)

    async def close(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)


def _forget(tasks: dict[int, asyncio.Task[None]], number: int, _: asyncio.Task[None]) -> None:
    tasks.pop(number, None)


class Frames:
    """One end of an authenticated connection, with a key per direction."""

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
        """Return the next message.

        Raises:
            EOFError: the connection ended.
            WireDown: the frame is too large, or its code wrong.
        """
        (size_bytes,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
        if size_bytes > _LARGEST_BYTES:
            raise WireDown(f"a frame of {size_bytes} bytes is above {_LARGEST_BYTES}")
        code = await self._reader.readexactly(_CODE_BYTES)
        body = await self._reader.readexactly(size_bytes)
        if not hmac.compare_digest(code, _code(self._other_key, self._read, body)):
            raise WireDown("a frame has a wrong code: the other end did not send it")
        self._read += 1
        return pickle.loads(body)

    async def write(self, message: tuple[object, ...]) -> None:
        await self.write_body(_pickled(message))

    async def write_body(self, body: bytes) -> None:
        self._put_body(body)
        await self._writer.drain()

    def put(self, message: tuple[object, ...]) -> None:
        """Write without waiting for the transfer."""
        self._put_body(_pickled(message))

    def _put_body(self, body: bytes) -> None:
        code = _code(self._own_key, self._written, body)
        self._written += 1
        self._writer.writelines((_LENGTH.pack(len(body)), code, body))


def _code(key: bytes, number: int, body: bytes) -> bytes:
    """Keyed BLAKE2b (RFC 7693), faster than HMAC-SHA256 without SHA instructions."""
    code = blake2b(number.to_bytes(8, "big"), digest_size=_CODE_BYTES, key=key)
    code.update(body)
    return code.digest()


def _pickled(message: tuple[object, ...]) -> bytes:
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
    own_nonce = secrets.token_bytes(_PROOF_BYTES)
    writer.write(own_nonce)
    caller_nonce = await reader.readexactly(_PROOF_BYTES)
    proof = await reader.readexactly(_PROOF_BYTES)
    nonces = own_nonce + caller_nonce
    if not hmac.compare_digest(proof, _proof(key, b"caller", nonces)):
        raise WireDown("the caller does not hold the key")
    writer.write(_proof(key, b"server", nonces))
    await writer.drain()
    return Frames(
        reader, writer, _proof(key, b"to caller", nonces), _proof(key, b"to server", nonces)
    )


async def _prove_to_server(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: bytes
) -> Frames:
    server_nonce = await reader.readexactly(_PROOF_BYTES)
    own_nonce = secrets.token_bytes(_PROOF_BYTES)
    nonces = server_nonce + own_nonce
    writer.write(own_nonce + _proof(key, b"caller", nonces))
    proof = await reader.readexactly(_PROOF_BYTES)
    if not hmac.compare_digest(proof, _proof(key, b"server", nonces)):
        raise WireDown("the server does not hold the key")
    return Frames(
        reader, writer, _proof(key, b"to server", nonces), _proof(key, b"to caller", nonces)
    )
