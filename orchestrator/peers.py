"""Blob transfer between a cluster's nodes, tried before the object store.

Rendezvous hashing gives each blob an owner node, which fetches it from the store for all. If it is
down, the next in order is tried, finally the store. The design follows groupcache.
"""

from __future__ import annotations

import asyncio
import http.client
import logging
import threading
import time
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import PurePosixPath
from typing import BinaryIO, Literal
from urllib.parse import parse_qs, urlsplit

from assets.content import Blob
from assets.errors import AssetError, BadSignature
from assets.rendezvous import ranked
from assets.storage.signing import Signer
from orchestrator.download import BlobSource
from orchestrator.errors import SourceDown, TierError
from orchestrator.file_tier import FileLease

log = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 20
_CONNECT_S = 2.0
#: The owner may have to fetch the blob first.
_FIRST_BYTE_S = 30.0
_MIN_BYTES_S = 1 << 20
_GRACE_S = 10.0
_TOKEN_S = 60
#: Limits of unauthenticated connections.
_HEAD_S, _MAX_HEAD_BYTES, _MAX_UNAUTHENTICATED = 5.0, 8 << 10, 64
#: Concurrent fetches for peers.
_MAX_FETCHES = 16


class PeerSource:
    """Fetches a blob from the peers that precede this node in its order, else from ``store``.

    ``nodes`` maps the reachable nodes, this one included, to endpoint URLs; the caller updates it.
    """

    def __init__(self, node: str, store: BlobSource, signer: Signer) -> None:
        self.node = node
        self._store = store
        self._signer = signer
        self.nodes: Mapping[str, str] = {}

    def fetch(self, blob: Blob, file: BinaryIO) -> Literal["peer", "store"]:
        """As :meth:`BlobSource.fetch`; return the blob's source."""
        for node in ranked(blob.key, self.nodes):
            if node == self.node:
                break
            try:
                self._fetch_from(self.nodes[node], blob, file)
            except _PeerUnavailable as error:
                log.warning("node %s did not send %s: %s", node, blob.key, error)
                continue
            return "peer"
        self._store.fetch(blob, file)
        return "store"

    def _fetch_from(self, url: str, blob: Blob, file: BinaryIO) -> None:
        """Raise _PeerUnavailable before any byte is written, SourceDown after."""
        deadline_s = time.monotonic() + _GRACE_S + blob.size_bytes / _MIN_BYTES_S
        token = self._signer.sign("PEER", _token_scope(blob), int(time.time()) + _TOKEN_S)
        parts = urlsplit(url)
        connection = http.client.HTTPConnection(
            parts.hostname or "", parts.port, timeout=_CONNECT_S
        )
        try:
            try:
                connection.connect()
                connection.sock.settimeout(_FIRST_BYTE_S)
                path = f"/blobs/{blob.key}?size={blob.size_bytes}&sha256={blob.sha256}"
                connection.request("GET", path, headers={"Authorization": f"Bearer {token}"})
                response = connection.getresponse()
                if response.status != 200 or response.length != blob.size_bytes:
                    raise _PeerUnavailable(f"status {response.status}, {response.length} bytes")
            except (OSError, http.client.HTTPException) as error:
                raise _PeerUnavailable(f"{type(error).__name__}: {error}") from None
            connection.sock.settimeout(_GRACE_S)
            left_bytes = blob.size_bytes
            while left_bytes:
                try:
                    data = response.read(min(left_bytes, _CHUNK_BYTES))
                except (OSError, http.client.HTTPException) as error:
                    raise SourceDown(f"the transfer from {url} failed: {error}") from None
                if not data or time.monotonic() > deadline_s:
                    raise SourceDown(
                        f"the transfer of {blob.key} from {url} ended or timed out with "
                        f"{left_bytes} bytes missing"
                    )
                file.write(data)
                left_bytes -= len(data)
        finally:
            connection.close()


class _PeerUnavailable(Exception):
    """The peer sent no byte of the blob."""


#: Leases the blob, from the store if necessary; through peers, two nodes with different views of
#: the cluster could wait for each other.
AcquireBlob = Callable[[Blob], FileLease]


class PeerServer:
    """The node's HTTP endpoint for peers: ``GET /blobs/KEY``, authenticated by a signed token.

    Its event loop has its own thread; only verified connections take a pool thread.
    """

    def __init__(self, acquire: AcquireBlob, signer: Signer, host: str = "127.0.0.1") -> None:
        self._acquire = acquire
        self._signer = signer
        self._unauthenticated = 0
        self._threads = ThreadPoolExecutor(_MAX_FETCHES, "peer")
        # Ray Serve's default loop, uvloop, has no sendfile.
        self._loop = asyncio.SelectorEventLoop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="peers", daemon=True)
        self._thread.start()
        starting = asyncio.start_server(
            self._handle_connection, host, 0, limit=_MAX_HEAD_BYTES, backlog=64
        )
        self._server = asyncio.run_coroutine_threadsafe(starting, self._loop).result()
        self.url = f"http://{host}:{self._server.sockets[0].getsockname()[1]}"

    def close(self) -> None:
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._shut_down(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _shut_down(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _handle_connection(self, reader: StreamReader, writer: StreamWriter) -> None:
        try:
            while True:
                await self._handle_request(reader, writer)
        except (OSError, EOFError, asyncio.LimitOverrunError):  # a TimeoutError is an OSError
            log.debug("a peer's connection ended", exc_info=True)
        finally:
            writer.close()

    async def _handle_request(self, reader: StreamReader, writer: StreamWriter) -> None:
        try:
            blob = await self._read_request(reader)
        except BadSignature:
            return await _send_error(writer, 403)
        except (ValueError, KeyError):
            return await _send_error(writer, 400)
        try:
            lease = await self._loop.run_in_executor(self._threads, self._acquire, blob)
        except (TierError, AssetError) as error:
            log.info("cannot send %s to a peer: %s", blob.key, error)
            return await _send_error(writer, 503)
        with lease, open(lease.path, "rb") as file:
            async with asyncio.timeout(_GRACE_S + blob.size_bytes / _MIN_BYTES_S):
                writer.write(_response_head(200, blob.size_bytes))
                await self._loop.sendfile(writer.transport, file)
        return None

    async def _read_request(self, reader: StreamReader) -> Blob:
        if self._unauthenticated >= _MAX_UNAUTHENTICATED:
            raise ConnectionRefusedError(
                f"more than {_MAX_UNAUTHENTICATED} connections without a request"
            )
        self._unauthenticated += 1
        try:
            async with asyncio.timeout(_HEAD_S):
                head = await reader.readuntil(b"\r\n\r\n")
        finally:
            self._unauthenticated -= 1
        request, *lines = head.decode("latin-1").rstrip().split("\r\n")
        verb, target, _ = request.split(" ")
        fields = (line.partition(":") for line in lines)
        headers = {name.lower(): value.strip() for name, _, value in fields}
        split = urlsplit(target)
        query = parse_qs(split.query)
        key = PurePosixPath(split.path).name
        if verb != "GET" or split.path != f"/blobs/{key}":
            raise ValueError(f"{verb} {split.path} is not GET /blobs/KEY")
        blob = Blob(key, query["sha256"][0], int(query["size"][0]))
        token = headers["authorization"].removeprefix("Bearer ")
        self._signer.verify("PEER", _token_scope(blob), token, time.time())
        return blob


def _token_scope(blob: Blob) -> str:
    return f"{blob.key}/{blob.size_bytes}/{blob.sha256}"


async def _send_error(writer: StreamWriter, status: int) -> None:
    writer.write(_response_head(status, 0))
    await writer.drain()


def _response_head(status: int, size_bytes: int) -> bytes:
    return (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Length: {size_bytes}\r\n\r\n"
    ).encode("ascii")
