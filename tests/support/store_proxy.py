"""An HTTP proxy of an object store that counts requests and injects faults."""

from __future__ import annotations

import http.client
import http.server
import socket
import struct
import threading
import time
from collections import Counter
from typing import Any

_PIECE_BYTES = 64 << 10
#: Answer 503, end an answer early, reset the connection, flip a content bit, never answer.
FAULTS = ("503", "cut", "reset", "flipped", "black hole")


class StoreProxy:
    """Forwards to a store on this machine, unchanged unless ``fault`` is set.

    ``gets`` counts GET requests by path, ``sent_bytes`` their answers' bytes.
    """

    def __init__(self, port: int, bytes_per_s: float | None = None) -> None:
        """``port`` is the store's; ``bytes_per_s`` limits all answers together."""
        self.bytes_per_s = bytes_per_s
        #: One of FAULTS, or None.
        self.fault: str | None = None
        self.harmed = 0
        self._free_at_s = 0.0
        self.gets: Counter[str] = Counter()
        self.sent_bytes: Counter[str] = Counter()
        handler = type("Handler", (_Handler,), {"proxy": self, "store_port": port})
        self._server = _Server(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def count(self, path: str, size_bytes: int) -> None:
        with self._lock:
            self.gets[path] += 1
            self.sent_bytes[path] += size_bytes

    def harm(self) -> None:
        with self._lock:
            self.harmed += 1

    def wait_for(self, size_bytes: int) -> None:
        """Block until ``size_bytes`` more may be sent."""
        rate = self.bytes_per_s
        if rate is None:
            return
        with self._lock:
            self.harmed += 1
            start_s = max(self._free_at_s, time.monotonic())
            self._free_at_s = start_s + size_bytes / rate
        time.sleep(max(0.0, self._free_at_s - time.monotonic()))

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore disconnects."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: StoreProxy
    store_port: int

    def _forward(self) -> None:
        fault = self.proxy.fault
        is_content = self.command == "GET" and "/blobs/" in self.path
        if fault is not None and (is_content or fault not in ("cut", "flipped")):
            self.proxy.harm()
        if fault == "black hole":
            while self.proxy.fault == fault:
                time.sleep(0.1)
            self.close_connection = True
            return
        if fault == "reset":
            # With a linger time of 0 the kernel sends RST, not FIN.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        connection = http.client.HTTPConnection("127.0.0.1", self.store_port, timeout=60)
        try:
            # No own headers: the client's signature covers Host.
            connection.putrequest(
                self.command, self.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in self.headers.items():
                if name.lower() != "connection":
                    connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        if fault == "503":
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if fault == "flipped" and is_content and data:
            data = bytes([data[0] ^ 1]) + data[1:]
        if self.command == "GET":
            self.proxy.count(self.path.partition("?")[0], len(data))
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length", "date"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else len(data)
        self.send_header("Content-Length", str(length or 0))
        self.end_headers()
        if self.command != "HEAD":
            whole = len(data)
            if fault == "cut" and is_content:
                data, self.close_connection = data[: whole // 2], True
            for start in range(0, len(data), _PIECE_BYTES):
                piece = data[start : start + _PIECE_BYTES]
                self.proxy.wait_for(len(piece))
                self.wfile.write(piece)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _forward

    def log_message(self, *_: Any) -> None:
        """Keep stderr quiet."""
