"""Blobs from another node of the cluster, before the object store is asked.

Every blob has an owner among the nodes, the same for all of them (rendezvous hashing). A node
that lacks a blob asks its owner; the owner, if it lacks it too, fetches it once for everybody.
So a popular asset leaves the store once, however many nodes want it. An owner that is gone is no
harm: the next in line is asked, at last the store. After groupcache.
"""

from __future__ import annotations

import http.client
import http.server
import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from hashlib import blake2b
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Literal
from urllib.parse import parse_qs, urlsplit

from assets.content import Blob
from assets.errors import AssetError, BadSignature
from assets.signing import Signer
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
        token = self._signer.sign("PEER", blob.key, int(time.time()) + _TOKEN_S)
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

    Runs in a thread of its own; a file goes from the tier to the socket within the kernel.
    """

    def __init__(self, bring: Bring, signer: Signer, host: str = "127.0.0.1") -> None:
        handler = type("Handler", (_Handler,), {"bring": staticmethod(bring), "signer": signer})
        self._server = _Server((host, 0), handler)
        self.url = f"http://{host}:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="peers", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a peer went away", exc_info=True)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30.0
    bring: Bring
    signer: Signer

    def do_GET(self) -> None:
        split = urlsplit(self.path)
        key = PurePosixPath(split.path).name
        given = parse_qs(split.query)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        try:
            self.signer.verify("PEER", key, token, time.time())
            if split.path != f"/blobs/{key}":
                raise ValueError("not a blob")
            blob = Blob(key, given["sha256"][0], int(given["size"][0]))
        except BadSignature:
            return self.send_error(403)
        except (ValueError, KeyError):
            return self.send_error(400)
        try:
            lease = self.bring(blob)
        except (TierError, AssetError) as error:
            log.info("cannot give %s to a peer: %s", key, error)
            return self.send_error(503)
        with lease, open(lease.path, "rb") as file:
            self.send_response(200)
            self.send_header("Content-Length", str(blob.size_bytes))
            self.end_headers()
            with suppress(ConnectionError, socket.timeout):
                self.connection.sendfile(file)
        return None

    def log_message(self, *_: Any) -> None:
        """Not to standard error."""
