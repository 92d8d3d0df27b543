"""RPC between processes over gRPC, with mutual TLS (docs/adr/0008).

Messages are encoded msgspec structs. A server sends initial metadata
when it takes a call. So a call that ends without it was not taken (nobody listens, draining, too
many calls) and may be repeated anywhere; one that ends after it was lost with its server.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # its handlers deadlock forking processes

import grpc
from grpc import StatusCode, aio

from serving.cluster.identity import NAME, ProcessIdentity

log = logging.getLogger(__name__)

Unary = Callable[[bytes], Awaitable[bytes]]
Stream = Callable[[bytes], AsyncIterator[bytes]]

#: Another major is refused; minors only add fields, methods and kinds of events.
PROTOCOL = "1.0"
MAX_MESSAGE_BYTES = 64 << 20
MAX_CALLS = 4096
_SERVICE = "orchestrator"
_PROTOCOL_KEY, _TAKEN_KEY = "ao-protocol", "ao-taken"
_KEEP_ALIVE_MS = 5_000
#: A drained server cancels the calls that still run after this.
_DRAIN_S = 3600.0

_COMMON = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", _KEEP_ALIVE_MS),
    ("grpc.keepalive_timeout_ms", _KEEP_ALIVE_MS),
    ("grpc.http2.ping_timeout_ms", _KEEP_ALIVE_MS),  # its default is 60 s
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)
_SERVER = (
    *_COMMON,
    ("grpc.http2.min_ping_interval_without_data_ms", _KEEP_ALIVE_MS // 2),
    ("grpc.so_reuseport", 0),
)
_CLIENT = (
    *_COMMON,
    ("grpc.ssl_target_name_override", NAME),
    ("grpc.enable_retries", 0),  # callers decide what may be repeated
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)


class RpcError(Exception):
    """A call got no answer."""


class NotTaken(RpcError):
    """The server did not take the call: absent, draining, busy or without the platform's secret."""


class Incompatible(NotTaken):
    """The server speaks another major version of the protocol."""


class Lost(RpcError):
    """The server ended, or stopped answering, during the call."""


class RemoteError(RpcError):
    """The method raised; the text is the exception's type, the server's log has the rest."""


class RpcServer:
    """Answers calls, each in its own task, which ends when the caller cancels or disconnects."""

    def __init__(
        self,
        identity: ProcessIdentity,
        unary: Mapping[str, Unary] | None = None,
        streams: Mapping[str, Stream] | None = None,
        max_calls: int = MAX_CALLS,
    ) -> None:
        self._server = aio.server(options=_SERVER, maximum_concurrent_rpcs=max_calls)
        handlers: dict[str, Any] = {
            **{
                name: grpc.unary_unary_rpc_method_handler(_taking(method))
                for name, method in (unary or {}).items()
            },
            **{
                name: grpc.unary_stream_rpc_method_handler(_taking_stream(method))
                for name, method in (streams or {}).items()
            },
        }
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(_SERVICE, handlers),)
        )
        self._address = ""
        self._starting: asyncio.Future[None] | None = None
        self._credentials = grpc.ssl_server_credentials(
            [(identity.key, identity.certificate)], identity.authority, require_client_auth=True
        )

    async def start(self, host: str) -> str:
        """Listen on a free port of ``host``, once; return the address."""
        if not self._address:
            port = self._server.add_secure_port(f"{host}:0", self._credentials)
            self._address = f"{host}:{port}"
            self._starting = asyncio.ensure_future(self._server.start())
        if self._starting is not None:
            await asyncio.shield(self._starting)
        return self._address

    async def drain(self) -> None:
        """Refuse new calls; wait for the running ones."""
        await self._server.stop(_DRAIN_S)

    async def close(self) -> None:
        await self._server.stop(None)


class RpcClient:
    """Calls one server; reconnects when needed."""

    def __init__(self, address: str, identity: ProcessIdentity, protocol: str = PROTOCOL) -> None:
        self.address = address
        self._metadata = ((_PROTOCOL_KEY, protocol),)
        self._is_closed = False
        credentials = grpc.ssl_channel_credentials(
            identity.authority, identity.key, identity.certificate
        )
        self._channel = aio.secure_channel(address, credentials, options=_CLIENT)

    async def call(self, method: str, message: bytes, timeout_s: float | None = None) -> bytes:
        """Call a method; cancelling cancels it remotely.

        Raises:
            NotTaken, Incompatible, Lost, RemoteError.
            TimeoutError: after ``timeout_s``.
        """
        unary: aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(
            f"/{_SERVICE}/{method}"
        )
        call = unary(message, timeout=timeout_s, metadata=self._metadata)
        try:
            answer: bytes = await call
        except aio.AioRpcError as error:
            raise self._error(error) from None
        except asyncio.CancelledError:
            self._check_open()
            raise
        return answer

    async def stream(
        self, method: str, message: bytes, timeout_s: float | None = None
    ) -> AsyncGenerator[bytes]:
        """Yield a method's messages; closing the iterator cancels it remotely. Raises as
        :meth:`call`."""
        stream: aio.UnaryStreamMultiCallable[bytes, bytes] = self._channel.unary_stream(
            f"/{_SERVICE}/{method}"
        )
        call = stream(message, timeout=timeout_s, metadata=self._metadata)
        try:
            async for answer in call:
                yield answer
        except aio.AioRpcError as error:
            raise self._error(error) from None
        except asyncio.CancelledError:
            self._check_open()
            raise
        finally:
            call.cancel()

    async def close(self) -> None:
        """Calls that still run raise Lost."""
        self._is_closed = True
        await self._channel.close()

    def _check_open(self) -> None:
        """gRPC cancels the calls of a closed channel; their tasks are not cancelled."""
        task = asyncio.current_task()
        if self._is_closed and (task is None or not task.cancelling()):
            raise Lost(f"{self.address}: the connection was closed") from None

    def _error(self, error: aio.AioRpcError) -> Exception:
        code, details = error.code(), error.details() or ""
        was_taken = any(key == _TAKEN_KEY for key, _ in error.initial_metadata() or ())
        if code == StatusCode.DEADLINE_EXCEEDED:
            return TimeoutError(f"{self.address} did not answer in time")
        if code == StatusCode.FAILED_PRECONDITION:
            return Incompatible(f"{self.address}: {details}")
        if code == StatusCode.INTERNAL and was_taken:
            return RemoteError(details)
        if was_taken:
            return Lost(f"{self.address}: {details}")
        return NotTaken(f"{self.address}: {details}")


def check_protocol(version: str) -> None:
    """Raises Incompatible: another major version."""
    if version.partition(".")[0] != PROTOCOL.partition(".")[0]:
        raise Incompatible(f"protocol {version} is not {PROTOCOL}: restart both with one version")


async def _take(context: aio.ServicerContext[bytes, bytes]) -> None:
    """Refuse another major version; tell the caller that the call is taken."""
    metadata = dict(context.invocation_metadata() or ())
    try:
        check_protocol(str(metadata.get(_PROTOCOL_KEY, "none")))
    except Incompatible as error:
        await context.abort(StatusCode.FAILED_PRECONDITION, str(error))
    await context.send_initial_metadata(((_TAKEN_KEY, "1"),))


def _taking(
    method: Unary,
) -> Callable[[bytes, aio.ServicerContext[bytes, bytes]], Awaitable[bytes]]:
    async def answer(message: bytes, context: aio.ServicerContext[bytes, bytes]) -> bytes:
        await _take(context)
        try:
            return await method(message)
        except Exception as error:
            log.exception("a call failed")
            await context.abort(StatusCode.INTERNAL, type(error).__name__)
            raise

    return answer


def _taking_stream(
    method: Stream,
) -> Callable[[bytes, aio.ServicerContext[bytes, bytes]], AsyncIterator[bytes]]:
    async def answer(
        message: bytes, context: aio.ServicerContext[bytes, bytes]
    ) -> AsyncIterator[bytes]:
        await _take(context)
        messages: AsyncIterator[bytes] | None = None
        try:
            messages = method(message)
            async for each in messages:
                yield each
        except Exception as error:
            log.exception("a stream failed")
            await context.abort(StatusCode.INTERNAL, type(error).__name__)
        finally:
            if isinstance(messages, AsyncGenerator):
                await messages.aclose()

    return answer
