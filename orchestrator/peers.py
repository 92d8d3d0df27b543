"""Blobs from another node of the cluster, before the object store is asked.

Every blob has an owner among the nodes, the same for all of them (rendezvous hashing). A node
that lacks a blob asks its owner; the owner, if it lacks it too, fetches it once for everybody.
So a popular asset leaves the store once, however many nodes want it. An owner that is gone is no
harm: the next in line is asked, at last the store. After groupcache.
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
from hashlib import blake2b
from http import HTTPStatus
from pathlib import PurePosixPath
from typing import BinaryIO, Literal
from urllib.parse import parse_qs, urlsplit

from assets.content import Blob
from assets.errors import AssetError, BadSignature
from assets.storage.signing import Signer
from orchestrator.download import BlobSource
from orchestrator.errors import SourceDown, TierError
from orchestrator.file_tier import FileLease

log = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 20
_CONNECT_S = 2.0
#: The owner may have to fetch it first; for so long it says nothing.
_SILENCE_S = 30.0
_LEAST_BYTES_S = 1 << 20
_GRACE_S = 10.0
_TOKEN_S = 60
#: Of a request, from its connection to its last header; connections that have sent none by
#: then, or are more than so many, are closed.
_HEAD_S, _MAX_HEAD_BYTES, _MOST_STRANGERS = 5.0, 8 << 10, 64
#: Blobs that are brought for peers at a time.
_MOST_FETCHES = 16


def owners(key: str, nodes: Mapping[str, str]) -> list[str]:
    """All nodes, the one that owns the key first: the same order wherever it is asked."""
    return sorted(nodes, key=lambda n: blake2b(f"{key}/{n}".encode(), digest_size=8).digest())


class PeerSource:
    """Another node if one owns the blob, else ``store``.

    ``nodes`` maps every node that can be asked, this one included, to its endpoint; whoever
    knows the cluster keeps it up to date.
    """

    def __init__(self, node: str, store: BlobSource, signer: Signer) -> None:
        self.node = node
        self._store = store
        self._signer = signer
        self.nodes: Mapping[str, str] = {}

    def fetch(self, blob: Blob, file: BinaryIO) -> Literal["peer", "store"]:
        """As :meth:`BlobSource.fetch`; and who gave it."""
        for node in owners(blob.key, self.nodes):
            if node == self.node:
                break  # this one is to fetch it for the others
            try:
                self._ask(self.nodes[node], blob, file)
            except _NothingYet as error:
                log.warning("node %s did not send %s: %s", node, blob.key, error)
                continue
            return "peer"
        self._store.fetch(blob, file)
        return "store"

    def _ask(self, url: str, blob: Blob, file: BinaryIO) -> None:
        """Raises _NothingYet as long as another source may be tried, SourceDown once bytes were
        written that cannot be taken back."""
        deadline_s = time.monotonic() + _GRACE_S + blob.size_bytes / _LEAST_BYTES_S
        token = self._signer.sign("PEER", _signed(blob), int(time.time()) + _TOKEN_S)
        parts = urlsplit(url)
        connection = http.client.HTTPConnection(
            parts.hostname or "", parts.port, timeout=_CONNECT_S
        )
        try:
            try:
                connection.connect()
                connection.sock.settimeout(_SILENCE_S)
                path = f"/blobs/{blob.key}?size={blob.size_bytes}&sha256={blob.sha256}"
                connection.request("GET", path, headers={"Authorization": f"Bearer {token}"})
                response = connection.getresponse()
                if response.status != 200 or response.length != blob.size_bytes:
                    raise _NothingYet(f"status {response.status}, {response.length} bytes")
            except (OSError, http.client.HTTPException) as error:
                raise _NothingYet(f"{type(error).__name__}: {error}") from None
            connection.sock.settimeout(_GRACE_S)
            left = blob.size_bytes
            while left:
                try:
                    data = response.read(min(left, _CHUNK_BYTES))
                except (OSError, http.client.HTTPException) as error:
                    raise SourceDown(f"{url} broke off: {error}") from None
                if not data or time.monotonic() > deadline_s:
                    raise SourceDown(f"{url} broke off {left} bytes before the end of {blob.key}")
                file.write(data)
                left -= len(data)
        finally:
            connection.close()


class _NothingYet(Exception):
    """It cannot be had there; not a byte of it came."""


#: Leases the blob on this node, fetching it from the store if need be; from no peer, or two
#: nodes that do not know of each other's neighbours could wait for each other.
Bring = Callable[[Blob], FileLease]


class PeerServer:
    """The node's small endpoint: ``GET /blobs/KEY`` for the other nodes, and for nobody else.

    An event loop in a thread of its own: a connection takes a thread of the pool only once it
    has shown a token, and a file goes from the tier to the socket within the kernel.
    """

    def __init__(self, bring: Bring, signer: Signer, host: str = "127.0.0.1") -> None:
        self._bring = bring
        self._signer = signer
        self._strangers = 0
        self._threads = ThreadPoolExecutor(_MOST_FETCHES, "peer")
        # Not the process's own kind: Ray Serve's is uvloop, which has no sendfile.
        self._loop = asyncio.SelectorEventLoop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="peers", daemon=True)
        self._thread.start()
        starting = asyncio.start_server(self._serve, host, 0, limit=_MAX_HEAD_BYTES, backlog=64)
        self._server = asyncio.run_coroutine_threadsafe(starting, self._loop).result()
        self.url = f"http://{host}:{self._server.sockets[0].getsockname()[1]}"

    def close(self) -> None:
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _end(self) -> None:
        self._server.close()
        ending = asyncio.all_tasks() - {asyncio.current_task()}
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    async def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        try:
            while True:
                await self._answer(reader, writer)
        except (OSError, EOFError, asyncio.LimitOverrunError):  # a TimeoutError is an OSError
            log.debug("a peer went away", exc_info=True)
        finally:
            writer.close()

    async def _answer(self, reader: StreamReader, writer: StreamWriter) -> None:
        """One request."""
        try:
            blob = await self._asked(reader)
        except BadSignature:
            return await _refuse(writer, 403)
        except (ValueError, KeyError):
            return await _refuse(writer, 400)
        try:
            lease = await self._loop.run_in_executor(self._threads, self._bring, blob)
        except (TierError, AssetError) as error:
            log.info("cannot give %s to a peer: %s", blob.key, error)
            return await _refuse(writer, 503)
        with lease, open(lease.path, "rb") as file:
            async with asyncio.timeout(_GRACE_S + blob.size_bytes / _LEAST_BYTES_S):
                writer.write(_head(200, blob.size_bytes))
                await self._loop.sendfile(writer.transport, file)
        return None

    async def _asked(self, reader: StreamReader) -> Blob:
        """Raises BadSignature, ValueError, KeyError; OSError or EOFError of the connection."""
        if self._strangers >= _MOST_STRANGERS:
            raise ConnectionRefusedError("too many callers that have shown nothing")
        self._strangers += 1
        try:
            async with asyncio.timeout(_HEAD_S):
                head = await reader.readuntil(b"\r\n\r\n")
        finally:
            self._strangers -= 1
        request, *lines = head.decode("latin-1").rstrip().split("\r\n")
        verb, target, _ = request.split(" ")
        fields = (line.partition(":") for line in lines)
        headers = {name.lower(): value.strip() for name, _, value in fields}
        split = urlsplit(target)
        given = parse_qs(split.query)
        key = PurePosixPath(split.path).name
        if verb != "GET" or split.path != f"/blobs/{key}":
            raise ValueError("not a blob")
        blob = Blob(key, given["sha256"][0], int(given["size"][0]))
        token = headers["authorization"].removeprefix("Bearer ")
        self._signer.verify("PEER", _signed(blob), token, time.time())
        return blob


def _signed(blob: Blob) -> str:
    """What a token is for: all that a node is told to fetch, and under which name to keep it."""
    return f"{blob.key}/{blob.size_bytes}/{blob.sha256}"


async def _refuse(writer: StreamWriter, status: int) -> None:
    writer.write(_head(status, 0))
    await writer.drain()


def _head(status: int, size_bytes: int) -> bytes:
    return (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Length: {size_bytes}\r\n\r\n"
    ).encode("ascii")
